package session_test

import (
	"context"
	"errors"
	"io"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// stopped is how long a client or server may take to end its last sessions.
const stopped = 3 * time.Second

// clientStops are the states of a session whose client stops: how to get there, how the session
// ends, and what P1 sees.
var clientStops = []struct {
	name string
	make func(n *network) (p1 *memConn, done <-chan session.Summary)
	end  session.Outcome
	seen error // by P1
}{
	{"attached", func(n *network) (*memConn, <-chan session.Summary) {
		p1, _, done := n.established()
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"detached", func(n *network) (*memConn, <-chan session.Summary) {
		p1, _, done := n.established()
		n.setLinks()
		n.cut()
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"attached over a dead path", func(n *network) (*memConn, <-chan session.Summary) {
		p1, _, done := n.established()
		n.silence(n.links[0])
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"resuming over a dead path", func(n *network) (*memConn, <-chan session.Summary) {
		p1, _, done := n.established()
		n.silence(n.links[0])
		n.cut()
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"moving", func(n *network) (*memConn, <-chan session.Summary) {
		p1, _, done := n.established()
		a := n.links[0]
		n.replaceLinks(a, &memLink{name: "b", hole: true})
		n.client.Move(a, "closing")
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"held", func(n *network) (*memConn, <-chan session.Summary) {
		n.setLinks()
		p1, _, done := n.forward()
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"opening", func(n *network) (*memConn, <-chan session.Summary) {
		n.silence(n.links[0])
		p1, _, done := n.forward()
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"opening again", func(n *network) (*memConn, <-chan session.Summary) {
		n.silence(n.links[0])
		p1, _, done := n.forward()
		time.Sleep(time.Millisecond)
		n.cut()
		time.Sleep(time.Second)
		return p1, done
	}, session.OutcomeStopped, errReset},
	{"reset while detached", func(n *network) (*memConn, <-chan session.Summary) {
		p1, _, done := n.established()
		n.setLinks()
		n.cut()
		time.Sleep(time.Second)
		p1.reset()
		return p1, done
	}, session.OutcomeResetByP1, errReset},
	{"reset over a dead path", func(n *network) (*memConn, <-chan session.Summary) {
		p1, _, done := n.established()
		n.silence(n.links[0])
		p1.reset()
		time.Sleep(10 * time.Second)
		return p1, done
	}, session.OutcomeResetByP1, errReset},
	{"closed over a dead path", func(n *network) (*memConn, <-chan session.Summary) {
		p1, p5, done := n.established()
		_ = p5.CloseWrite()
		time.Sleep(time.Second)
		n.silence(n.links[0])
		_ = p1.CloseWrite()
		return p1, done
	}, session.OutcomeStopped, io.EOF},
}

// TestStopClient stops a client whose sessions are in all kinds of states.
func TestStopClient(t *testing.T) {
	for _, c := range clientStops {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				p1, done := c.make(n)
				time.Sleep(100 * time.Millisecond)
				begun := time.Now()
				n.stopClient()
				if d := time.Since(begun); d > stopped {
					t.Errorf("it took %v", d)
				}
				if sum := <-done; sum.Outcome != c.end {
					t.Errorf("summary %+v", sum)
				}
				if _, err := p1.Read(make([]byte, 1)); !errors.Is(err, c.seen) {
					t.Errorf("P1 saw %v", err)
				}
				// The server learns the rest from the end of the links.
				n.cut()
				time.Sleep(2 * time.Minute)
				if left := n.server.Sessions(); len(left) > 0 {
					t.Errorf("left at the server: %+v", left)
				}
			})
		})
	}
}

// stuck dials until it is told to stop.
func stuck(ctx context.Context) (session.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestStopServer stops a server; the client and P1 are told at once.
func TestStopServer(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(n *network) (p1 *memConn, done <-chan session.Summary)
		told time.Duration // when P1 has heard of it
	}{
		{"attached", func(n *network) (*memConn, <-chan session.Summary) {
			p1, _, done := n.established()
			return p1, done
		}, 0},
		{"opening", func(n *network) (*memConn, <-chan session.Summary) {
			return n.forwardTo(stuck)
		}, 0},
		{"detached", func(n *network) (*memConn, <-chan session.Summary) {
			p1, _, done := n.established()
			links := n.links
			n.setLinks()
			n.cut()
			time.AfterFunc(time.Second, func() { n.replaceLinks(links...) })
			return p1, done
		}, time.Second},
		{"opening, and detached", func(n *network) (*memConn, <-chan session.Summary) {
			p1, done := n.forwardTo(stuck)
			time.Sleep(time.Millisecond)
			links := n.links
			n.setLinks()
			n.cut()
			time.AfterFunc(time.Second, func() { n.replaceLinks(links...) })
			return p1, done
		}, time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				p1, done := c.make(n)
				time.Sleep(100 * time.Millisecond)
				begun := time.Now()
				n.stopServer()
				if d := time.Since(begun); d > stopped {
					t.Errorf("it took %v", d)
				}
				if _, err := p1.Read(make([]byte, 1)); !errors.Is(err, errReset) {
					t.Errorf("P1 saw %v", err)
				}
				sum := soon(t, time.Minute, done)
				if d := time.Since(begun); d > c.told {
					t.Errorf("P1 heard of it after %v: %+v", d, sum)
				}
			})
		})
	}
}

// TestStopServerOfHostileClients stops a server whose clients don't end their
// streams.
func TestStopServerOfHostileClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		for i := range 10 {
			if i == 5 {
				n.dialBy(stuck)
			}
			n.play("laptop", hello(byte(i)))
		}
		synctest.Wait()
		begun := time.Now()
		n.stopServer()
		if d := time.Since(begun); d > stopped {
			t.Errorf("it took %v", d)
		}
	})
}

// TestUnconfirmedReset resets a session at either end while it is detached, and
// it must not take the resume timeout for the other end to hear of it.
func TestUnconfirmedReset(t *testing.T) {
	for _, side := range []string{"P1", "P5"} {
		t.Run(side, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				p1, p5, done := n.established()
				_, _ = p1.Write([]byte("begin;"))
				_, _ = io.ReadFull(p5, make([]byte, 6))
				synctest.Wait() // the reply has come
				n.setLinks()
				n.cut()
				time.Sleep(20 * time.Second)
				gone, other := p1, p5
				if side == "P5" {
					gone, other = p5, p1
				}
				gone.reset()
				time.Sleep(20 * time.Second)
				begun := time.Now()
				n.setLinks("other")
				if _, err := other.Read(make([]byte, 1)); !errors.Is(err, errReset) {
					t.Errorf("the other side saw %v", err)
				}
				if d := time.Since(begun); d > 100*time.Millisecond {
					t.Errorf("it took %v", d)
				}
				want := session.Outcome("reset by " + side)
				if sum := soon(t, time.Second, done); sum.Outcome != want {
					t.Errorf("summary %+v", sum)
				}
				synctest.Wait()
				if ends := n.endings(); !slices.Equal(ends, []session.Outcome{want}) {
					t.Errorf("at the server: %v", ends)
				}
			})
		})
	}
}

// TestOpeningWithoutAnswer loses every answer to an opening: P1 is refused in
// time, and the server hears that nobody wants the session any more.
func TestOpeningWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{OpenTimeout: 10 * time.Second})
		n.silence(n.links[0])
		p1, p5, done := n.established()
		begun := time.Now()
		time.AfterFunc(15*time.Second, func() { n.setLinks("other") })
		if _, err := p1.Read(make([]byte, 1)); !errors.Is(err, errReset) {
			t.Errorf("P1 saw %v", err)
		}
		if d := time.Since(begun); d > 11*time.Second {
			t.Errorf("P1 saw it after %v", d)
		}
		if _, err := p5.Read(make([]byte, 1)); !errors.Is(err, errReset) {
			t.Errorf("P5 saw %v", err)
		}
		if d := time.Since(begun); d > 20*time.Second {
			t.Errorf("P5 saw it after %v", d)
		}
		if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeRefused || sum.Status != wire.StatusTimeout {
			t.Errorf("summary %+v", sum)
		}
	})
}

// TestAge counts the age of an opening from the first attempt whose outcome
// isn't known: a refusal is known.
func TestAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		var ages []time.Duration
		n.playRelay(func(l *memLink, inner wire.Message) *wire.Reply {
			ages = append(ages, inner.(*wire.Open).Age)
			switch l.name {
			case "refuses":
				return &wire.Reply{Status: wire.StatusNotConnected, Node: "relay"}
			case "loses":
				time.AfterFunc(100*time.Millisecond, func() { n.resetByRelay(wire.CodeLost) })
			}
			return nil
		})
		n.replaceLinks(
			&memLink{name: "refuses", latency: 100 * time.Millisecond},
			&memLink{name: "loses", latency: time.Second},
			&memLink{name: "works"},
		)
		p1, _, done := n.established()
		time.Sleep(time.Second)
		p1.reset()
		<-done
		if want := []time.Duration{0, 0, 100 * time.Millisecond}; !slices.Equal(ages, want) {
			t.Errorf("ages %v", ages)
		}
	})
}

// TestResumeCrossesReset resumes a session as unconfirmed at the moment at which it ends, as a
// client does that has lost the stream of its reset. Whichever comes first, the answer is that the
// session has ended, and not that there is a newer attempt.
func TestResumeCrossesReset(t *testing.T) {
	n := start(t, session.Limits{})
	n.decideBy(func(_, _ string) *session.Refusal { return nil })
	for i := range 2000 {
		ours, p5 := connPair(100)
		n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
		open, resume := hello(1), again(1, 2)
		open.Token[2], open.Token[3] = byte(i), byte(i>>8)
		resume.Token, resume.Unconfirmed = open.Token, true
		first := n.play("laptop", open)
		if status := first.status(); status != wire.StatusOpen {
			t.Fatalf("status %v of the opening", status)
		}
		var said sync.WaitGroup
		said.Go(func() {
			first.frame(wire.Frame{Kind: wire.FrameReset})
			_ = first.st.CloseWrite()
		})
		for range i % 50 {
			runtime.Gosched()
		}
		second := n.play("laptop", resume)
		if status := second.status(); status != wire.StatusComplete {
			t.Fatalf("status %v of the resume, at round %d", status, i)
		}
		said.Wait()
		second.st.Reset(wire.CodeLost)
		_ = p5.Close()
	}
}
