//go:build unix

package session_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// A ring is one direction of a stream in memory that allocates nothing, so that what
// is measured is the session.
type ring struct {
	mu         sync.Mutex
	cond       sync.Cond
	b          []byte
	from, used int
	eof        bool
	err        error
	readBy     time.Time
	writeBy    time.Time
}

func newRing(capacity int) *ring {
	r := &ring{b: make([]byte, capacity)}
	r.cond.L = &r.mu
	return r
}

func (r *ring) read(p []byte, take bool) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.used == 0 {
		switch {
		case r.err != nil:
			return 0, r.err
		case r.eof:
			return 0, io.EOF
		case !r.readBy.IsZero() && !time.Now().Before(r.readBy):
			return 0, os.ErrDeadlineExceeded
		}
		r.cond.Wait()
	}
	n := min(len(p), r.used)
	m := copy(p[:n], r.b[r.from:])
	copy(p[m:n], r.b)
	if take {
		r.from, r.used = (r.from+n)%len(r.b), r.used-n
		r.cond.Broadcast()
	}
	return n, nil
}

func (r *ring) write(p []byte, wait bool) (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !wait && len(p) > len(r.b)-r.used {
		return 0, nil
	}
	for n < len(p) {
		switch {
		case r.err != nil:
			return n, r.err
		case !r.writeBy.IsZero() && !time.Now().Before(r.writeBy):
			return n, os.ErrDeadlineExceeded
		case r.used == len(r.b):
			r.cond.Wait()
			continue
		}
		at := (r.from + r.used) % len(r.b)
		end := len(r.b)
		if at < r.from {
			end = r.from
		}
		m := copy(r.b[at:end], p[n:])
		r.used += m
		n += m
		r.cond.Broadcast()
	}
	return n, nil
}

func (r *ring) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
	r.cond.Broadcast()
}

// ringStream is a wire.Stream of two rings. It knows no deadlines but those
// that have passed.
type ringStream struct{ in, out *ring }

func ringPair(capacity int) (a, b *ringStream) {
	x, y := newRing(capacity), newRing(capacity)
	return &ringStream{x, y}, &ringStream{y, x}
}

func (s *ringStream) Read(p []byte) (int, error)  { return s.in.read(p, true) }
func (s *ringStream) Peek(p []byte) (int, error)  { return s.in.read(p, false) }
func (s *ringStream) Write(p []byte) (int, error) { return s.out.write(p, true) }
func (s *ringStream) TryWrite(p []byte) (bool, error) {
	n, err := s.out.write(p, false)
	return n == len(p), err
}

func (s *ringStream) CloseWrite() error {
	s.out.set(func() { s.out.eof = true })
	return nil
}

func (s *ringStream) WriteLater(p []byte) { _, _ = s.Write(p) }

func (s *ringStream) Finish(p []byte) error {
	_, _ = s.Write(p)
	return s.CloseWrite()
}

func (s *ringStream) CancelRead(code wire.StreamCode) {
	s.in.set(func() { s.in.err = &wire.ResetError{Code: code, Remote: true} })
}

func (s *ringStream) CancelWrite(code wire.StreamCode) {
	s.out.set(func() { s.out.err = &wire.ResetError{Code: code, Remote: true} })
}

func (s *ringStream) Reset(code wire.StreamCode) { s.CancelRead(code); s.CancelWrite(code) }
func (s *ringStream) Context() context.Context   { panic("a session asks for no context") }

func (s *ringStream) SetReadDeadline(t time.Time) error {
	s.in.set(func() { s.in.readBy = t })
	return nil
}

func (s *ringStream) SetWriteDeadline(t time.Time) error {
	s.out.set(func() { s.out.writeBy = t })
	return nil
}

// A chain is P1 and P5 over real sockets, and what is between them.
type chain struct{ p1, p5 *net.TCPConn }

// oneRoute is a Router of one link without a relay.
type oneRoute struct {
	server   *session.Server
	capacity int // of its streams, each way
	all      sync.WaitGroup
}

func (r *oneRoute) Changed() <-chan struct{} { return nil }
func (r *oneRoute) Routes(string) []session.Route {
	return []session.Route{{Link: r, Relay: "relay", Shared: true, Open: func(tip *wire.Connect, data []byte) (wire.Stream, error) {
		a, b := ringPair(r.capacity)
		m, _, err := wire.Parse(tip.Inner)
		if err != nil {
			return nil, err
		}
		r.all.Go(func() { serve(r.server, "laptop", m, b, &session.Route{Link: r, Relay: "relay", Shared: true}) })
		_, err = a.Write(data)
		return a, err
	}}}
}

// overSession carries a connection by a session.
func overSession(t testing.TB) chain {
	p1, p2 := socketPair(t)
	p4, p5 := socketPair(t)
	router := &oneRoute{capacity: 512 << 10}
	router.server = session.NewServer(session.ServerConfig{
		Node: "nas",
		Decide: func(string, string) (session.Dial, *session.Refusal) {
			return func(context.Context) (session.Conn, error) { return p4, nil }, nil
		},
	})
	client := session.NewClient(session.ClientConfig{Router: router})
	stopServer, stopClient := running(router.server.Run), running(client.Run)
	var all sync.WaitGroup
	all.Go(func() {
		client.Forward(context.Background(), p2, &session.Request{
			Server: "nas", Target: ":22", Source: "x", ResumeTimeout: time.Minute,
		})
	})
	t.Cleanup(func() {
		_ = p1.Close()
		_ = p5.Close()
		all.Wait()
		stopClient()
		stopServer()
		router.all.Wait()
	})
	return chain{p1, p5}
}

// overCopy carries a connection by plain copying over the same streams: what
// there would be without sessions.
func overCopy(t testing.TB) chain {
	p1, p2 := socketPair(t)
	p4, p5 := socketPair(t)
	a, b := ringPair(512 << 10)
	var all sync.WaitGroup
	pump := func(from io.Reader, to io.Writer, end func() error) {
		p := make([]byte, 64<<10)
		for {
			n, err := from.Read(p)
			if n > 0 {
				if _, err := to.Write(p[:n]); err != nil {
					return
				}
			}
			if err != nil {
				_ = end()
				return
			}
		}
	}
	all.Go(func() { pump(p2, a, a.CloseWrite) })
	all.Go(func() { pump(b, p4, p4.CloseWrite) })
	all.Go(func() { pump(p4, b, b.CloseWrite) })
	all.Go(func() { pump(a, p2, p2.CloseWrite) })
	t.Cleanup(func() {
		_ = p1.Close()
		_ = p5.Close()
		all.Wait()
	})
	return chain{p1, p5}
}

// processorTime is what this process has used so far.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSession carries bulk one way, bulk both ways, and requests with their
// responses, between two sockets: by a session, and by plain copying. Beside the
// throughput it tells the processor's time, both processes and the kernel's
// part included.
func BenchmarkSession(b *testing.B) {
	for _, by := range []struct {
		name string
		make func(testing.TB) chain
	}{{"copy", overCopy}, {"session", overSession}} {
		for _, size := range []int{1 << 10, 16 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("bulk-%d/%s", size, by.name), func(b *testing.B) {
				c := by.make(b)
				p := make([]byte, size)
				b.SetBytes(int64(size))
				measured(b, func() {
					var all sync.WaitGroup
					all.Go(func() { _, _ = io.CopyN(io.Discard, c.p5, int64(b.N)*int64(size)) })
					for range b.N {
						_, _ = c.p1.Write(p)
					}
					all.Wait()
				})
			})
		}
		b.Run("request-response/"+by.name, func(b *testing.B) {
			c := by.make(b)
			p := make([]byte, 100)
			measured(b, func() {
				for range b.N {
					roundTrip(c.p1, c.p5, p)
					roundTrip(c.p5, c.p1, p)
				}
			})
		})
	}
}

// BenchmarkOpen opens a connection, sends a byte each way and ends it. It measures what a session
// costs at both of its ends, without making the sockets.
func BenchmarkOpen(b *testing.B) {
	const batch = 32
	dials := make(chan session.Conn, batch)
	router := &oneRoute{capacity: 4 << 10}
	router.server = session.NewServer(session.ServerConfig{
		Node: "nas",
		Decide: func(string, string) (session.Dial, *session.Refusal) {
			return func(context.Context) (session.Conn, error) { return <-dials, nil }, nil
		},
	})
	client := session.NewClient(session.ClientConfig{Router: router})
	stopServer, stopClient := running(router.server.Run), running(client.Run)
	defer stopServer()
	defer stopClient()
	defer router.all.Wait()
	type ends struct{ p1, p2, p5 *net.TCPConn }
	var ready []ends
	open := func(e ends) {
		var whole sync.WaitGroup
		whole.Go(func() {
			client.Forward(context.Background(), e.p2, &session.Request{
				Server: "nas", Target: ":22", Source: "x", ResumeTimeout: time.Minute,
			})
		})
		p := []byte{1}
		roundTrip(e.p1, e.p5, p)
		roundTrip(e.p5, e.p1, p)
		_ = e.p1.Close()
		_, _ = e.p5.Read(p)
		_ = e.p5.Close()
		whole.Wait()
	}
	b.ReportAllocs()
	for range b.N {
		if len(ready) == 0 {
			b.StopTimer()
			for range batch {
				p1, p2 := socketPair(b)
				p4, p5 := socketPair(b)
				dials <- p4
				ready = append(ready, ends{p1, p2, p5})
			}
			b.StartTimer()
		}
		open(ready[0])
		ready = ready[1:]
	}
}

func measured(b *testing.B, run func()) {
	b.Helper()
	b.ReportAllocs()
	b.ResetTimer()
	begun := processorTime()
	run()
	b.ReportMetric(float64(processorTime()-begun)/float64(b.N), "cpu-ns/op")
}

// roundTrip sends p from one end to the other.
func roundTrip(from, to *net.TCPConn, p []byte) {
	_, _ = from.Write(p)
	_, _ = io.ReadFull(to, p)
}

// TestAllocations carries data of all sizes and allocates nothing for it.
func TestAllocations(t *testing.T) {
	if testutil.Raced {
		t.Skip("the race detector makes pools forget")
	}
	for _, size := range []int{10, 3000, 64 << 10, 1 << 20} {
		c := overSession(t)
		sent, got := make([]byte, size), make([]byte, size)
		next := make(chan struct{})
		var writer sync.WaitGroup
		writer.Go(func() {
			for range next {
				_, _ = c.p1.Write(sent)
			}
		})
		if n := testing.AllocsPerRun(300, func() {
			next <- struct{}{}
			_, _ = io.ReadFull(c.p5, got)
		}); n > float64(size/(64<<10)/8) {
			t.Errorf("%d bytes: %v allocations", size, n)
		}
		close(next)
		writer.Wait()
	}
}
