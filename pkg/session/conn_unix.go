//go:build unix

package session

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/nowait"
)

// A rawEnd reads and writes a socket by its descriptor. The functions for the runtime's poller are
// made once, so that a read allocates nothing. One goroutine may read while another one writes.
type rawEnd struct {
	conn syscall.RawConn

	reserve func() []byte
	cancel  func()
	readN   int
	readErr error
	onRead  func(fd uintptr) bool

	out      []byte
	writeN   int
	writeErr error
	onWrite  func(fd uintptr) bool

	kept *keeper // of a Unix socket, if the system can do that; else nil
}

func newRawEnd(c Conn) *rawEnd {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	conn, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	// An urgent byte (MSG_OOB) stays in its place among the others, or a read would skip it.
	_ = conn.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
	e := &rawEnd{conn: conn}
	e.onRead, e.onWrite = e.readReady, e.writeReady
	if _, ok := c.(*net.UnixConn); ok {
		e.kept = newKeeper(conn)
	}
	return e
}

func (e *rawEnd) read(reserve func() []byte, cancel func()) (int, error) {
	e.reserve, e.cancel = reserve, cancel
	if err := e.conn.Read(e.onRead); err != nil {
		return 0, err
	}
	switch {
	case e.readErr != nil:
		return 0, os.NewSyscallError("read", e.readErr)
	case e.readN == 0:
		return 0, io.EOF
	}
	return e.readN, nil
}

func (e *rawEnd) tryRead(reserve func() []byte, cancel func()) int {
	e.reserve, e.cancel = reserve, cancel
	waited := e.conn.Read(func(fd uintptr) bool {
		e.readReady(fd)
		return true
	})
	if waited != nil || e.readErr != nil {
		return 0
	}
	return e.readN
}

// readReady is called by the poller when the socket may be readable. False asks for another call
// when it is.
func (e *rawEnd) readReady(fd uintptr) bool {
	p := e.reserve()
	for {
		if e.kept != nil {
			e.readN, e.readErr = e.kept.read(fd, p)
		} else {
			e.readN, e.readErr = nowait.Read(fd, p)
		}
		if !errors.Is(e.readErr, unix.EINTR) {
			break
		}
	}
	if e.readErr != nil || e.readN == 0 {
		e.cancel()
	}
	return !errors.Is(e.readErr, unix.EAGAIN)
}

func (e *rawEnd) tryWrite(p []byte) (int, error) {
	e.out = p
	err := e.conn.Write(e.onWrite)
	e.out = nil
	switch {
	case err != nil:
		return 0, err
	case errors.Is(e.writeErr, unix.EAGAIN):
		return 0, nil
	case e.writeErr != nil:
		return 0, os.NewSyscallError("write", e.writeErr)
	}
	return e.writeN, nil
}

func (e *rawEnd) writeReady(fd uintptr) bool {
	for {
		e.writeN, e.writeErr = nowait.Write(fd, e.out)
		if !errors.Is(e.writeErr, unix.EINTR) {
			return true
		}
	}
}

// letGo reads the byte that is kept, so that closing the socket is no reset.
func (e *rawEnd) letGo() {
	if e.kept != nil {
		_ = e.conn.Control(e.kept.letGo)
	}
}

// resetError returns and clears the socket's pending error, if it has one.
func (e *rawEnd) resetError() error {
	var pending error
	// Control fails if the socket is closed, which is no reset by the peer.
	_ = e.conn.Control(func(fd uintptr) { pending = socketError(fd) })
	return pending
}

func socketError(fd uintptr) error {
	if n, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); n > 0 {
		return os.NewSyscallError("read", syscall.Errno(n))
	}
	return nil
}

// awaitGone waits until the peer is gone, and returns why, or until the socket is closed.
func (e *rawEnd) awaitGone() (why error) {
	// Read fails if the socket is closed.
	_ = e.conn.Read(func(fd uintptr) bool {
		why = peerGone(fd)
		return why != nil
	})
	return why
}

func (e *rawEnd) gone() (why error) {
	_ = e.conn.Control(func(fd uintptr) { why = peerGone(fd) })
	return why
}
