package daemon

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/config"
)

// controlListener is the control socket. The config in force bounds the number and time of its
// connections.
type controlListener struct {
	*boundedListener
	timeout atomic.Int64 // a time.Duration
}

func newControlListener(l net.Listener, limits config.Limits) *controlListener {
	c := &controlListener{boundedListener: newBoundedListener(l, limits.ControlRequests)}
	c.limit(limits)
	return c
}

// limit changes the limits of connections to come.
func (l *controlListener) limit(limits config.Limits) {
	l.resize(limits.ControlRequests)
	l.timeout.Store(int64(limits.ControlTimeout))
}

func (l *controlListener) Accept() (net.Conn, error) {
	conn, err := l.accept()
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(l.timeout.Load())
	c := &controlConn{boundedConn: conn, read: time.Now().Add(timeout)}
	// An answer has as much time again: a profile takes 30 s.
	if err := errors.Join(c.SetReadDeadline(c.read),
		c.SetWriteDeadline(c.read.Add(timeout))); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// controlConn is a connection for one request.
type controlConn struct {
	*boundedConn
	read time.Time // when the request must have been read
}

// SetReadDeadline sets a deadline, the connection's own at the latest. The HTTP server sets none
// (zero).
func (c *controlConn) SetReadDeadline(t time.Time) error {
	if t.IsZero() || t.After(c.read) {
		t = c.read
	}
	return c.boundedConn.SetReadDeadline(t)
}

// boundedListener bounds how many connections are open at a time. Others wait in its queue.
type boundedListener struct {
	net.Listener
	mu     sync.Mutex
	change sync.Cond // signalled when the fields below change
	most   int
	open   int
	closed bool
}

func newBoundedListener(l net.Listener, n int) *boundedListener {
	b := &boundedListener{Listener: l, most: n}
	b.change.L = &b.mu
	return b
}

// resize changes the bound. Open connections stay.
func (l *boundedListener) resize(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most = n
	l.change.Broadcast()
}

// enter waits for room and takes it. It returns false once the listener is closed.
func (l *boundedListener) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open >= l.most && !l.closed {
		l.change.Wait()
	}
	if l.closed {
		return false
	}
	l.open++
	return true
}

func (l *boundedListener) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	l.change.Broadcast()
}

func (l *boundedListener) Accept() (net.Conn, error) {
	conn, err := l.accept()
	if err != nil {
		return nil, err // an untyped nil
	}
	return conn, nil
}

func (l *boundedListener) accept() (*boundedConn, error) {
	if !l.enter() {
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		l.leave()
		return nil, err
	}
	return &boundedConn{Conn: conn, leave: sync.OnceFunc(l.leave)}, nil
}

func (l *boundedListener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.change.Broadcast()
	l.mu.Unlock()
	return l.Listener.Close()
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
