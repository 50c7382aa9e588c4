package session_test

import (
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/test/testutil"
)

// many opens so many connections, whose P5s echo, and has each say a byte at once.
func (n *network) many(count int) (p1s []*memConn) {
	for range count {
		p1, p5, _ := n.established()
		go func() { _, _ = io.Copy(p5, struct{ io.Reader }{p5}) }()
		p1s = append(p1s, p1)
	}
	for _, p1 := range p1s {
		_, _ = p1.Write([]byte("a"))
	}
	for _, p1 := range p1s {
		_, _ = io.ReadFull(p1, make([]byte, 1))
	}
	return p1s
}

func (n *network) bytesPassed() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.passed
}

// TestSilenceCostsLittle has 500 sessions send a byte at once, and then nothing. One of them asks
// whether the path is alive, for all: a ping of each session in each second would be more than what
// they have sent.
func TestSilenceCostsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions = 500
		n := start(t, session.Limits{})
		n.replaceLinks(&memLink{name: "a", latency: time.Millisecond})
		n.many(sessions)
		time.Sleep(900 * time.Millisecond) // the last byte of each is acknowledged
		before := n.bytesPassed()
		time.Sleep(15 * time.Second)
		// At most one ping of each, and its pong, that its stream is not stuck.
		if said := n.bytesPassed() - before; said > 3*sessions {
			t.Errorf("%d bytes were said by %d sessions that had nothing to say", said, sessions)
		}
	})
}

// TestPathIsDeadForAll lets a path go dead that one session uses. All its sessions leave it.
func TestPathIsDeadForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		a, b := &memLink{name: "a", latency: time.Millisecond}, &memLink{name: "b", latency: 2 * time.Millisecond}
		n.replaceLinks(a, b)
		p1s := n.many(50)
		time.Sleep(time.Minute)
		_, _ = p1s[0].Write([]byte("a"))
		_, _ = io.ReadFull(p1s[0], make([]byte, 1))
		n.silence(a)
		time.Sleep(deadPathTime)
		for _, s := range n.client.Sessions() {
			if s.Relay != "b" || s.Resumes != 1 {
				t.Fatalf("a session is carried by %s, resumed %d times", s.Relay, s.Resumes)
			}
		}
	})
}

// TestLinkIsJudgedFirst lets a path be silent while the heartbeats of its link are overdue too.
// That is no evidence about what lies beyond the relay.
func TestLinkIsJudgedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		var overdue atomic.Int64
		n.overdue = func() time.Duration { return time.Duration(overdue.Load()) }
		a, b := &memLink{name: "a", latency: time.Millisecond}, &memLink{name: "b", latency: 2 * time.Millisecond}
		n.replaceLinks(a, b)
		n.many(1)
		overdue.Store(int64(2 * time.Second))
		n.silence(a)
		time.Sleep(8 * time.Second)
		if s := n.client.Sessions()[0]; s.Resumes != 0 {
			t.Errorf("resumed %d times while the link itself was silent", s.Resumes)
		}
		overdue.Store(0)
		time.Sleep(deadPathTime)
		if s := n.client.Sessions()[0]; s.Resumes != 1 || s.Relay != "b" {
			t.Errorf("resumed %d times, carried by %s, when the link was well", s.Resumes, s.Relay)
		}
	})
}

// TestResumesArePaced has 300 sessions lose their streams where answers take long. At most 64 of
// them resume at once, the rest in turn, and each needs one attempt.
func TestResumesArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const sessions, atOnce = 300, 64
		n := start(t, session.Limits{})
		a := &memLink{name: "a"}
		n.replaceLinks(a)
		n.many(sessions)
		n.set(func() { n.delay = func() time.Duration { return 400 * time.Millisecond } })
		opened := func() int {
			n.mu.Lock()
			defer n.mu.Unlock()
			return a.opened
		}
		before := opened()
		n.cut()
		time.Sleep(100 * time.Millisecond)
		if got := opened() - before; got > atOnce {
			t.Errorf("%d sessions resume at once", got)
		}
		time.Sleep(time.Minute)
		if got := opened() - before; got != sessions {
			t.Errorf("%d attempts to resume %d sessions", got, sessions)
		}
		for _, s := range n.client.Sessions() {
			if s.State != session.Attached || s.Resumes != 1 {
				t.Fatalf("a session is %s, resumed %d times", s.State, s.Resumes)
			}
		}
	})
}

// TestPacedResumesGoFaster has answers come quickly: then more and more resume at once.
func TestPacedResumesGoFaster(t *testing.T) {
	testutil.SkipRaced(t)
	synctest.Test(t, func(t *testing.T) {
		const sessions = 400
		n := start(t, session.Limits{})
		n.replaceLinks(&memLink{name: "a", latency: 50 * time.Millisecond})
		n.many(sessions)
		n.cut()
		time.Sleep(400 * time.Millisecond) // 64, 128 and the rest: three round trips
		for _, s := range n.client.Sessions() {
			if s.Resumes != 1 {
				t.Fatalf("a session was resumed %d times", s.Resumes)
			}
		}
	})
}

// TestFirstPingAfterLong has P5 send its first bytes after minutes, which makes P2 measure the
// path. The pong takes a round trip, counted from the ping on.
func TestFirstPingAfterLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.replaceLinks(&memLink{name: "a", latency: 400 * time.Millisecond})
		p1, p5, _ := n.established()
		time.Sleep(5 * time.Minute)
		_, _ = p5.Write([]byte("a"))
		_, _ = io.ReadFull(p1, make([]byte, 1))
		time.Sleep(10 * time.Second)
		if s := n.client.Sessions()[0]; s.Resumes != 0 {
			t.Errorf("resumed %d times", s.Resumes)
		}
	})
}
