package session_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// A half is one direction of an in-memory stream or connection: bounded,
// ordered, and breakable.
type half struct {
	mu       sync.Mutex
	cond     sync.Cond
	data     []byte
	capacity int
	eof      bool
	err      error // readers and writers get it, once data is... at once
	readErr  error
	readBy   deadline
	writeBy  deadline
	passed   int // bytes that were written in all
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func newHalf(capacity int) *half {
	h := &half{capacity: capacity}
	h.cond.L = &h.mu
	return h
}

func (h *half) setDeadline(d *deadline, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = at
	if wait := time.Until(at); !at.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.cond.Broadcast()
		})
	}
	h.cond.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (h *half) read(p []byte, peek bool) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.err != nil:
			return 0, h.err
		case h.readErr != nil:
			return 0, h.readErr
		case h.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case len(h.data) > 0:
			n := copy(p, h.data)
			if !peek {
				h.data = h.data[n:]
				h.cond.Broadcast()
			}
			return n, nil
		case h.eof:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (h *half) write(p []byte, wait bool) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		room := h.capacity - len(h.data)
		switch {
		case h.err != nil:
			return n, h.err
		case h.eof:
			return n, errors.New("written to after its end")
		case h.writeBy.passed():
			return n, os.ErrDeadlineExceeded
		case room > 0:
			m := min(room, len(p))
			h.data = append(h.data, p[:m]...)
			n, p = n+m, p[m:]
			h.passed += m
			h.cond.Broadcast()
			continue
		case !wait:
			return n, nil
		}
		h.cond.Wait()
	}
	return n, nil
}

func (h *half) closeWrite() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.eof = true
	h.cond.Broadcast()
}

func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.err = err
		h.data = nil
	}
	h.cond.Broadcast()
}

func (h *half) ended() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err != nil || h.eof && len(h.data) == 0
}

// memStream is a session.Stream in memory.
type memStream struct {
	in, out *half
	network *network
}

func streamPair(capacity int, n *network) (a, b *memStream) {
	x, y := newHalf(capacity), newHalf(capacity)
	return &memStream{x, y, n}, &memStream{y, x, n}
}

func (s *memStream) Read(p []byte) (int, error) { return s.in.read(p, false) }
func (s *memStream) Peek(p []byte) (int, error) { return s.in.read(p, true) }
func (s *memStream) Write(p []byte) (int, error) {
	if s.network == nil {
		return s.out.write(p, true)
	}
	s.network.mu.Lock()
	delay := s.network.delay
	var wait time.Duration
	if delay != nil {
		wait = delay()
	}
	s.network.mu.Unlock()
	time.Sleep(wait)
	// With a network the stream may be cut in the middle of a write.
	for n := 0; ; {
		m, cut := s.network.allow(len(p) - n)
		k, err := s.out.write(p[n:n+m], true)
		n += k
		if err != nil || n == len(p) && !cut {
			return n, err
		}
		if cut {
			s.network.cut()
			return n, &wire.ResetError{Code: wire.CodeLost}
		}
	}
}

func (s *memStream) TryWrite(p []byte) (bool, error) {
	s.out.mu.Lock()
	room := s.out.capacity - len(s.out.data)
	s.out.mu.Unlock()
	if room < len(p) {
		return false, nil
	}
	_, err := s.Write(p)
	return err == nil, err
}
func (s *memStream) CloseWrite() error { s.out.closeWrite(); return nil }
func (s *memStream) CancelRead(code wire.StreamCode) {
	if !s.in.ended() {
		s.in.fail(&wire.ResetError{Code: code, Remote: true})
	}
}

func (s *memStream) Reset(code wire.StreamCode) {
	s.in.fail(&wire.ResetError{Code: code, Remote: true})
	s.out.fail(&wire.ResetError{Code: code, Remote: true})
}
func (s *memStream) SetReadDeadline(t time.Time) error { s.in.setDeadline(&s.in.readBy, t); return nil }
func (s *memStream) SetWriteDeadline(t time.Time) error {
	s.out.setDeadline(&s.out.writeBy, t)
	return nil
}
func (s *memStream) lose() {
	s.in.fail(&wire.ResetError{Code: wire.CodeLost})
	s.out.fail(&wire.ResetError{Code: wire.CodeLost})
}

// memConn is a TCP connection in memory.
type memConn struct {
	in, out *half
	linger  bool
}

func connPair(capacity int) (a, b *memConn) {
	x, y := newHalf(capacity), newHalf(capacity)
	return &memConn{in: x, out: y}, &memConn{in: y, out: x}
}

var errReset = errors.New("connection reset by peer")

func (c *memConn) Read(p []byte) (int, error)     { return c.in.read(p, false) }
func (c *memConn) Write(p []byte) (int, error)    { return c.out.write(p, true) }
func (c *memConn) TryWrite(p []byte) (int, error) { return c.out.write(p, false) }
func (c *memConn) CloseWrite() error              { c.out.closeWrite(); return nil }
func (c *memConn) SetLinger(int) error            { c.linger = true; return nil }
func (c *memConn) Close() error {
	if c.linger {
		c.in.fail(errReset)
		c.out.fail(errReset)
		return nil
	}
	c.out.closeWrite()
	c.in.mu.Lock()
	if c.in.readErr == nil {
		c.in.readErr = os.ErrClosed
	}
	c.in.cond.Broadcast()
	c.in.mu.Unlock()
	return nil
}

func (c *memConn) reset() { _ = c.SetLinger(0); _ = c.Close() }

// A network joins one client and one server by links that can be cut.
type network struct {
	t        testing.TB
	client   *session.Client
	server   *session.Server
	capacity int
	dial     func(context.Context) (session.Conn, error)
	ended    []session.Summary

	mu      sync.Mutex
	links   []*memLink
	changed chan struct{}
	streams map[*memStream]struct{}
	budget  int // bytes until the next cut; negative for none
	open    func(n *network, inner []byte) error
	serving sync.WaitGroup
	delay   func() time.Duration // before each write to a stream
}

type memLink struct{ name string }

func (n *network) Routes() []session.Route {
	n.mu.Lock()
	defer n.mu.Unlock()
	var rs []session.Route
	for _, l := range n.links {
		rs = append(rs, session.Route{Link: l, Relay: l.name, RTT: time.Millisecond, Open: n.opener(l)})
	}
	return rs
}

func (n *network) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *network) opener(l *memLink) func(string, []byte, []byte) (session.Stream, error) {
	return func(_ string, inner, data []byte) (session.Stream, error) {
		n.mu.Lock()
		open := n.open
		n.mu.Unlock()
		if open != nil {
			if err := open(n, inner); err != nil {
				return nil, err
			}
		}
		a, b := streamPair(n.capacity, n)
		n.mu.Lock()
		n.streams[a] = struct{}{}
		n.mu.Unlock()
		m, _, err := wire.Parse(inner)
		if err != nil {
			n.t.Errorf("inner tip: %v", err)
		}
		n.serving.Go(func() { n.server.Serve("laptop", m, b, session.Route{Link: l, Relay: l.name}) })
		if len(data) > 0 {
			if _, err := a.Write(data); err != nil {
				return nil, err
			}
		}
		return a, nil
	}
}

// allow takes n bytes of what may pass before the next cut.
func (n *network) allow(want int) (int, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.budget < 0 || want < n.budget {
		if n.budget >= 0 {
			n.budget -= want
		}
		return want, false
	}
	got := n.budget
	n.budget = -1
	return got, true
}

// cut loses every stream.
func (n *network) cut() {
	n.mu.Lock()
	streams := n.streams
	n.streams = make(map[*memStream]struct{})
	n.mu.Unlock()
	for s := range streams {
		s.lose()
	}
}

func (n *network) setLinks(names ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = nil
	for _, name := range names {
		n.links = append(n.links, &memLink{name})
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// start makes a client and a server; they are stopped when the test ends, and
// all that they had must be gone by then.
func start(t testing.TB, limits session.Limits) *network {
	n := &network{
		t: t, capacity: 256 << 10, budget: -1,
		changed: make(chan struct{}), streams: make(map[*memStream]struct{}),
	}
	n.setLinks("relay")
	n.server = session.NewServer(session.ServerConfig{
		Node: "nas",
		Decide: func(_, target string) (session.Dial, *session.Refusal) {
			if target != ":22" {
				return nil, &session.Refusal{Status: wire.StatusNotAllowed, Text: "no service"}
			}
			n.mu.Lock()
			defer n.mu.Unlock()
			return n.dial, nil
		},
		Ended: func(s session.Summary) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.ended = append(n.ended, s)
		},
		Limits: limits,
	})
	n.client = session.NewClient(session.ClientConfig{Router: n, Limits: limits})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = n.client.Run(ctx) })
	running.Go(func() { _ = n.server.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
		n.serving.Wait()
		for _, m := range []session.Memory{n.client.Memory(), n.server.Memory()} {
			if m.Promised != 0 || m.Retained != 0 {
				t.Errorf("memory is left: %+v", m)
			}
		}
	})
	return n
}

// forward opens a connection through the network. It returns P1's end and, when
// P4 has dialled, P5's through the channel.
func (n *network) forward() (p1 *memConn, p5 <-chan *memConn, done <-chan session.Summary) {
	accepted := make(chan *memConn, 1)
	p1, done = n.forwardTo(func(context.Context) (session.Conn, error) {
		ours, theirs := connPair(64 << 10)
		accepted <- theirs
		return ours, nil
	})
	return p1, accepted, done
}

// forwardTo is forward with a dial of the caller's own.
func (n *network) forwardTo(dial func(context.Context) (session.Conn, error)) (p1 *memConn, done <-chan session.Summary) {
	n.mu.Lock()
	n.dial = dial
	n.mu.Unlock()
	p1, p2 := connPair(64 << 10)
	ended := make(chan session.Summary, 1)
	go func() {
		ended <- n.client.Forward(context.Background(), p2, session.Request{
			Mapping: "m", Server: "nas", Target: ":22", Source: "127.0.0.1:5000", ResumeTimeout: time.Minute,
		})
	}()
	return p1, ended
}

// pattern is data in which every place is recognisable.
func pattern(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

// exchange sends want over from and checks that it arrives whole at to, with
// its end.
func exchange(from, to *memConn, want []byte) error {
	go func() {
		_, _ = from.Write(want)
		_ = from.CloseWrite()
	}()
	got, err := io.ReadAll(to)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("the bytes differ")
	}
	return nil
}
