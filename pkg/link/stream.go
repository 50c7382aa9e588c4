package link

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/wire"
)

// Stream is one bidirectional stream of a link: two halves that end apart. It is freed, and its credit given back to the
// peer, only when both have ended: reading up to io.EOF or an error, or CancelRead; and CloseWrite or CancelWrite.
//
// The errors of all methods are io.EOF, a timeout (os.ErrDeadlineExceeded), io.ErrClosedPipe after CloseWrite, or a
// *wire.ResetError: reset by the peer, by this end, or lost with the link.
//
// Each half is for one goroutine, but the Cancel methods, Reset and the deadlines may be called from any, at any time.
type Stream struct {
	stream *quic.Stream
	link   *Link

	// What need not exempt; see later.go.
	mu        sync.Mutex
	waiting   []byte
	retryWait time.Duration // how long it waits for room in a window
	ending    bool          // CloseWrite follows it
	queued    bool

	turn  turn
	whole bool // see sendWhole; the writer's own
}

// streamUrgency is QUIC's default, of 0 to 7.
const streamUrgency = 3

// Link is what the stream runs over.
func (s *Stream) Link() *Link { return s.link }

// Read waits for data and reads some.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.stream.Read(p)
	if n > 0 {
		s.link.touch()
	}
	return n, streamError(err)
}

// Peek waits until it can fill p, or the stream ends, and does not consume the data. With one byte it waits for data
// without holding a buffer for it.
func (s *Stream) Peek(p []byte) (int, error) {
	n, err := s.stream.Peek(p)
	return n, streamError(err)
}

// Write returns when QUIC has sent all but the last packet's worth of p, which it has copied. Where many write much, they take
// turns.
func (s *Stream) Write(p []byte) (int, error) {
	s.link.touch()
	if err := s.writeWaiting(); err != nil {
		return 0, err
	}
	s.link.flush() // this one leaves now, and takes along what waits
	large := len(p) >= turnLeast
	s.sendWhole(large && s.link.turns.take(s))
	n, err := s.stream.Write(p)
	if large {
		s.link.turns.give(s)
	} else {
		lineUp()
	}
	return n, streamError(err)
}

// lineUp has QUIC's goroutine, which a write has just made ready, wait for its turn behind all that is ready by now. Go runs what
// was made ready last right after the one that did it: so of 16 streams that have something to say at the same time, each
// would get a packet of its own, and a system call, and an acknowledgement. Behind the others it finds all that they have
// written. What is made ready after it, here by a goroutine that does nothing, takes its place at the front. Where no other
// goroutine is ready that costs a quarter of a microsecond.
func lineUp() { go func() {}() }

// sendWhole has QUIC send what is written without going round between this stream and others, or go round again. It still
// goes between the first of such streams and all others, so that small writes don't wait.
func (s *Stream) sendWhole(whole bool) {
	if s.whole != whole {
		s.whole = whole
		s.stream.SetPriority(streamUrgency, !whole)
	}
}

// TryWrite takes all of p, or nothing (false) if the flow-control windows have no room for it. It never waits.
func (s *Stream) TryWrite(p []byte) (bool, error) {
	s.link.touch()
	s.link.flush()
	err := s.tryWrite(p)
	lineUp()
	if errors.Is(err, quic.ErrWouldBlock) {
		return false, nil
	}
	return err == nil, streamError(err)
}

// CloseWrite ends the half towards the peer, who reads io.EOF after all that was written. It must not be called beside
// Write. On a half that has been reset it returns how.
func (s *Stream) CloseWrite() error {
	if !s.endWaiting() && s.stream.Close() != nil {
		return streamError(context.Cause(s.stream.Context()))
	}
	return nil
}

// CancelRead makes the peer's writes fail with the code, and what it has sent be dropped. It does nothing after the end.
func (s *Stream) CancelRead(code wire.StreamCode) {
	s.stream.CancelRead(quic.StreamErrorCode(code))
}

// CancelWrite makes the peer's reads fail with the code; what was not delivered may be dropped.
func (s *Stream) CancelWrite(code wire.StreamCode) {
	s.dropWaiting()
	s.stream.CancelWrite(quic.StreamErrorCode(code))
	s.link.turns.exempt(s, true)
}

// Reset cancels both halves.
func (s *Stream) Reset(code wire.StreamCode) {
	s.CancelRead(code)
	s.CancelWrite(code)
}

// SetReadDeadline applies to the Read or Peek that waits, too. The zero time is none.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.stream.SetReadDeadline(t) }

// SetWriteDeadline applies to the Write that waits, too. The zero time is none.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	err := s.stream.SetWriteDeadline(t)
	s.link.turns.exempt(s, !t.IsZero())
	return err
}

// Context is done when nothing can be written any more: the peer has stopped reading, the link is gone, or this end has
// ended the half itself. Then context.Cause is the *wire.ResetError, or context.Canceled after CloseWrite.
func (s *Stream) Context() context.Context { return streamContext{s} }

// streamContext is quic-go's context of a stream, with this package's errors. It answers no Value, because context.Cause
// would find quic-go's error by one; and it has AfterFunc, which spares package context a goroutine for each stream.
type streamContext struct{ s *Stream }

func (c streamContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c streamContext) Done() <-chan struct{}       { return c.s.stream.Context().Done() }
func (c streamContext) Value(any) any               { return nil }

func (c streamContext) AfterFunc(f func()) (stop func() bool) {
	return context.AfterFunc(c.s.stream.Context(), f)
}

func (c streamContext) Err() error {
	cause := context.Cause(c.s.stream.Context())
	if errors.Is(cause, quic.ErrStreamClosed) {
		return context.Canceled
	}
	return streamError(cause)
}

// streamError turns quic-go's errors into this package's.
func streamError(err error) error {
	switch {
	case err == nil, err == io.EOF: //nolint:errorlint // quic-go returns it bare, and this is the fast path
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case errors.Is(err, quic.ErrStreamClosed):
		return io.ErrClosedPipe
	}
	if reset, ok := errors.AsType[*quic.StreamError](err); ok {
		return &wire.ResetError{Code: wire.StreamCode(reset.ErrorCode), Remote: reset.Remote}
	}
	// Whatever else ends a stream has ended its link. A link that was closed because a right was withdrawn takes its
	// streams with it for good.
	if end, ok := errors.AsType[*quic.ApplicationError](err); ok && wire.CloseCode(end.ErrorCode) == wire.CloseRevoked {
		return &wire.ResetError{Code: wire.CodeRevoked, Remote: end.Remote}
	}
	return &wire.ResetError{Code: wire.CodeLost}
}
