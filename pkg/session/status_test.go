package session_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// TestRefusedOpening goes through what P2 does with a refusal of an opening, by
// the relay and by the server.
func TestRefusedOpening(t *testing.T) {
	for _, c := range []struct {
		status    wire.Status
		node      string
		elsewhere bool // it tries the other link
	}{
		{wire.StatusMalformed, "relay", false},
		{wire.StatusNotAllowed, "relay", true},
		{wire.StatusTooMany, "relay", true},
		{wire.StatusNotConnected, "relay", true},
		{wire.StatusNotAllowed, "nas", false},
		{wire.StatusTooMany, "nas", false},
		{wire.StatusNoSession, "nas", false},
		{wire.StatusRefused, "nas", false},
		{wire.StatusTimeout, "nas", false},
		{wire.StatusVersion, "nas", false},
	} {
		for _, both := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v by %s, by both %v", c.status, c.node, both), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := start(t, session.Limits{})
					n.setLinks("a", "b")
					n.playRelay(func(l *memLink, _ wire.Message) *wire.Reply {
						if !both && l.name == "b" {
							return nil
						}
						return &wire.Reply{Status: c.status, Node: c.node, Text: "no"}
					})
					p1, accepted, done := n.forward()
					_, _ = p1.Write([]byte("hello"))
					if c.elsewhere && !both {
						p5 := <-accepted
						if _, err := io.ReadFull(p5, make([]byte, 5)); err != nil {
							t.Errorf("P5 read %v", err)
						}
						p1.reset()
						if sum := soon(t, time.Minute, done); sum.Relay != "b" || sum.Status != wire.StatusOpen {
							t.Errorf("summary %+v", sum)
						}
						return
					}
					sum := soon(t, time.Second, done)
					if sum.Outcome != session.OutcomeRefused || sum.Status != c.status || sum.Node != c.node || sum.Text != "no" {
						t.Errorf("summary %+v", sum)
					}
					if err := howEnded(p1); !errors.Is(err, errReset) {
						t.Errorf("P1 saw %v", err)
					}
					tries := n.links[0].opened + n.links[1].opened
					if want := map[bool]int{true: 2, false: 1}[c.elsewhere]; tries != want {
						t.Errorf("%d attempts", tries)
					}
				})
			})
		}
	}
}

// TestRefusedResume goes through what P2 does with a refusal of a resume: it
// ends the session, or tries again until it is accepted.
func TestRefusedResume(t *testing.T) {
	for _, c := range []struct {
		status wire.Status
		node   string
		end    session.Outcome // empty if it goes on
	}{
		{wire.StatusMalformed, "relay", session.OutcomeProtocol},
		{wire.StatusMalformed, "nas", session.OutcomeProtocol},
		{wire.StatusVersion, "nas", session.OutcomeProtocol},
		{wire.StatusNoSession, "nas", session.OutcomeRestarted},
		{wire.StatusNotAllowed, "nas", session.OutcomeRevoked},
		{wire.StatusNotAllowed, "relay", session.OutcomeRevoked},
		{wire.StatusNotNewest, "nas", ""},
		{wire.StatusTooMany, "nas", ""},
		{wire.StatusTooMany, "relay", ""},
		{wire.StatusRefused, "nas", ""},
		{wire.StatusNotConnected, "relay", ""},
		{wire.StatusTimeout, "nas", ""},
	} {
		t.Run(fmt.Sprintf("%v by %s", c.status, c.node), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				p1, p5, done := n.established()
				refusals := 0
				n.playRelay(func(*memLink, wire.Message) *wire.Reply {
					if refusals++; refusals > 5 {
						return nil
					}
					return &wire.Reply{Status: c.status, Node: c.node}
				})
				n.cut()
				if c.end != "" {
					if err := howEnded(p1); !errors.Is(err, errReset) {
						t.Errorf("P1 saw %v", err)
					}
					if sum := soon(t, time.Second, done); sum.Outcome != c.end || refusals != 1 {
						t.Errorf("after %d refusals: %+v", refusals, sum)
					}
					return
				}
				if err := exchange(p1, p5, []byte("hello")); err != nil {
					t.Error(err)
				}
				_ = p5.CloseWrite()
				if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed || sum.Resumes != 1 || sum.Duration > 10*time.Second {
					t.Errorf("summary %+v", sum)
				}
			})
		})
	}
}

// TestExcludedRelay refuses to resume at one of two relays, whose config has
// changed: the other has the session from then on.
func TestExcludedRelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.setLinks("a", "b")
		p1, p5, done := n.established()
		n.refuseOn("a", wire.StatusNotAllowed)
		for range 5 {
			n.cut()
			time.Sleep(5 * time.Second)
			if all := n.client.Sessions(); all[0].Relay != "b" || all[0].State != session.Attached {
				t.Errorf("%+v", all[0])
			}
		}
		if n.links[0].opened != 2 { // the opening, and one that was refused
			t.Errorf("%d attempts over a", n.links[0].opened)
		}
		both(t, p1, p5, 1000, 1000)
		soon(t, time.Minute, done)
	})
}

// TestHeld holds P1 for a while when there is no link at all.
func TestHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.setLinks()
		p1, accepted, done := n.forward()
		_, _ = p1.Write([]byte("hello"))
		time.Sleep(4 * time.Second)
		n.setLinks("a")
		if _, err := io.ReadFull(<-accepted, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		p1.reset()
		<-done

		n.setLinks()
		begun := time.Now()
		p1, _, done = n.forward()
		if err := howEnded(p1); !errors.Is(err, errReset) {
			t.Errorf("P1 saw %v", err)
		}
		if d := time.Since(begun); d != 5*time.Second {
			t.Errorf("P1 was held for %v", d)
		}
		if sum := soon(t, time.Second, done); sum.Outcome != session.OutcomeUnattached || sum.Status != wire.StatusNotConnected {
			t.Errorf("summary %+v", sum)
		}
	})
}

// TestServerRestarted replaces the server by one that knows nothing: P1 hears of it at once.
func TestServerRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, _, done := n.established()
		config := session.ServerConfig{
			Node:   "nas",
			Decide: func(string, string) (session.Dial, *session.Refusal) { return n.dial, nil },
		}
		next := session.NewServer(config)
		stop := running(next.Run)
		defer stop()
		n.server, next = next, n.server
		n.cut()
		if err := howEnded(p1); !errors.Is(err, errReset) {
			t.Errorf("P1 saw %v", err)
		}
		if sum := soon(t, time.Second, done); sum.Outcome != session.OutcomeRestarted {
			t.Errorf("summary %+v", sum)
		}
		n.server = next
	})
}

// TestLostEnd loses the stream after both directions have ended, and before P2
// has seen the stream's end: a tombstone tells it that all is well, and so does a
// server that remembers nothing, as P2 knows enough.
func TestLostEnd(t *testing.T) {
	for _, forgotten := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{})
			n.replaceLinks(&memLink{name: "a", latency: 100 * time.Millisecond})
			p1, p5, done := n.established()
			both(t, p1, p5, 1000, 1000)
			asked := false
			n.playRelay(func(*memLink, wire.Message) *wire.Reply {
				asked = true
				if forgotten {
					return &wire.Reply{Status: wire.StatusNoSession, Node: "nas"}
				}
				return nil
			})
			for n.server.Sessions()[0].State != session.Closing {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(50 * time.Millisecond) // its end is on its way
			n.cut()
			if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed {
				t.Errorf("summary %+v", sum)
			}
			if !asked {
				t.Error("the stream's end had come before")
			}
		})
	}
}

// TestRevoked withdraws a right, while the session is attached and while it is detached.
func TestRevoked(t *testing.T) {
	for _, detached := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{})
			p1, p5, done := n.established()
			links := n.links
			if detached {
				n.replaceLinks()
				n.cut()
				time.Sleep(time.Second)
			}
			n.decideBy(func(string, string) *session.Refusal {
				return &session.Refusal{Status: wire.StatusNotAllowed, Text: "not any more"}
			})
			n.server.End(func(i session.Info) bool { return i.Client == "laptop" && i.Target == ":22" }, session.OutcomeRevoked)
			if err := howEnded(p5); !errors.Is(err, errReset) {
				t.Errorf("P5 saw %v", err)
			}
			if left := n.server.Sessions(); len(left) > 0 {
				t.Errorf("left: %+v", left)
			}
			n.replaceLinks(links...)
			if err := howEnded(p1); !errors.Is(err, errReset) {
				t.Errorf("P1 saw %v", err)
			}
			if sum := soon(t, time.Second, done); sum.Outcome != session.OutcomeRevoked {
				t.Errorf("summary %+v", sum)
			}
		})
	}
}

// TestRemoved ends the sessions of a mapping that is gone.
func TestRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, p5, done := n.established()
		n.client.End(func(i session.Info) bool { return i.Mapping == "other" }, session.OutcomeRemoved)
		_, _ = p1.Write([]byte("hello"))
		if _, err := io.ReadFull(p5, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		n.client.End(func(i session.Info) bool { return i.Mapping == "m" }, session.OutcomeRemoved)
		for _, c := range []*memConn{p1, p5} {
			if err := howEnded(c); !errors.Is(err, errReset) {
				t.Errorf("an end saw %v", err)
			}
		}
		if sum := soon(t, time.Second, done); sum.Outcome != session.OutcomeRemoved {
			t.Errorf("summary %+v", sum)
		}
		synctest.Wait()
		if ends := n.endings(); !slices.Equal(ends, []session.Outcome{session.OutcomeRemoved}) {
			t.Errorf("at the server: %v", ends)
		}
	})
}

// TestSessionsLimit reaches the limit on the sessions of a client's process.
func TestSessionsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{Sessions: 1})
		p1, _, _ := n.established()
		other, _, done := n.forward()
		if sum := soon(t, time.Second, done); sum.Status != wire.StatusTooMany || sum.Outcome != session.OutcomeRefused {
			t.Errorf("summary %+v", sum)
		}
		if err := howEnded(other); !errors.Is(err, errReset) {
			t.Errorf("P1 saw %v", err)
		}
		p1.reset()
	})
}

// TestSessionsPerPeerLimit reaches the limits on the sessions of one client at a server, and on all
// of the server's sessions.
func TestSessionsPerPeerLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{SessionsPerPeer: 3, Sessions: 5})
		var all []*peer
		for i, c := range []struct {
			client string
			want   wire.Status
		}{
			{"mallory", wire.StatusOpen},
			{"mallory", wire.StatusOpen},
			{"mallory", wire.StatusOpen},
			{"mallory", wire.StatusTooMany},
			{"alice", wire.StatusOpen},
			{"bob", wire.StatusOpen},
			{"bob", wire.StatusTooMany},
		} {
			p := n.play(c.client, hello(byte(i)))
			if status := p.status(); status != c.want {
				t.Errorf("session %d: %v", i, status)
			}
			all = append(all, p)
		}
		for _, p := range all {
			p.st.Reset(wire.CodeRevoked)
		}
		synctest.Wait()
		p := n.play("mallory", hello(100))
		if status := p.status(); status != wire.StatusOpen {
			t.Errorf("when all have ended: %v", status)
		}
		p.st.Reset(wire.CodeRevoked)
	})
}

// TestDetachedLimit reaches the limit on the detached sessions of a client. Each session is
// detached and resumed, which must be counted right.
func TestDetachedLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{DetachedPerPeer: 3})
		for i := range 10 {
			for attempt := range uint64(3) {
				var tip wire.Message = hello(byte(i))
				if attempt > 0 {
					tip = again(byte(i), attempt+1)
				}
				p := n.play("mallory", tip)
				if status := p.status(); status != wire.StatusOpen && i < 3 {
					t.Errorf("session %d: %v", i, status)
				}
				p.st.Reset(wire.CodeLost)
				synctest.Wait()
			}
		}
		if left := len(n.server.Sessions()); left != 3 {
			t.Errorf("%d sessions are left", left)
		}
		time.Sleep(2 * time.Minute)
		if left := len(n.server.Sessions()); left != 0 {
			t.Errorf("%d sessions are left after the resume timeout", left)
		}
	})
}

// TestTombstonesLimit reaches the limit on the tombstones of a client.
func TestTombstonesLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{Tombstones: 3})
		for i := range 10 {
			p := n.play("mallory", hello(byte(i)))
			_ = p.status()
			p.frame(wire.Frame{Kind: wire.FrameReset})
			_ = p.end()
			p.st.Reset(wire.CodeLost)
			synctest.Wait()
			time.Sleep(time.Second)
		}
		for i := range 10 {
			want := wire.StatusNoSession
			if i >= 7 {
				want = wire.StatusComplete
			}
			p := n.play("mallory", again(byte(i), 2))
			if status := p.status(); status != want {
				t.Errorf("session %d: %v", i, status)
			}
			p.st.Reset(wire.CodeLost)
		}
		time.Sleep(2*time.Minute - 1500*time.Millisecond)
		for i := range 10 {
			want := wire.StatusNoSession
			if i == 9 { // ended last
				want = wire.StatusComplete
			}
			p := n.play("mallory", again(byte(i), 3))
			if status := p.status(); status != want {
				t.Errorf("session %d, later: %v", i, status)
			}
			p.st.Reset(wire.CodeLost)
		}
	})
}

// TestGrantedTimeout detaches a session for as long as the shorter of the two
// timeouts allows, and for longer.
func TestGrantedTimeout(t *testing.T) {
	for _, c := range []struct {
		asked, granted time.Duration
	}{{time.Minute, 3 * time.Minute}, {3 * time.Minute, time.Minute}} {
		for _, in := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				n.server.Set(session.Limits{}, c.granted)
				p1, p2 := connPair(n.conns)
				ours, p5 := connPair(n.conns)
				n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
				done := make(chan session.Summary, 1)
				go func() {
					done <- *n.client.Forward(context.Background(), p2, &session.Request{
						Server: "nas", Target: ":22", Source: "x", ResumeTimeout: c.asked,
					})
				}()
				_, _ = p1.Write([]byte("hello"))
				_, _ = io.ReadFull(p5, make([]byte, 5))
				synctest.Wait()
				n.setLinks()
				n.cut()
				if in {
					time.Sleep(59 * time.Second)
				} else {
					time.Sleep(61 * time.Second)
				}
				n.setLinks("a")
				if in {
					both(t, p1, p5, 1000, 1000)
				}
				want := map[bool]session.Outcome{true: session.OutcomeClosed, false: session.OutcomeExpired}[in]
				if sum := soon(t, time.Minute, done); sum.Outcome != want {
					t.Errorf("asked %v, granted %v: %+v", c.asked, c.granted, sum)
				}
				synctest.Wait()
				if ends := n.endings(); !slices.Equal(ends, []session.Outcome{want}) {
					t.Errorf("at the server: %v", ends)
				}
			})
		}
	}
}

// TestRefusedAfterLoss refuses the second attempt of an opening when the first
// has been lost: P1 hears of it at once, and why, while the server, which may have
// opened the session, is still to be told.
func TestRefusedAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.silence(n.links[0]) // what the server says doesn't arrive
		p1, accepted, done := n.forward()
		p5 := <-accepted
		n.playRelay(func(*memLink, wire.Message) *wire.Reply {
			return &wire.Reply{Status: wire.StatusNotConnected, Node: "relay", Text: "gone"}
		})
		n.setLinks("b")
		begun := time.Now()
		n.cut()
		if err := howEnded(p1); !errors.Is(err, errReset) {
			t.Errorf("P1 saw %v", err)
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("P1 saw it after %v", d)
		}
		time.Sleep(5 * time.Second)
		n.playRelay(nil)
		if err := howEnded(p5); !errors.Is(err, errReset) {
			t.Errorf("P5 saw %v", err)
		}
		if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeRefused || sum.Status != wire.StatusNotConnected || sum.Text != "gone" {
			t.Errorf("summary %+v", sum)
		}
	})
}

// TestCounts compares the counters, for which nothing is copied, with what happens to a session.
func TestCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		link := n.links[0]
		want := func(when string, sessions, detached int, carries, moving bool) {
			t.Helper()
			synctest.Wait()
			for who, is := range map[string][2]int{
				"client": {n.client.Count(), n.client.Detached()}, "server": {n.server.Count(), n.server.Detached()},
			} {
				if is != [2]int{sessions, detached} {
					t.Errorf("%s: the %s counts %d, want %d and %d detached", when, who, is, sessions, detached)
				}
			}
			if n.client.Carries(link) != carries {
				t.Errorf("%s: the link carries a session: %t", when, !carries)
			}
			if n.client.Moving() != moving || n.server.Moving() != moving {
				t.Errorf("%s: moving is %t and %t", when, n.client.Moving(), n.server.Moving())
			}
		}
		want("before", 0, 0, false, false)
		p1, p5, done := n.established()
		want("at first", 1, 0, true, true)
		time.Sleep(2 * time.Second)
		want("idle", 1, 0, true, false)
		go func() { _, _ = p1.Write([]byte("x")) }()
		_, _ = p5.Read(make([]byte, 1))
		want("in use", 1, 0, true, true)
		n.setLinks()
		n.cut()
		time.Sleep(2 * time.Second)
		want("cut off", 1, 1, false, false)
		n.client.SetLimits(session.Limits{Sessions: 1})
		n.setLinks("other")
		time.Sleep(5 * time.Second)
		want("resumed", 1, 0, false, false)
		if !n.client.Carries(n.links[0]) {
			t.Error("the other link carries nothing")
		}
		if _, refused := n.forwardVia("nas"); (<-refused).Status != wire.StatusTooMany {
			t.Error("a second session beyond the new limit")
		}
		_ = p1.Close()
		_ = p5.Close()
		<-done
		want("after", 0, 0, false, false)
	})
}
