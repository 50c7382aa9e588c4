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

func (w world) run(t *testing.T, steps []step) error {
	n := start(t, w.limits)
	n.capacity = w.capacity
	link := func(name string) *memLink { return &memLink{name: name, latency: w.latency} }
	n.replaceLinks(link("a"))

	p1, p5 := &side{seed: 1}, &side{seed: 1 << 32}
	var client, server *memConn
	p1.conn, client = connPairOf(w.conns)
	p5.conn, server = connPairOf(w.conns)
	n.dialBy(func(context.Context) (session.Conn, error) {
		time.Sleep(w.dial)
		return server, nil
	})
	refusals, losses := 0, 0 // guarded by n.mu
	n.playRelay(func(_ *memLink, tip wire.Message) *wire.Reply {
		n.mu.Lock()
		defer n.mu.Unlock()
		if _, opening := tip.(*wire.Open); refusals > 0 && !opening {
			refusals--
			return &wire.Reply{Status: wire.StatusNotConnected, Node: "relay"}
		}
		if losses > 0 {
			losses--
			n.cuts = append([]int{1 + losses*7}, n.cuts...)
		}
		return nil
	})
	ended := make(chan session.Summary, 1)
	go func() {
		ended <- n.client.Forward(context.Background(), client, session.Request{
			Server: "nas", Target: ":22", Source: "x", ResumeTimeout: 10 * time.Minute,
		})
	}()
	for _, s := range steps {
		switch s.what {
		case "P1 writes":
			p1.write(s.n)
		case "P5 writes":
			p5.write(s.n)
		case "P1 ends":
			p1.end()
		case "P5 ends":
			p5.end()
		case "cut":
			n.cut()
		case "cut after":
			n.set(func() { n.cuts = append(n.cuts, s.n/10) })
		case "reset by relay":
			n.resetByRelay(wire.CodeLost)
		case "closing":
			n.resetByRelay(wire.CodeClosing)
		case "silence":
			for _, r := range n.Routes() {
				n.silenceStreams(r.Link.(*memLink))
			}
		case "no link":
			n.replaceLinks()
		case "one link":
			n.replaceLinks(link("a"))
		case "two links":
			n.replaceLinks(link("b"), link("a"))
		case "move":
			for _, r := range n.Routes() {
				n.client.Move(r.Link, "moved by the test")
			}
		case "refuse":
			n.set(func() { refusals = s.n % 3 })
		case "lose replies":
			n.set(func() { losses = s.n % 3 })
		case "sleep":
			time.Sleep(time.Duration(s.n) * 20 * time.Microsecond)
		case "sleep long":
			if !n.opening() { // which has its own, shorter patience
				time.Sleep(time.Duration(s.n) * time.Millisecond)
			}
		}
		synctest.Wait()
		reader, writer := p1, p5
		if s.what == "P5 reads" {
			reader, writer = p5, p1
		}
		if s.what == "P1 reads" || s.what == "P5 reads" {
			if err := reader.read(s.n); err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
			if err := reader.check(writer, false); err != nil {
				return fmt.Errorf("%s: %w", s.what, err)
			}
		}
		if s.what == "no link" && n.opening() {
			n.replaceLinks(link("a"))
		}
	}
	// Now all is well again, and both sides read to the end.
	n.cutAfter()
	n.replaceLinks(link("z"))
	n.cut()
	for _, s := range []*side{p1, p5} {
		if !s.ended {
			s.end()
		}
	}
	read := make(chan error, 2)
	for _, s := range []*side{p1, p5} {
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
			p1.conn.reset()
			p5.conn.reset()
			return fmt.Errorf("hung: %+v %+v", n.client.Sessions(), n.server.Sessions())
		}
	}
	if err := errors.Join(p1.check(p5, true), p5.check(p1, true)); err != nil {
		return err
	}
	select {
	case sum := <-ended:
		if sum.End != session.EndClosed || sum.Up != int64(len(p1.sent)) || sum.Down != int64(len(p5.sent)) {
			return fmt.Errorf("summary %+v", sum)
		}
	case <-time.After(time.Minute):
		return fmt.Errorf("the session didn't end: %+v", n.client.Sessions())
	}
	time.Sleep(10 * time.Second)
	if left := n.server.Sessions(); len(left) > 0 {
		return fmt.Errorf("left at the server: %+v", left)
	}
	return nil
}

// opening tells whether the only session isn't open yet.
func (n *network) opening() bool {
	all := n.client.Sessions()
	return len(all) == 0 || all[0].State == session.Opening
}
