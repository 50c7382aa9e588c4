package session_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// A world is the circumstances of one run of the model.
type world struct {
	capacity int // of streams
	conns    int // of what waits to be read from a connection
	latency  time.Duration
	dial     time.Duration
	limits   session.Limits
}

// A side is P1 or P5 of the model: what it has written and read so far, in two
// plain buffers that know nothing of sessions.
type side struct {
	conn  *memConn
	sent  []byte
	got   []byte
	seed  uint64
	ended bool // it has closed its direction
	heard bool // it has read the end of the other's
}

func (s *side) write(n int) {
	if s.ended {
		return
	}
	from := len(s.sent)
	s.sent = append(s.sent, pattern(s.seed+uint64(from), n)...)
	_, _ = s.conn.Write(s.sent[from:]) // has room for all that a run can write
}

func (s *side) end() {
	s.ended = true
	_ = s.conn.CloseWrite()
}

// read takes what is there, n bytes at most.
func (s *side) read(n int) error {
	_ = s.conn.SetReadDeadline(time.Now())
	defer func() { _ = s.conn.SetReadDeadline(time.Time{}) }()
	p := make([]byte, n)
	m, err := s.conn.Read(p)
	s.got = append(s.got, p[:m]...)
	switch {
	case errors.Is(err, io.EOF):
		s.heard = true
	case err != nil && !isTimeout(err):
		return err
	}
	return nil
}

// check compares what has been read with what the other side has written.
func (s *side) check(other *side, whole bool) error {
	switch {
	case !bytes.HasPrefix(other.sent, s.got):
		return fmt.Errorf("%d bytes were read that are not the first of %d that were written", len(s.got), len(other.sent))
	case s.heard && (!other.ended || len(s.got) < len(other.sent)):
		return fmt.Errorf("the end was read after %d bytes of %d", len(s.got), len(other.sent))
	case whole && (!s.heard || len(s.got) < len(other.sent)):
		return fmt.Errorf("%d bytes of %d were read, the end: %v", len(s.got), len(other.sent), s.heard)
	}
	return nil
}

// A step is something that happens: to P1, to P5, or to what is between them.
type step struct {
	what string
	n    int
}

// TestModel does things in any order, and compares a session with two plain
// buffers: each side has read a beginning of what the other has written, and in
// the end all of it.
func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := world{
			capacity: rapid.SampledFrom([]int{30, 100, 1000, 10000, 300000}).Draw(rt, "stream capacity"),
			conns:    rapid.SampledFrom([]int{20, 300, 5000, 200000}).Draw(rt, "connection capacity"),
			latency:  time.Duration(rapid.SampledFrom([]int{0, 1, 30}).Draw(rt, "latency, ms")) * time.Millisecond,
			dial:     time.Duration(rapid.SampledFrom([]int{0, 10, 3000}).Draw(rt, "dial, ms")) * time.Millisecond,
			limits: session.Limits{
				MaxWindow:      rapid.SampledFrom([]int{64 << 10, 1 << 20}).Draw(rt, "window"),
				WindowBudget:   rapid.SampledFrom([]int64{1, 100 << 10, 0}).Draw(rt, "window budget"),
				RetainedBudget: rapid.SampledFrom([]int64{1, 100 << 10, 0}).Draw(rt, "retained budget"),
				LinkQuota:      rapid.SampledFrom([]int64{1, 100 << 10, 0}).Draw(rt, "quota"),
			},
		}
		stepOf := rapid.Custom(func(rt *rapid.T) step {
			s := step{what: rapid.SampledFrom([]string{
				"P1 writes", "P5 writes", "P1 reads", "P5 reads", "P1 writes", "P5 writes", "P1 reads", "P5 reads",
				"P1 ends", "P5 ends",
				"cut", "cut after", "reset by relay", "closing", "silence", "no link", "one link", "two links", "move", "refuse", "lose replies",
				"sleep", "sleep long",
			}).Draw(rt, "what")}
			s.n = rapid.IntRange(1, 100000).Draw(rt, "n")
			return s
		})
		steps := rapid.SliceOfN(stepOf, 1, 60).Draw(rt, "steps")
		var err error
		synctest.Test(t, func(t *testing.T) { err = w.run(t, steps) })
		if err != nil {
			rt.Fatal(err)
		}
	})
}

// A model is one run: a session between P1 and P5, and two plain buffers.
type model struct {
	*network
	latency          time.Duration // of each link
	p1, p5           *side
	refusals, losses int // of resumes by the relay, and of its replies; guarded by network.mu
	ended            chan session.Summary
}

func (w world) start(t *testing.T) *model {
	m := &model{
		network: start(t, w.limits), latency: w.latency,
		p1: &side{seed: 1}, p5: &side{seed: 1 << 32}, ended: make(chan session.Summary, 1),
	}
	m.capacity = w.capacity
	m.replaceLinks(m.link("a"))
	var client, server *memConn
	m.p1.conn, client = connPairOf(w.conns)
	m.p5.conn, server = connPairOf(w.conns)
	m.dialBy(func(context.Context) (session.Conn, error) {
		time.Sleep(w.dial)
		return server, nil
	})
	m.playRelay(m.relay)
	go func() {
		m.ended <- *m.client.Forward(context.Background(), client, &session.Request{
			Server: "nas", Target: ":22", Source: "x", ResumeTimeout: 10 * time.Minute,
		})
	}()
	return m
}

func (m *model) link(name string) *memLink { return &memLink{name: name, latency: m.latency} }

// relay refuses resumes, or cuts a stream so early that its reply is lost.
func (m *model) relay(_ *memLink, tip wire.Message) *wire.Reply {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, opening := tip.(*wire.Open); m.refusals > 0 && !opening {
		m.refusals--
		return &wire.Reply{Status: wire.StatusNotConnected, Node: "relay"}
	}
	if m.losses > 0 {
		m.losses--
		m.cuts = append([]int{1 + m.losses*7}, m.cuts...)
	}
	return nil
}

func (w world) run(t *testing.T, steps []step) error {
	m := w.start(t)
	for _, s := range steps {
		m.do(s)
		synctest.Wait()
		if err := m.read(s); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
		if s.what == "no link" && m.opening() {
			m.replaceLinks(m.link("a"))
		}
	}
	if err := m.readAll(); err != nil {
		return err
	}
	return m.end()
}

// do takes a step, but for reads.
func (m *model) do(s step) {
	switch s.what {
	case "P1 writes":
		m.p1.write(s.n)
	case "P5 writes":
		m.p5.write(s.n)
	case "P1 ends":
		m.p1.end()
	case "P5 ends":
		m.p5.end()
	case "cut":
		m.cut()
	case "cut after":
		m.set(func() { m.cuts = append(m.cuts, s.n/10) })
	case "reset by relay":
		m.resetByRelay(wire.CodeLost)
	case "closing":
		m.resetByRelay(wire.CodeClosing)
	case "silence":
		for _, r := range m.Routes("nas") {
			m.silenceStreams(r.Link.(*memLink))
		}
	case "no link":
		m.replaceLinks()
	case "one link":
		m.replaceLinks(m.link("a"))
	case "two links":
		m.replaceLinks(m.link("b"), m.link("a"))
	case "move":
		for _, r := range m.Routes("nas") {
			m.client.Move(r.Link, "moved by the test")
		}
	case "refuse":
		m.set(func() { m.refusals = s.n % 3 })
	case "lose replies":
		m.set(func() { m.losses = s.n % 3 })
	case "sleep":
		time.Sleep(time.Duration(s.n) * 20 * time.Microsecond)
	case "sleep long":
		if !m.opening() { // an opening has a shorter patience of its own
			time.Sleep(time.Duration(s.n) * time.Millisecond)
		}
	}
}

// read reads, where the step is to read, and compares.
func (m *model) read(s step) error {
	reader, writer := m.p1, m.p5
	switch s.what {
	case "P1 reads":
	case "P5 reads":
		reader, writer = m.p5, m.p1
	default:
		return nil
	}
	if err := reader.read(s.n); err != nil {
		return err
	}
	return reader.check(writer, false)
}

// readAll makes all well again, and has both sides read to the end.
func (m *model) readAll() error {
	m.cutAfter()
	m.replaceLinks(m.link("z"))
	m.cut()
	read := make(chan error, 2)
	for _, s := range []*side{m.p1, m.p5} {
		if !s.ended {
			s.end()
		}
	}
	for _, s := range []*side{m.p1, m.p5} {
		go func() {
			rest, err := io.ReadAll(s.conn)
			s.got = append(s.got, rest...)
			s.heard = err == nil
			read <- err
		}()
	}
	for range 2 {
		select {
		case err := <-read:
			if err != nil {
				return err
			}
		case <-time.After(time.Hour):
			m.p1.conn.reset()
			m.p5.conn.reset()
			return fmt.Errorf("hung: %+v %+v", m.client.Sessions(), m.server.Sessions())
		}
	}
	return errors.Join(m.p1.check(m.p5, true), m.p5.check(m.p1, true))
}

// end wants the session to end, and nothing to be left of it.
func (m *model) end() error {
	select {
	case sum := <-m.ended:
		if sum.Outcome != session.OutcomeClosed || sum.Up != int64(len(m.p1.sent)) || sum.Down != int64(len(m.p5.sent)) {
			return fmt.Errorf("summary %+v", sum)
		}
	case <-time.After(time.Minute):
		return fmt.Errorf("the session didn't end: %+v", m.client.Sessions())
	}
	time.Sleep(10 * time.Second)
	if left := m.server.Sessions(); len(left) > 0 {
		return fmt.Errorf("left at the server: %+v", left)
	}
	return nil
}

// opening reports whether the only session isn't open yet.
func (n *network) opening() bool {
	all := n.client.Sessions()
	return len(all) == 0 || all[0].State == session.Opening
}
