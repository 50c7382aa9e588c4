package session

import (
	"io"
	"time"
)

// A Conn is the TCP side of a session: P1 at the client, P5 at the server, as a
// *net.TCPConn, a *net.UnixConn or anything else that can be half-closed. The
// session owns it and closes it.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// lingerer is the part of *net.TCPConn that makes its Close a reset (0) or not
// (-1).
type lingerer interface {
	SetLinger(seconds int) error
}

// tryWriter is a Conn that can write what fits without waiting.
type tryWriter interface {
	TryWrite(p []byte) (int, error)
}

// watched is a Conn that tells, without a read, whether its peer is gone.
type watched interface {
	// Gone returns why the peer is gone, nil if it isn't or that can't be told.
	Gone() error
	// AwaitGone waits until it is, or until the Conn is closed; then it returns nil.
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

// abort closes e so that its peer sees a reset, where it can do that.
func abort(e *tcpSide) {
	setLinger(e.Conn, 0)
	_ = e.Close()
}

func setLinger(c Conn, seconds int) {
	if l, ok := c.(lingerer); ok {
		_ = l.SetLinger(seconds)
	}
}

// A tcpSide is a Conn with what the session needs beyond io: to wait for data
// without holding a buffer, and to write without waiting.
type tcpSide struct {
	Conn
	raw *rawEnd // nil where the Conn has no file descriptor that can be used
}

// newTCPSide makes a tcpSide of c. From now on c is reset if this process dies: the
// kernel would close it in good order, and what has been cut off would look
// complete.
func newTCPSide(c Conn) *tcpSide {
	setLinger(c, 0)
	return &tcpSide{Conn: c, raw: newRawEnd(c)}
}

// read waits for data, calls reserve for the memory to put it in, and reads.
// Where the Conn allows it, nothing is reserved while it waits: a reservation
// that turns out to be early is taken back with cancel.
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

// tryRead reads what is there, without waiting, which may be nothing. An end or
// an error is for the next read to find.
func (e *tcpSide) tryRead(reserve func() []byte, cancel func()) int {
	if e.raw != nil {
		return e.raw.tryRead(reserve, cancel)
	}
	return 0
}

// tryWrite writes what fits without waiting, which may be nothing.
func (e *tcpSide) tryWrite(p []byte) (int, error) {
	if e.raw != nil {
		return e.raw.tryWrite(p)
	}
	if w, ok := e.Conn.(tryWriter); ok {
		return w.TryWrite(p)
	}
	return 0, nil
}

// resetError tells, without reading, whether the peer has reset the connection;
// nil where that can't be told.
func (e *tcpSide) resetError() error {
	if e.raw == nil {
		return nil
	}
	return e.raw.resetError()
}

// gone tells why the peer, which has ended its half, neither reads nor writes any more;
// nil if it may, or where that can't be told.
func (e *tcpSide) gone() error {
	if e.raw != nil {
		return e.raw.gone()
	}
	if w, ok := e.Conn.(watched); ok {
		return w.Gone()
	}
	return nil
}

// awaitGone waits until gone has something to tell, and returns that, or until the Conn is
// closed. Nobody may read meanwhile. Where it can't wait for that, ok is false.
func (e *tcpSide) awaitGone() (why error, ok bool) {
	if e.raw != nil {
		return e.raw.awaitGone(), true
	}
	if w, ok := e.Conn.(watched); ok {
		return w.AwaitGone(), true
	}
	return nil, false
}

// unacknowledged tells what the kernel knows of the data that it holds for the peer: the
// zero value where it holds none, or where that can't be told.
func (e *tcpSide) unacknowledged() unacknowledged {
	if e.raw == nil {
		return unacknowledged{}
	}
	return e.raw.unacknowledged()
}

// unacknowledged tells of data that the peer's host has not acknowledged.
type unacknowledged struct {
	some   bool
	silent time.Duration // since the last acknowledgement, whatever it was for
	tries  int           // in a row that were not answered
}
