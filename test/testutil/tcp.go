package testutil

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// capacity is what one direction of a connection holds, in bytes, as a socket's buffers do.
const capacity = 64 << 10

// Conn is one end of a connection. It is a net.Conn with what *net.TCPConn has
// for half-closing and resetting.
type Conn struct {
	pair          *pair
	in, out       *half
	local, remote net.Addr
	linger        bool // Close resets
}

// A pair is a connection: both halves have one lock.
type pair struct {
	mu   sync.Mutex
	cond sync.Cond
}

// A half is one direction.
type half struct {
	data            []byte
	eof             bool  // the writer has ended it
	closed          bool  // the reader has closed its end
	err             error // the connection was reset
	readBy, writeBy time.Time
}

// ports are the ephemeral ones, of all connections.
var ports atomic.Uint32

// Pair makes a connection. The first end is the one that dialled address.
func Pair(address string) (dialled, accepted *Conn) {
	p := new(pair)
	p.cond.L = &p.mu
	forth, back := new(half), new(half)
	from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(32768+ports.Add(1)%28000)))
	to := name(address)
	return &Conn{pair: p, in: back, out: forth, local: from, remote: to},
		&Conn{pair: p, in: forth, out: back, local: to, remote: from}
}

// name is an address of any form.
type name string

func (name) Network() string  { return "tcp" }
func (n name) String() string { return string(n) }

// Read waits for data, the end, a reset or the deadline.
func (c *Conn) Read(p []byte) (int, error) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for {
		switch {
		case c.in.err != nil:
			return 0, c.in.err
		case c.in.closed:
			return 0, net.ErrClosed
		case passed(c.in.readBy):
			return 0, os.ErrDeadlineExceeded
		case len(c.in.data) > 0:
			n := copy(p, c.in.data)
			c.in.data = c.in.data[n:]
			c.pair.cond.Broadcast()
			return n, nil
		case c.in.eof:
			return 0, io.EOF
		}
		c.pair.cond.Wait()
	}
}

// Write waits until all of p is in the other end's buffer.
func (c *Conn) Write(p []byte) (int, error) { return c.write(p, true) }

// TryWrite writes what fits without waiting.
func (c *Conn) TryWrite(p []byte) (int, error) { return c.write(p, false) }

func (c *Conn) write(p []byte, wait bool) (n int, err error) {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	for len(p) > 0 {
		switch room := capacity - len(c.out.data); {
		case c.out.err != nil:
			return n, c.out.err
		case c.out.eof:
			return n, net.ErrClosed
		case c.out.closed:
			return n, syscall.ECONNRESET
		case passed(c.out.writeBy):
			return n, os.ErrDeadlineExceeded
		case room > 0:
			m := min(room, len(p))
			c.out.data = append(c.out.data, p[:m]...)
			n, p = n+m, p[m:]
			c.pair.cond.Broadcast()
		case !wait:
			return n, nil
		default:
			c.pair.cond.Wait()
		}
	}
	return n, nil
}

// CloseWrite ends the direction to the other end.
func (c *Conn) CloseWrite() error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.out.err != nil {
		return c.out.err
	}
	c.out.eof = true
	c.pair.cond.Broadcast()
	return nil
}

// SetLinger makes Close a reset when seconds is 0.
func (c *Conn) SetLinger(seconds int) error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	c.linger = seconds == 0
	return nil
}

// Close ends both directions; the other end reads what was written, unless
// SetLinger(0) was called or this end leaves data unread: then it sees a reset.
func (c *Conn) Close() error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	if c.in.closed {
		return net.ErrClosed
	}
	if c.linger || len(c.in.data) > 0 {
		c.out.err = syscall.ECONNRESET
		c.in.err = syscall.ECONNRESET
	}
	c.out.eof, c.in.closed = true, true
	c.pair.cond.Broadcast()
	return nil
}

// Reset closes the connection so that the other end sees a reset.
func (c *Conn) Reset() {
	_ = c.SetLinger(0)
	_ = c.Close()
}

// LocalAddr is this end's address.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the other end's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline makes reads fail from t on.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.in.readBy, t) }

// SetWriteDeadline makes writes fail from t on.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.out.writeBy, t) }

func (c *Conn) setDeadline(which *time.Time, t time.Time) error {
	c.pair.mu.Lock()
	defer c.pair.mu.Unlock()
	*which = t
	c.pair.cond.Broadcast()
	if !t.IsZero() {
		time.AfterFunc(time.Until(t), func() {
			c.pair.mu.Lock()
			defer c.pair.mu.Unlock()
			c.pair.cond.Broadcast()
		})
	}
	return nil
}

func passed(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }

// Listener is where connections are accepted. Its methods may be called from any goroutine.
type Listener struct {
	address string
	queue   chan any // *Conn, or an error that an Accept fails with
	closed  chan struct{}
	once    sync.Once
}

// Listen makes a listener. Its address is only a name.
func Listen(address string) *Listener {
	return &Listener{address: address, queue: make(chan any, 128), closed: make(chan struct{})}
}

// Accept returns the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	case next := <-l.queue:
		if err, ok := next.(error); ok {
			return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: err}
		}
		conn, ok := next.(*Conn)
		if !ok {
			panic(fmt.Sprintf("internal error: a %T in the queue", next))
		}
		return conn, nil
	}
}

// Dial connects to the listener; it needn't have been accepted when Dial returns.
func (l *Listener) Dial(ctx context.Context) (*Conn, error) {
	dialled, accepted := Pair(l.address)
	select {
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: l.Addr(), Err: syscall.ECONNREFUSED}
	default:
	}
	select {
	case l.queue <- accepted:
		return dialled, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Fail makes an Accept fail, after those that succeed with what is queued already.
func (l *Listener) Fail(err error) { l.queue <- err }

// Close ends the listener. Connections that were not accepted are reset.
func (l *Listener) Close() error {
	first := false
	l.once.Do(func() { first = true })
	if !first {
		return net.ErrClosed
	}
	close(l.closed)
	for {
		select {
		case next := <-l.queue:
			if conn, ok := next.(*Conn); ok {
				conn.Reset()
			}
		default:
			return nil
		}
	}
}

// Addr is the listener's name.
func (l *Listener) Addr() net.Addr { return name(l.address) }
