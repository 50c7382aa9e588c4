package session

import (
	"io"
	"time"
)

// A Conn is the TCP side of a session: P1 at the client, P5 at the server. It is a *net.TCPConn, a
// *net.UnixConn or anything else that can be half-closed. The session owns it and closes it.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// A lingerer is a Conn whose Close can be made a reset (0) or not (-1), as of a *net.TCPConn.
type lingerer interface {
	SetLinger(seconds int) error
}

// A tryWriter is a Conn that can write what fits without waiting.
type tryWriter interface {
	TryWrite(p []byte) (int, error)
}

// A watched Conn knows, without a read, whether its peer is gone.
type watched interface {
	// ResetError returns the error by which the peer has reset the connection; nil if it hasn't.
	ResetError() error
	// Gone returns why the peer is gone, nil if it isn't or that can't be told.
	Gone() error
	// AwaitGone waits until the peer is gone, and returns why. It returns nil if the Conn is
	// closed.
	AwaitGone() error
}

// closeConn closes e in good order.
func closeConn(e *tcpSide) {
	if e.raw != nil {
		e.raw.letGo()
	}
	setLinger(e.Conn, -1)
	_ = e.Close()
}

// abort closes e so that its peer sees a reset, if the Conn can do that.
func abort(e *tcpSide) {
	setLinger(e.Conn, 0)
	_ = e.Close()
}

func setLinger(c Conn, seconds int) {
	if l, ok := c.(lingerer); ok {
		_ = l.SetLinger(seconds)
	}
}

// A tcpSide is a Conn that can also wait for data without a buffer, and write without waiting.
type tcpSide struct {
	Conn
	raw *rawEnd // nil if the Conn has no usable file descriptor
}

// newTCPSide makes a tcpSide of c. From now on the kernel resets c if this process dies. Otherwise
// it would close c in good order, and data that was cut off would look complete.
func newTCPSide(c Conn) *tcpSide {
	setLinger(c, 0)
	return &tcpSide{Conn: c, raw: newRawEnd(c)}
}

// read waits for data, calls reserve for memory to put it in, and reads. It calls cancel if nothing
// was read into that memory. With a raw end nothing is reserved while it waits.
func (e *tcpSide) read(reserve func() []byte, cancel func()) (int, error) {
	if e.raw != nil {
		return e.raw.read(reserve, cancel)
	}
	n, err := e.Read(reserve())
	if n == 0 {
		cancel()
	}
	return n, err
}

// tryRead reads what is there, which may be nothing, without waiting. The next read finds an end or
// an error.
func (e *tcpSide) tryRead(reserve func() []byte, cancel func()) int {
	if e.raw != nil {
		return e.raw.tryRead(reserve, cancel)
	}
	return 0
}

// tryWrite writes what fits, which may be nothing, without waiting.
func (e *tcpSide) tryWrite(p []byte) (int, error) {
	if e.raw != nil {
		return e.raw.tryWrite(p)
	}
	if w, ok := e.Conn.(tryWriter); ok {
		return w.TryWrite(p)
	}
	return 0, nil
}

// resetError returns, without a read, the error by which the peer has reset the connection; nil if
// it hasn't, or if that can't be told.
func (e *tcpSide) resetError() error {
	if e.raw != nil {
		return e.raw.resetError()
	}
	if w, ok := e.Conn.(watched); ok {
		return w.ResetError()
	}
	return nil
}

// gone returns why the peer, which has ended its half, neither reads nor writes any more; nil if it
// may still, or if that can't be told.
func (e *tcpSide) gone() error {
	if e.raw != nil {
		return e.raw.gone()
	}
	if w, ok := e.Conn.(watched); ok {
		return w.Gone()
	}
	return nil
}

// awaitGone waits until the peer is gone, and returns why, or until the Conn is closed. No
// goroutine may read meanwhile. ok is false if the Conn can't be waited for.
func (e *tcpSide) awaitGone() (why error, ok bool) {
	if e.raw != nil {
		return e.raw.awaitGone(), true
	}
	if w, ok := e.Conn.(watched); ok {
		return w.AwaitGone(), true
	}
	return nil, false
}

// unacknowledged returns what the kernel knows of the data that it holds for the peer: the zero
// value if it holds none, or if that can't be told.
func (e *tcpSide) unacknowledged() unacknowledged {
	if e.raw == nil {
		return unacknowledged{}
	}
	return e.raw.unacknowledged()
}

// unacknowledged describes data that the peer's host has not acknowledged.
type unacknowledged struct {
	some   bool          // there is such data
	silent time.Duration // since the last acknowledgement, whatever it was for
	tries  int           // retransmissions or probes in a row without an answer
}
