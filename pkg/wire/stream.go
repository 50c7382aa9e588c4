package wire

import (
	"context"
	"io"
	"time"
)

// A Stream is one bidirectional stream of a link, as its users see it: sessions at both ends, and
// the splice of the relay. *link.Stream implements it.
//
// A stream that is reset or lost fails its reads and writes with a *ResetError. One goroutine at a
// time reads (Read, Peek), and one at a time writes (Write, TryWrite, WriteLater, Finish). The
// other methods may be called by any goroutine at any time, and repeatedly. The owner of a stream
// ends both halves of it, or the peer's flow-control credit is never returned.
type Stream interface {
	io.ReadWriter
	// Peek blocks until len(p) bytes have arrived, and copies them without consuming them.
	Peek(p []byte) (int, error)
	// TryWrite writes all of p, or nothing where that would block.
	TryWrite(p []byte) (bool, error)
	// WriteLater queues a small p, which leaves with what is written next, or soon. It never
	// blocks. Its error is that of the next write.
	WriteLater(p []byte)
	// Finish queues p, which may be empty, as WriteLater does, and ends the writing half behind it.
	Finish(p []byte) error
	// CloseWrite ends the writing half at once. A reader that gives up once it has the last bytes
	// must not overtake the end.
	CloseWrite() error
	// CancelRead tells the peer that nothing more will be read. It does nothing after the end.
	CancelRead(code StreamCode)
	// CancelWrite makes the peer's reads fail with the code. Data that was not delivered may be
	// dropped.
	CancelWrite(code StreamCode)
	// Reset is CancelRead and CancelWrite. A call that blocks on the stream returns.
	Reset(code StreamCode)
	// SetReadDeadline and SetWriteDeadline also apply to a call that blocks already, which then
	// fails with os.ErrDeadlineExceeded. The zero time is no deadline.
	SetReadDeadline(t time.Time) error
	SetWriteDeadline(t time.Time) error
	// Context is done when the peer has stopped reading or the link is gone, with the *ResetError
	// as its cause. It may be done after Finish.
	Context() context.Context
}
