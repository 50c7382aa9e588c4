package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/budget"
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
	eofAt    time.Time // when the reader can see it
	readErr  error     // what the reader gets, at once
	writeErr error     // what the writer gets
	readBy   deadline
	writeBy  deadline
	silent   bool // nothing arrives any more, and nobody is told

	latency  time.Duration // from Write to Read
	arrivals []arrival
	written  int // bytes in all
	taken    int
}

// An arrival is when the bytes before an offset can be read.
type arrival struct {
	before int
	at     time.Time
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

func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cond.Broadcast()
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
		d.timer = time.AfterFunc(wait, h.wake)
	}
	h.cond.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// readyLocked is how much of data has arrived.
func (h *half) readyLocked() int {
	if h.silent {
		return 0
	}
	if h.latency == 0 {
		return len(h.data)
	}
	now := time.Now()
	for len(h.arrivals) > 0 && !now.Before(h.arrivals[0].at) {
		if len(h.arrivals) > 1 && !now.Before(h.arrivals[1].at) {
			h.arrivals = h.arrivals[1:]
			continue
		}
		return h.arrivals[0].before - h.taken
	}
	return 0
}

func (h *half) read(p []byte, peek bool) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		ready := h.readyLocked()
		switch {
		case h.readErr != nil:
			return 0, h.readErr
		case h.readBy.passed():
			return 0, os.ErrDeadlineExceeded
		case ready > 0:
			n := copy(p, h.data[:ready])
			if !peek {
				h.data = h.data[n:]
				h.taken += n
				h.cond.Broadcast()
			}
			return n, nil
		case h.eof && !h.silent && len(h.data) == 0 && !time.Now().Before(h.eofAt):
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

// write writes p, or what fits if it isn't to wait. A deadline is for who waits.
func (h *half) write(p []byte, wait bool) (n int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(p) > 0 {
		room := h.capacity - len(h.data)
		switch {
		case h.writeErr != nil:
			return n, h.writeErr
		case h.eof:
			return n, errors.New("written to after its end")
		case wait && h.writeBy.passed():
			return n, os.ErrDeadlineExceeded
		case room > 0:
			m := min(room, len(p))
			h.data = append(h.data, p[:m]...)
			n, p = n+m, p[m:]
			h.written += m
			if h.latency > 0 {
				h.arrivals = append(h.arrivals, arrival{h.written, time.Now().Add(h.latency)})
				time.AfterFunc(h.latency, h.wake)
			}
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
	if !h.eof && h.latency > 0 {
		h.eofAt = time.Now().Add(h.latency)
		time.AfterFunc(h.latency, h.wake)
	}
	h.eof = true
	h.cond.Broadcast()
}

// fail ends the half at once, with an error for each side; nil for none. The
// first one stays.
func (h *half) fail(readErr, writeErr error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.readErr == nil {
		h.readErr = readErr
	}
	if h.writeErr == nil {
		h.writeErr = writeErr
	}
	h.cond.Broadcast()
}

// cancel is fail by one side of a stream: the other is told, unless the path is silent.
func (h *half) cancel(code wire.StreamCode, byReader bool) {
	h.mu.Lock()
	silent := h.silent
	over := h.eof && len(h.data) == 0 && !silent
	h.mu.Unlock()
	if over {
		return
	}
	var here, there error = &wire.ResetError{Code: code}, &wire.ResetError{Code: code, Remote: true}
	if silent {
		there = nil
	}
	if byReader {
		h.fail(here, there)
	} else {
		h.fail(there, here)
	}
}

func (h *half) setSilent() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.silent = true
}

// onTheWay is how many bytes were written and not read.
func (h *half) onTheWay() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.data)
}

// memStream is a wire.Stream in memory. It insists on what link.Stream asks
// of those who use it.
type memStream struct {
	in, out *half
	network *network
	link    *memLink

	reading, writing atomic.Int32
}

// alone complains if two goroutines are in one half of the stream at once.
func (s *memStream) alone(who *atomic.Int32, what string) (leave func()) {
	if who.Add(1) > 1 {
		panic("two goroutines " + what + " a stream at once")
	}
	return func() { who.Add(-1) }
}

func streamPair(capacity int, n *network) (a, b *memStream) {
	x, y := newHalf(capacity), newHalf(capacity)
	return &memStream{in: x, out: y, network: n}, &memStream{in: y, out: x, network: n}
}

func (s *memStream) Read(p []byte) (int, error) {
	defer s.alone(&s.reading, "read")()
	return s.in.read(p, false)
}

func (s *memStream) Peek(p []byte) (int, error) {
	defer s.alone(&s.reading, "read")()
	return s.in.read(p, true)
}

func (s *memStream) Write(p []byte) (int, error) {
	defer s.alone(&s.writing, "write")()
	return s.write(p, true)
}

func (s *memStream) write(p []byte, wait bool) (int, error) {
	if s.network == nil {
		return s.out.write(p, wait)
	}
	s.network.mu.Lock()
	delay := s.network.delay
	var before time.Duration
	if delay != nil {
		before = delay()
	}
	s.network.mu.Unlock()
	time.Sleep(before)
	// With a network the stream may be cut in the middle of a write.
	for n := 0; ; {
		m, cut := s.network.allow(len(p) - n)
		k, err := s.out.write(p[n:n+m], wait)
		n += k
		if err != nil || n == len(p) && !cut {
			return n, err
		}
		if cut {
			s.network.mu.Lock()
			atCut := s.network.atCut
			s.network.mu.Unlock()
			atCut(s)
			if s.broken() {
				return n, &wire.ResetError{Code: wire.CodeLost}
			}
			if n == len(p) {
				return n, nil
			}
		}
	}
}

func (s *memStream) broken() bool {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	return s.out.writeErr != nil
}

func (s *memStream) TryWrite(p []byte) (bool, error) {
	defer s.alone(&s.writing, "write")()
	s.out.mu.Lock()
	room := s.out.capacity - len(s.out.data)
	s.out.mu.Unlock()
	if room < len(p) {
		return false, nil
	}
	_, err := s.write(p, false)
	return err == nil, err
}

func (s *memStream) CloseWrite() error {
	defer s.alone(&s.writing, "write")()
	s.out.closeWrite()
	return nil
}

func (s *memStream) WriteLater(p []byte) { _, _ = s.Write(p) }

func (s *memStream) Finish(p []byte) error {
	_, _ = s.Write(p)
	return s.CloseWrite()
}

func (s *memStream) CancelRead(code wire.StreamCode)  { s.in.cancel(code, true) }
func (s *memStream) CancelWrite(code wire.StreamCode) { s.out.cancel(code, false) }
func (s *memStream) Reset(code wire.StreamCode)       { s.CancelRead(code); s.CancelWrite(code) }
func (s *memStream) Context() context.Context         { panic("a session asks for no context") }

func (s *memStream) SetReadDeadline(t time.Time) error { s.in.setDeadline(&s.in.readBy, t); return nil }

func (s *memStream) SetWriteDeadline(t time.Time) error {
	s.out.setDeadline(&s.out.writeBy, t)
	return nil
}

// lose ends the stream as the end of its link does.
func (s *memStream) lose() {
	lost := &wire.ResetError{Code: wire.CodeLost}
	s.in.fail(lost, lost)
	s.out.fail(lost, lost)
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

// connPairOf is a connection of which one end, outer, can write any amount at
// once, while only so much waits for it to be read.
func connPairOf(waiting int) (outer, inner *memConn) {
	x, y := newHalf(waiting), newHalf(100<<20)
	return &memConn{in: x, out: y}, &memConn{in: y, out: x}
}

func (c *memConn) SetReadDeadline(t time.Time) error { c.in.setDeadline(&c.in.readBy, t); return nil }

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

var errReset = errors.New("connection reset by peer")

func (c *memConn) Read(p []byte) (int, error)     { return c.in.read(p, false) }
func (c *memConn) Write(p []byte) (int, error)    { return c.out.write(p, true) }
func (c *memConn) TryWrite(p []byte) (int, error) { return c.out.write(p, false) }
func (c *memConn) CloseWrite() error              { c.out.closeWrite(); return nil }
func (c *memConn) SetLinger(seconds int) error    { c.linger = seconds == 0; return nil }
func (c *memConn) Close() error {
	if c.linger {
		c.in.fail(errReset, errReset)
		c.out.fail(errReset, errReset)
		return nil
	}
	c.out.closeWrite()
	c.in.fail(os.ErrClosed, errReset)
	return nil
}

func (c *memConn) ResetError() error {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return c.in.readErr
}

// Gone is nil while the other end may still read.
func (c *memConn) Gone() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	return c.out.writeErr
}

func (c *memConn) AwaitGone() error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	for c.out.writeErr == nil && !c.out.eof {
		c.out.cond.Wait()
	}
	return c.out.writeErr
}

func (c *memConn) reset() { _ = c.SetLinger(0); _ = c.Close() }

// serve hands a stream to the server, as the role does.
func serve(v *session.Server, client string, inner wire.Message, st wire.Stream, via *session.Route) {
	switch m := inner.(type) {
	case *wire.Open:
		v.Open(client, m, st, via)
	case *wire.Resume:
		v.Resume(client, m, st, via)
	}
}

// A network joins one client and one server by links that can be cut. It plays
// the relays, too: what they do is join streams.
type network struct {
	t        testing.TB
	client   *session.Client
	server   *session.Server
	capacity int // of a stream in each direction: bytes on their way
	conns    int // of P1's and P5's connections
	ended    []session.Summary
	hits     map[string]int    // of the server's limits; guarded by mu
	short    []budget.Shortage // at the server; guarded by mu

	stopClient, stopServer func()

	// strangers are the streams to the server "evil", for the test to play.
	strangers chan *peer

	mu      sync.Mutex
	dial    func(context.Context) (session.Conn, error)
	decide  func(client, target string) *session.Refusal // nil: whoever asks for :22 may
	relay   func(l *memLink, inner wire.Message) *wire.Reply
	links   []*memLink
	changed chan struct{}
	// unshared says that routes share no flow-control window. Nothing can be opened over
	// onlyResumes.
	unshared    bool
	onlyResumes *memLink
	streams     map[*memStream]struct{}
	cuts        []int // bytes until the next cut, and those after it
	passed      int   // bytes that were written to streams
	atCut       func(*memStream)
	delay       func() time.Duration // before each write to a stream
	serving     sync.WaitGroup
	overdue     func() time.Duration // of the links' heartbeats; nil: not known
}

// A memLink is a path from the client to the server through one relay.
type memLink struct {
	name    string
	latency time.Duration // one way
	hole    bool          // new streams are silent, too; guarded by network.mu
	opened  int           // streams
	tips    []wire.Connect
}

// Routes are the links on which the server is; onlyResume of them can't open a session.
func (n *network) Routes(string) []session.Route {
	n.mu.Lock()
	defer n.mu.Unlock()
	var rs []session.Route
	for _, l := range n.links {
		r := session.Route{
			Link: l, Relay: l.name, RTT: 2*l.latency + time.Millisecond,
			Overdue: n.overdue, Shared: !n.unshared, Open: n.opener(l),
		}
		if l == n.onlyResumes {
			r.Open, r.Resume = nil, func(tip *wire.Connect) (wire.Stream, error) { return n.opener(l)(tip, nil) }
		}
		rs = append(rs, r)
	}
	return rs
}

func (n *network) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *network) opener(l *memLink) func(*wire.Connect, []byte) (wire.Stream, error) {
	return func(tip *wire.Connect, data []byte) (wire.Stream, error) {
		inner := tip.Inner
		m, _, err := wire.Parse(inner)
		if err != nil {
			n.t.Errorf("inner tip: %v", err)
		}
		a, b := n.stream(l)
		n.mu.Lock()
		relay := n.relay
		l.opened++
		l.tips = append(l.tips, *tip)
		n.mu.Unlock()
		var refusal *wire.Reply
		if relay != nil {
			refusal = relay(l, m)
		}
		switch {
		case refusal != nil:
			n.serving.Go(func() { (&peer{n.t, b, m, l, nil}).refuse(refusal) })
		case tip.Server == "evil":
			n.strangers <- &peer{n.t, b, m, l, nil}
		default:
			n.serve(l, m, b)
		}
		if len(data) > 0 {
			_, _ = a.Write(data) // the stream was opened, even if it doesn't get far
		}
		return a, nil
	}
}

// stream makes a stream over a link. The first is the client's end.
func (n *network) stream(l *memLink) (a, b *memStream) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a, b = streamPair(n.capacity, n)
	a.link, b.link = l, l
	for _, h := range []*half{a.in, a.out} {
		h.latency, h.silent = l.latency, l.hole
	}
	n.streams[a] = struct{}{}
	return a, b
}

func (n *network) serve(l *memLink, m wire.Message, b *memStream) {
	n.serving.Go(func() { serve(n.server, "laptop", m, b, &session.Route{Link: l, Relay: l.name, Shared: !n.unshared}) })
}

// What the network does is changed under its lock, as sessions are at work.

func (n *network) set(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

func (n *network) dialBy(dial func(context.Context) (session.Conn, error)) {
	n.set(func() { n.dial = dial })
}

func (n *network) decideBy(decide func(client, target string) *session.Refusal) {
	n.set(func() { n.decide = decide })
}

func (n *network) playRelay(relay func(l *memLink, inner wire.Message) *wire.Reply) {
	n.set(func() { n.relay = relay })
}

func (n *network) atCutDo(f func(*memStream)) { n.set(func() { n.atCut = f }) }

// cutAfter cuts when so many bytes have passed, and again after so many more.
func (n *network) cutAfter(bytes ...int) { n.set(func() { n.cuts = bytes }) }

// allow takes n bytes of what may pass before the next cut.
func (n *network) allow(want int) (got int, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.cuts) == 0 || want < n.cuts[0] {
		if len(n.cuts) > 0 {
			n.cuts[0] -= want
		}
		n.passed += want
		return want, false
	}
	got, n.cuts = n.cuts[0], n.cuts[1:]
	n.passed += got
	return got, true
}

// take takes the streams of a link, or of all if it is nil.
func (n *network) take(l *memLink) (taken []*memStream) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for s := range n.streams {
		if l == nil || s.link == l {
			taken = append(taken, s)
			delete(n.streams, s)
		}
	}
	return taken
}

// cut loses every stream.
func (n *network) cut() {
	for _, s := range n.take(nil) {
		s.lose()
	}
}

// resetByRelay resets every stream, as a relay does whose other hop is gone.
func (n *network) resetByRelay(code wire.StreamCode) {
	for _, s := range n.take(nil) {
		remote := &wire.ResetError{Code: code, Remote: true}
		s.in.fail(remote, remote)
		s.out.fail(remote, remote)
	}
}

// silence makes a link a black hole: what is on its way is lost, and so is all
// that follows, while both ends believe in it.
func (n *network) silence(l *memLink) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l.hole = true
	for s := range n.streams {
		if s.link == l {
			s.in.setSilent()
			s.out.setSilent()
		}
	}
}

// setLinks makes new links and drops the old ones, but not their streams. The
// best comes first.
func (n *network) setLinks(names ...string) {
	links := make([]*memLink, len(names))
	for i, name := range names {
		links[i] = &memLink{name: name}
	}
	n.replaceLinks(links...)
}

func (n *network) replaceLinks(links ...*memLink) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = links
	close(n.changed)
	n.changed = make(chan struct{})
}

// patience is the virtual time after which a test has hung.
const patience = 6 * time.Hour

// start makes a client and a server; they are stopped when the test ends, and
// all that they had must be gone by then.
func start(t testing.TB, limits session.Limits) *network { return startLogged(t, limits, nil, nil) }

// startLogged is start with logs for the two.
func startLogged(t testing.TB, limits session.Limits, client, server *slog.Logger) *network {
	n := &network{
		t: t, capacity: 256 << 10, conns: 64 << 10, strangers: make(chan *peer, 100),
		changed: make(chan struct{}), streams: make(map[*memStream]struct{}), hits: make(map[string]int),
	}
	n.atCut = func(*memStream) { n.cut() }
	n.setLinks("relay")
	n.server = session.NewServer(session.ServerConfig{
		Node: "nas",
		Decide: func(client, target string) (session.Dial, *session.Refusal) {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.decide != nil {
				if refusal := n.decide(client, target); refusal != nil {
					return nil, refusal
				}
			} else if target != ":22" {
				return nil, &session.Refusal{Status: wire.StatusNotAllowed, Text: "no service"}
			}
			return n.dial, nil
		},
		Ended: func(s session.Summary) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.ended = append(n.ended, s)
		},
		Limits:   limits,
		LimitHit: func(limit string) { n.set(func() { n.hits[limit]++ }) },
		Short:    func(s budget.Shortage) { n.set(func() { n.short = append(n.short, s) }) },
		Logger:   server,
	})
	n.client = session.NewClient(session.ClientConfig{Router: n, Limits: limits, Logger: client})
	watchdog := time.AfterFunc(patience, func() {
		panic(fmt.Sprintf("hung in %s\nclient: %+v\nserver: %+v", t.Name(), n.client.Sessions(), n.server.Sessions()))
	})
	n.stopClient = running(n.client.Run)
	n.stopServer = running(n.server.Run)
	t.Cleanup(func() {
		var stopping sync.WaitGroup
		stopping.Go(n.stopClient)
		stopping.Go(n.stopServer)
		stopping.Wait()
		n.cut()
		n.serving.Wait()
		watchdog.Stop()
		for _, m := range []session.Memory{n.client.Memory(), n.server.Memory()} {
			if m.Promised != 0 || m.Retained != 0 {
				t.Errorf("memory is left: %+v", m)
			}
		}
	})
	return n
}

// running starts what runs until it is stopped, and returns how to stop it and
// wait for its end.
func running(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = run(ctx) })
	return func() {
		cancel()
		running.Wait()
	}
}

// endings are how the server's sessions have ended so far.
func (n *network) endings() (all []session.Outcome) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.ended {
		all = append(all, s.Outcome)
	}
	return all
}

// forward opens a connection through the network. It returns P1's end and, when
// P4 has dialled, P5's through the channel.
func (n *network) forward() (p1 *memConn, p5 <-chan *memConn, done <-chan session.Summary) {
	accepted := make(chan *memConn, 1)
	p1, done = n.forwardTo(func(context.Context) (session.Conn, error) {
		ours, theirs := connPair(n.conns)
		accepted <- theirs
		return ours, nil
	})
	return p1, accepted, done
}

// established is forward until both ends know that the session is open. It is
// for bubbles.
func (n *network) established() (p1, p5 *memConn, done <-chan session.Summary) {
	p1, accepted, done := n.forward()
	p5 = <-accepted
	opening := func(s session.Info) bool { return s.State == session.Opening }
	for slices.ContainsFunc(n.client.Sessions(), opening) {
		time.Sleep(time.Millisecond)
	}
	synctest.Wait()
	return p1, p5, done
}

// forwardTo is forward with a dial of the caller's own.
func (n *network) forwardTo(dial func(context.Context) (session.Conn, error)) (p1 *memConn, done <-chan session.Summary) {
	n.mu.Lock()
	n.dial = dial
	n.mu.Unlock()
	return n.forwardVia("nas")
}

// forwardVia is forward to a server by its ID.
func (n *network) forwardVia(server string) (p1 *memConn, done <-chan session.Summary) {
	p1, p2 := connPair(n.conns)
	ended := make(chan session.Summary, 1)
	go func() {
		ended <- *n.client.Forward(context.Background(), p2, &session.Request{
			Mapping: "m", Server: server, Target: ":22", Source: "127.0.0.1:5000", ResumeTimeout: time.Minute,
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

// receiveAll reads want, and the end behind it.
func receiveAll(from io.Reader, want []byte) error {
	got, err := io.ReadAll(from)
	if err == nil && !bytes.Equal(got, want) {
		err = fmt.Errorf("%d bytes, which differ from %d", len(got), len(want))
	}
	return err
}

// exchange sends want over from and checks that it arrives whole at to, with
// its end.
func exchange(from, to *memConn, want []byte) error {
	go func() {
		_, _ = from.Write(want)
		_ = from.CloseWrite()
	}()
	return receiveAll(to, want)
}

// soon waits for c, but not for ever.
func soon[T any](t testing.TB, d time.Duration, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(d):
		t.Fatalf("nothing happened for %v", d)
	}
	return v
}
