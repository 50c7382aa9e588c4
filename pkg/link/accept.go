package link

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/wire"
)

type accepted struct {
	stream *Stream
	tip    wire.Message
}

// tipAtOnce is how long Accept itself waits for the tip of a stream that has arrived.
const tipAtOnce = 2 * time.Millisecond

// Accept returns the next stream of the peer with its tip. A stream that says nothing at first holds up nobody; one whose
// tip does not come in time is reset, and a malformed tip is answered with 400. It fails when the link is over (Err tells
// why) or ctx is done. It is for one goroutine.
//
// A tip comes in a stream's first packet, as a rule, so Accept reads it itself; only for a late one there is a goroutine.
func (l *Link) Accept(ctx context.Context) (*Stream, wire.Message, error) {
	// An idle link waits in here, so what takes stack is elsewhere.
	for {
		var next accepted
		if l.anyLate() {
			next = l.acceptLate(ctx)
		} else {
			qs, _ := l.conn.AcceptStream(ctx) // look finds the error, too
			next = l.accepted(qs)
		}
		if next.tip != nil && l.Err() == nil {
			return next.stream, next.tip, nil
		}
		if s, tip, err := l.look(ctx, next.stream); tip != nil || err != nil {
			return s, tip, err
		}
	}
}

// look is what Accept does about an accepted stream, or without one (nil) where it was woken. It returns nothing if Accept is
// to go on.
//
//go:noinline
func (l *Link) look(ctx context.Context, s *Stream) (*Stream, wire.Message, error) {
	switch {
	case l.Err() != nil:
		return nil, nil, l.Err()
	case ctx.Err() != nil:
		return nil, nil, context.Cause(ctx)
	case s == nil:
		return nil, nil, nil // a late tip is ready, or has failed
	}
	if tip, there := s.peekTip(); there {
		if l.takeTip(s, tip) {
			return s, tip.message, nil
		}
		return nil, nil, nil
	}
	if !l.mayBeLate() {
		l.hits.hit(limitAllTips, slog.String("peer", l.Peer()))
		s.answer(wire.StatusTooMany, "too many streams have not said yet what they want")
		return nil, nil, nil
	}
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	if l.accept.over {
		return nil, nil, l.Err()
	}
	l.accept.late++
	l.work.Go(func() { l.waitForTip(s) })
	return nil, nil, nil
}

// anyLate tells whether the tip of any stream is late.
//
//go:noinline
func (l *Link) anyLate() bool {
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	return l.accept.late > 0 || len(l.accept.ready) > 0
}

// accepted is a stream without its tip, or nothing if there is none.
//
//go:noinline
func (l *Link) accepted(qs *quic.Stream) accepted {
	if qs == nil {
		return accepted{}
	}
	return accepted{stream: &Stream{stream: qs, link: l}}
}

// acceptLate returns a stream whose late tip is ready, or a new one without its tip; or none, and Accept is to look what
// there is.
//
//go:noinline
func (l *Link) acceptLate(ctx context.Context) accepted {
	l.accept.mu.Lock()
	if len(l.accept.ready) > 0 {
		a := l.accept.ready[0]
		l.accept.ready = slices.Delete(l.accept.ready, 0, 1)
		l.accept.mu.Unlock()
		return a
	}
	late := l.accept.late
	if late == 0 { // since Accept has looked
		l.accept.mu.Unlock()
		return accepted{}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.accept.wake = cancel
	l.accept.mu.Unlock()
	if int(late) >= l.limits.PendingTips { // beyond this bound the peer's streams wait in QUIC
		l.hits.hit(limitTips, slog.String("peer", l.Peer()))
		select {
		case <-ctx.Done():
		case <-l.Done():
		}
		return accepted{}
	}
	qs, _ := l.conn.AcceptStream(ctx)
	return l.accepted(qs)
}

// readTip is what reading a tip gave.
type readTip struct {
	message wire.Message
	err     error
}

// peekTip takes a tip that is there at once and whole. Otherwise it takes nothing.
func (s *Stream) peekTip() (tip readTip, there bool) {
	_ = s.SetReadDeadline(time.Now().Add(tipAtOnce))
	var head [3]byte // type and length, as anyone but an attacker writes them: one byte, and one or two
	n := 2
	if _, err := s.stream.Peek(head[:n]); err != nil {
		return readTip{}, false
	}
	size := int(head[1])
	switch head[1] >> 6 {
	case 0:
	case 1:
		n = 3
		if _, err := s.stream.Peek(head[:n]); err != nil {
			return readTip{}, false
		}
		size = int(head[1]&0x3f)<<8 | int(head[2])
	default:
		return readTip{}, false
	}
	if head[0]>>6 != 0 || size > wire.MaxBody {
		return readTip{}, false
	}
	b := make([]byte, n+size)
	if _, err := s.stream.Peek(b); err != nil {
		return readTip{}, false
	}
	// It is all there: the read waits for nothing, and must not fail because the time for waiting has just run out. What stays
	// unread would be taken for the first bytes behind the tip.
	_ = s.SetReadDeadline(time.Time{})
	if _, tip.err = io.ReadFull(s.stream, b); tip.err == nil {
		tip.message, _, tip.err = wire.Parse(b)
	}
	return tip, true
}

// waitForTip reads a tip that is late.
func (l *Link) waitForTip(s *Stream) {
	var tip readTip
	_ = s.SetReadDeadline(time.Now().Add(l.limits.TipTimeout))
	tip.message, tip.err = wire.Read(s)
	good := l.takeTip(s, tip)
	if l.listener != nil {
		l.listener.links().tips.Add(-1)
	}
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	l.accept.late--
	if good {
		l.accept.ready = append(l.accept.ready, accepted{s, tip.message})
	}
	if l.accept.wake != nil {
		l.accept.wake()
	}
}

// mayBeLate counts a stream whose tip is late, unless those of all links are too many.
func (l *Link) mayBeLate() bool {
	if l.listener == nil {
		return true
	}
	tips := &l.listener.links().tips
	if tips.Add(1) <= int64(l.limits.PendingTipsTotal) {
		return true
	}
	tips.Add(-1)
	return false
}

// takeTip tells whether a tip is one. If not, the stream is done with.
func (l *Link) takeTip(s *Stream, tip readTip) bool {
	switch tip.message.(type) {
	case *wire.Control:
		l.Close(wire.CloseProtocol, "a second control stream")
		return false
	case nil:
		if tip.err == nil || errors.Is(tip.err, wire.ErrMalformed) {
			l.badTips.Do(func() {
				l.log.Warn("a stream can't be understood: the peer is of another version, or no ptthqd (of such lines there is one a minute at most)",
					slog.String("peer", l.Peer()), slog.Any("error", tip.err))
			})
			s.answer(wire.StatusMalformed, "the tip can't be understood")
		} else {
			l.log.Debug("no tip", slog.String("peer", l.Peer()), slog.Any("error", tip.err))
			s.Reset(wire.CodeLost)
		}
		return false
	}
	_ = s.SetReadDeadline(time.Time{})
	return true
}

// answer refuses a stream that has had no tip.
func (s *Stream) answer(status wire.Status, text string) {
	_, _ = s.TryWrite(wire.Append(nil, &wire.Reply{Status: status, Text: text}))
	_ = s.CloseWrite()
	s.CancelRead(wire.CodeLost)
}
