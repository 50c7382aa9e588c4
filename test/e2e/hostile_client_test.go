//go:build linux

package e2e

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// A rogue is a node that a relay knows by its key, and that does as it likes.
type rogue struct {
	t      *testing.T
	w      *world
	key    ident.PrivateKey
	target string // for a client: what it may reach
	links  chan *link.Link

	coming sync.Mutex
	link   *link.Link

	mu       sync.Mutex
	statuses map[wire.Status]int
}

// newRogue has a rogue connect to the relay for as long as the test runs. What comes over its links goes to serve, if there is one.
func newRogue(t *testing.T, w *world, key ident.PrivateKey, serve func(*link.Stream, wire.Message)) *rogue {
	t.Helper()
	r := &rogue{t: t, w: w, key: key, links: make(chan *link.Link, 1000), statuses: make(map[wire.Status]int)}
	d := &link.Dialer{
		Address: fmt.Sprintf("127.0.0.1:%d", w.ports["relay"]), Keys: []ident.PublicKey{w.keys["relay"].Public()}, Identity: key,
		Serve: func(ctx context.Context, l *link.Link) {
			r.links <- l
			if serve == nil {
				<-ctx.Done()
				return
			}
			var streams sync.WaitGroup
			defer streams.Wait()
			for {
				s, tip, err := l.Accept(ctx)
				if err != nil {
					return
				}
				streams.Go(func() { serve(s, tip) })
			}
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = d.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	r.alive()
	return r
}

// live is the link that there is, or comes: on a machine that stands still for longer than links wait, the last one has ended.
func (r *rogue) live() (*link.Link, error) {
	r.coming.Lock()
	defer r.coming.Unlock()
	for r.link == nil || r.link.Err() != nil {
		if r.link != nil {
			r.t.Logf("the rogue's link has ended: %v", r.link.Err())
		}
		select {
		case r.link = <-r.links:
		case <-time.After(time.Minute):
			return nil, errors.New("the rogue is not let in")
		}
	}
	return r.link, nil
}

// alive makes sure that there is a link.
func (r *rogue) alive() *link.Link {
	r.t.Helper()
	l, err := r.live()
	if err != nil {
		r.t.Fatal(err)
	}
	return l
}

// ask is the opening of a session, and its tip.
func ask(server, target string, change ...func(*wire.Open)) []byte {
	m := &wire.Open{
		Version: wire.Version, Attempt: 1, Source: "192.0.2.9:999", Target: target,
		Limit: wire.InitialWindow, ResumeTimeout: 10 * time.Minute,
	}
	_, _ = crand.Read(m.Token[:])
	for _, f := range change {
		f(m)
	}
	return wire.Append(nil, &wire.Connect{Server: server, Inner: wire.Append(nil, m)})
}

// open opens a stream as soon as the relay takes one more.
func (r *rogue) open(head []byte) (*link.Stream, error) {
	patience := time.NewTimer(20 * time.Second)
	defer patience.Stop()
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		l, err := r.live()
		if err != nil {
			return nil, err
		}
		s, err := l.Open(head)
		if err != nil && l.Err() != nil {
			continue
		}
		if !errors.Is(err, link.ErrStreamLimit) {
			return s, err
		}
		select {
		case <-again.C:
		case <-patience.C:
			return nil, err
		}
	}
}

// answer is how a stream is answered; 0 for a stream that is reset, or where there is no answer in time.
func (r *rogue) answer(s *link.Stream) wire.Status {
	_ = s.SetReadDeadline(time.Now().Add(20 * time.Second))
	m, err := wire.Read(s)
	_ = s.SetReadDeadline(time.Time{})
	var status wire.Status
	if reply, ok := m.(*wire.Reply); ok && err == nil {
		status = reply.Status
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.statuses[status]++
	return status
}

// linkEnded tells whether a stream may have had no answer because its link ended. The stream hears of that first.
func linkEnded(s *link.Stream) bool {
	select {
	case <-s.Link().Done():
		return true
	case <-time.After(time.Second):
		return false
	}
}

// answers are how often each status was the answer since the last call.
func (r *rogue) answers() map[wire.Status]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := maps.Clone(r.statuses)
	clear(r.statuses)
	return all
}

// many does something n times, some at once.
func many(n, atOnce int, do func(i int)) {
	var next atomic.Int64
	var work sync.WaitGroup
	for range atOnce {
		work.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				do(i)
			}
		})
	}
	work.Wait()
}

// discarded is P5 of a rogue: it discards what comes, or sends without end.
func discarded(c net.Conn) {
	defer func() { _ = c.Close() }()
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return
	}
	switch kind[0] {
	case 'b': // bulk
		chunk := make([]byte, 64<<10)
		for {
			if _, err := c.Write(chunk); err != nil {
				return
			}
		}
	default:
		_, _ = io.Copy(io.Discard, c)
	}
}

// data is a session frame with data.
func data(p []byte) []byte {
	return append(wire.Frame{Kind: wire.FrameData, Value: uint64(len(p))}.Append(nil), p...)
}

// oddNames are targets, or servers, that no client of ours asks for.
func oddNames() []string {
	odd := []string{
		"", "\x00", ":22\x00", ":22\n2026-01-01 forged=line", "\x1b[2J\x1b[1;1H:22", "\u202e22:", "\xff\xfe", ":0", ":65536", ":-1", ":99999999999999999999",
		"unix:", "unix:/etc/shadow", "unix:../../x", "unix:/\x00", "unix:@abstract", "unix:/" + strings.Repeat("a", 300), "localhost:22", "[::1]:22", "[fe80::1%eth0]:22",
		"169.254.169.254:80", "0.0.0.0:22", "127.1:22", "2130706433:22", "%2e%2e", "${HOME}", "`id`", "'; drop table", strings.Repeat("A", 3500), strings.Repeat("é", 1500),
		"a b:22", "host:22:22", "http://127.0.0.1:22/", "*", "main\x7f", "MAIN", "main ", " main",
	}
	for range 300 {
		p := random(1 + rand.N(200))
		odd = append(odd, string(p), ":"+string(p))
	}
	return odd
}

// refusing reports whether a status refuses what makes no sense. It is 429 where too many streams wait to be read.
func refusing(s wire.Status) bool {
	return s == wire.StatusMalformed || s == wire.StatusNotAllowed || s == wire.StatusTooMany
}

// TestHostileClient lets a client that the relay knows do what it likes. It is refused at the limits; who is honest, at the
// same relay and the same server, doesn't notice; and all is then as it was.
func TestHostileClient(t *testing.T) {
	w := newWorld(t, endServer)
	theirs := listen(t, discarded).Addr().(*net.TCPAddr).Port
	key := newKey(t)
	w.extra["relay"] += fmt.Sprintf("[[peers]]\nid = \"mallory\"\nrole = \"client\"\npublic_key = %q\nallowed_servers = [\"nas\"]\n"+
		"[limits]\nopens_per_second = 300\n", key.Public())
	w.extra["nas"] += fmt.Sprintf("resume_timeout = \"2s\"\n[limits]\nsessions_per_client = 500\n[[services]]\ntarget = \"%d\"\nclients = [\"mallory\"]\n", theirs)
	w.withMetrics("relay", "nas")
	w.all()

	begun, stood := time.Now(), testutil.WatchMachine()
	honest := pings(t, w.mustDial())
	r := newRogue(t, w, key, nil)
	r.target = fmt.Sprintf(":%d", theirs)
	was := map[string]footprint{"relay": w.footprint(t, "relay"), "nas": w.footprint(t, "nas")}

	for _, act := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"streams", r.holdStreams},
		{"opens", r.opens},
		{"opens that wait for no answer", r.opensUnanswered},
		{"opens that say nothing", r.opensSilently},
		{"odd targets", r.oddTargets},
		{"windows that are never read", r.unreadWindows},
		{"windows that are exceeded", r.exceededWindows},
		{"resets of sessions in a loop", r.resets},
		{"links in a loop", r.dialAgainAndAgain},
	} {
		w.unharmed(t, act.name, honest, []string{"relay", "nas"}, func() { act.do(t) })
	}
	hits := map[string]map[string]float64{"relay": w.limitsHit("relay"), "nas": w.limitsHit("nas")}
	t.Logf("limits hit: %v", hits)
	for limit, node := range map[string]string{"opens_per_second": "relay", "pending_tips": "relay", "sessions_per_client": "nas"} {
		if hits[node][limit] == 0 {
			t.Errorf("%s does not count %s", node, limit)
		}
	}
	honest.end(t)
	if n, still := w.status("laptop").Counters.Resumed, stood(); n > 0 {
		testutil.Broken(t, still, stalled, "a hostile client has cost others a link: %d connections had to be resumed", n)
	}
	for node, was := range was {
		w.settles(t, node, was, 30*time.Second)
		w.fewLines(t, node, 2500+linesPerSecond*int(time.Since(begun).Seconds()))
	}
}

// holdStreams opens more connections than it may have. It goes first: a refusal counts tenfold in
// opens_per_second, and a client in debt is held up.
func (r *rogue) holdStreams(t *testing.T) {
	var mu sync.Mutex
	var held []*link.Stream
	l := r.alive()
	many(amount(1000, 16_000), 64, func(int) {
		s, err := l.Open(ask("nas", r.target))
		if err != nil {
			return
		}
		if r.answer(s) != wire.StatusOpen {
			s.Reset(wire.CodeLost)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		held = append(held, s)
	})
	t.Logf("%d are open; answers: %v", len(held), r.answers())
	if len(held) > 500 || len(held) < 300 {
		t.Errorf("%d are open", len(held))
	}
	for _, s := range held {
		s.Reset(wire.CodeRevoked)
	}
}

// opens opens connections faster than it may.
func (r *rogue) opens(t *testing.T) {
	many(amount(900, 100_000), 64, func(int) {
		s, err := r.open(ask("nas", r.target))
		if err != nil {
			t.Error(err)
			return
		}
		r.answer(s)
		s.Reset(wire.CodeRevoked)
	})
	answers := r.answers()
	if answers[wire.StatusOpen] == 0 || answers[wire.StatusTooMany] == 0 {
		t.Errorf("answers: %v", answers)
	}
	t.Logf("answers: %v", answers)
}

// opensUnanswered opens connections with data, and resets each before its answer.
func (r *rogue) opensUnanswered(t *testing.T) {
	many(amount(5000, 100_000), 8, func(i int) {
		s, err := r.open(append(ask("nas", r.target), data([]byte("x"))...))
		if err != nil {
			t.Error(err)
			return
		}
		s.Reset(wire.CodeLost + wire.StreamCode(i%4))
	})
}

// opensSilently opens streams that never finish their tip.
func (r *rogue) opensSilently(t *testing.T) {
	streams := make([]*link.Stream, amount(3000, 16_000))
	taken, l := 0, r.alive()
	for i := range streams {
		s, err := l.Open([]byte{1}) // the beginning of a tip
		if err != nil {
			break
		}
		streams[i] = s
		taken++
	}
	t.Logf("%d streams", taken)
	<-time.After(time.Duration(amount(1, 10)) * time.Second)
	for _, s := range streams[:taken] {
		s.Reset(wire.CodeLost)
	}
}

// oddTargets asks for targets and servers that no client of ours would ask for, and sends tips that are none.
func (r *rogue) oddTargets(t *testing.T) {
	for _, odd := range oddNames() {
		s, err := r.open(ask("nas", odd))
		if err != nil {
			t.Fatal(err)
		}
		if status := r.answer(s); !refusing(status) && !linkEnded(s) {
			t.Errorf("%.100q is answered with %v", odd, status)
		}
		s.Reset(wire.CodeLost)
	}
	for range 300 { // whole tips of it, and other servers
		s, err := r.open(random(1 + rand.N(100)))
		if err != nil {
			continue
		}
		_ = s.CloseWrite()
		r.answer(s)
		s.Reset(wire.CodeLost)
	}
	for _, odd := range oddNames() {
		s, err := r.open(ask(odd, ":22"))
		if err != nil {
			t.Fatal(err)
		}
		if status := r.answer(s); !refusing(status) && !linkEnded(s) {
			t.Errorf("server %.100q is answered with %v", odd, status)
		}
		s.Reset(wire.CodeLost)
	}
	t.Logf("answers: %v", r.answers())
}

// unreadWindows lets the server send without end, and reads nothing.
func (r *rogue) unreadWindows(t *testing.T) {
	var held []*link.Stream
	for range 16 {
		s, err := r.open(append(ask("nas", r.target, func(m *wire.Open) { m.Limit = 2 * wire.MaxWindow }), data([]byte("b"))...))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, s)
	}
	<-time.After(time.Duration(amount(3, 60)) * time.Second)
	for _, s := range held {
		s.Reset(wire.CodeRevoked)
	}
}

// exceededWindows sends ten times what it may, or acknowledges what was never sent.
func (r *rogue) exceededWindows(t *testing.T) {
	many(50, 10, func(i int) {
		s, err := r.open(ask("nas", r.target))
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Reset(wire.CodeRevoked)
		if r.answer(s) != wire.StatusOpen {
			return
		}
		_ = s.SetWriteDeadline(time.Now().Add(20 * time.Second))
		_ = s.SetReadDeadline(time.Now().Add(20 * time.Second))
		var done sync.WaitGroup
		done.Go(func() {
			if i%2 == 0 { // acknowledge what was never sent
				_, _ = s.Write(wire.Frame{Acked: 1 << 40}.Append(nil))
				return
			}
			for { // ten times what may be sent at once, in one frame after another
				if _, err := s.Write(data(make([]byte, 10*wire.InitialWindow))); err != nil {
					return
				}
			}
		})
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{s}); err == nil {
			t.Error("the session was not reset")
		} else if _, reset := errors.AsType[*wire.ResetError](err); !reset {
			t.Errorf("the session: %v", err)
		}
		s.Reset(wire.CodeRevoked)
		done.Wait()
	})
}

// resets opens sessions and leaves them in every way; the server waits for them to come back.
func (r *rogue) resets(t *testing.T) {
	many(amount(2000, 50_000), 16, func(i int) {
		s, err := r.open(ask("nas", r.target))
		if err != nil {
			t.Error(err)
			return
		}
		if i%3 > 0 {
			r.answer(s)
		}
		if i%2 == 0 {
			_, _ = s.Write(wire.Frame{Kind: wire.FrameReset, Value: 1}.Append(nil))
			_ = s.CloseWrite()
		}
		s.Reset(wire.CodeLost) // the server waits for it to come back
	})
	t.Logf("answers: %v", r.answers())
}

// dialAgainAndAgain dials, and floods each link's control stream.
func (r *rogue) dialAgainAndAgain(t *testing.T) {
	config, err := ident.DialTLS(r.key, r.w.keys["relay"].Public())
	if err != nil {
		t.Fatal(err)
	}
	many(amount(300, 3000), 4, func(i int) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := quic.DialAddr(ctx, fmt.Sprintf("127.0.0.1:%d", r.w.ports["relay"]), config, nil)
		if err != nil {
			return // superseded, or one too many
		}
		if s, err := conn.OpenStream(); err == nil {
			_, _ = s.Write(wire.Append(nil, &wire.Control{}))
			flood := wire.Append(nil, &wire.Heartbeat{Seq: 1})
			flood = append(flood, wire.Append(nil, &wire.Revoked{Client: "laptop", Target: "nas"})...)
			flood = append(flood, wire.Append(nil, &wire.Closing{})...)
			for range 100 {
				_ = s.SetWriteDeadline(time.Now().Add(time.Second))
				if _, err := s.Write(flood); err != nil {
					break
				}
			}
		}
		_ = conn.CloseWithError(quic.ApplicationErrorCode(i%5), strings.Repeat("\x1b\n", 100))
	})
}

// amount is how often something is done: the second number in the long form of the tests.
func amount(short, long int) int {
	if *full {
		return long
	}
	return short
}
