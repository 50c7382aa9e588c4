package session_test

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// TestBadGrantWhileSending ends sessions, by a grant that can't be, at the very
// moment that they send.
func TestBadGrantWhileSending(t *testing.T) {
	n := start(t, session.Limits{})
	n.capacity = 2000
	for range 50 {
		n.setLinks()
		p1, done := n.forwardVia("evil")
		for range 15 { // each a piece of its own
			_, _ = p1.Write(make([]byte, 1000))
			time.Sleep(20 * time.Microsecond)
		}
		n.setLinks("relay")
		p := <-n.strangers
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{p.st}) })
		p.grant(wire.Granted{Version: wire.Version, Received: 1 << 40, Limit: 1 << 41})
		if sum := <-done; sum.Outcome != session.OutcomeProtocol {
			t.Fatalf("summary %+v", sum)
		}
		p.st.Reset(wire.CodeLost)
		reading.Wait()
	}
}

// TestHostileReply has a server answer an opening as no server may. P1 is reset
// within the time that an opening has, and nobody else notices.
func TestHostileReply(t *testing.T) {
	granted := func(change func(g *wire.Granted)) func(p *peer) {
		return func(p *peer) {
			g := opened()
			change(&g)
			p.grant(g)
		}
	}
	for _, c := range []struct {
		name  string
		reply func(p *peer)
		end   session.Outcome
	}{
		{"not a message", func(p *peer) { p.say([]byte{9, 9, 9, 9}) }, session.OutcomeRefused},
		{"not a reply", func(p *peer) { p.say(wire.Append(nil, new(wire.Control))) }, session.OutcomeRefused},
		{"half a reply", func(p *peer) { p.say([]byte{6, 20, 1}) }, session.OutcomeRefused},
		{"a reply without end", func(p *peer) { p.say([]byte{6, 0xff, 0xff, 0xff, 0xff}) }, session.OutcomeRefused},
		{"silence", func(*peer) {}, session.OutcomeRefused},
		{"an end", func(p *peer) { _ = p.st.CloseWrite() }, session.OutcomeRefused},
		{"a grant of nothing", func(p *peer) { p.reply(wire.StatusOpen, "", nil) }, session.OutcomeRefused},
		{"a completion of nothing", func(p *peer) { p.reply(wire.StatusComplete, "", nil) }, session.OutcomeRefused},
		{"a grant that isn't one", func(p *peer) {
			p.say(wire.Append(nil, &wire.Reply{Status: 200, Node: "evil", Inner: wire.Append(nil, new(wire.Control))}))
		}, session.OutcomeRefused},
		{"an unknown refusal", func(p *peer) { p.reply(299, "", nil) }, session.OutcomeRefused},
		{"a completion", func(p *peer) { g := opened(); p.reply(wire.StatusComplete, "", &g) }, session.OutcomeProtocol},
		{"a reset", func(p *peer) { g := opened(); g.Reset = true; p.reply(wire.StatusComplete, "", &g) }, session.OutcomeResetByP5},
		{"received what wasn't sent", granted(func(g *wire.Granted) { g.Received = 6 }), session.OutcomeProtocol},
		{"delivered what wasn't sent", granted(func(g *wire.Granted) { g.Received, g.Acked = 6, 6 }), session.OutcomeProtocol},
		{"allows less than before", granted(func(g *wire.Granted) { g.Limit = 4 }), session.OutcomeProtocol},
		{"allows more than any window", granted(func(g *wire.Granted) { g.Limit = 2*wire.MaxWindow + 1 }), session.OutcomeProtocol},
		{"frames before the reply", func(p *peer) { p.data([]byte("hello")) }, session.OutcomeRefused},
		{"resets it for good", func(p *peer) { p.st.Reset(wire.CodeRevoked) }, session.OutcomeRevoked},
		{"resets it for our fault", func(p *peer) { p.st.Reset(wire.CodeProtocol) }, session.OutcomeProtocol},
		{"resets it", func(p *peer) { p.st.Reset(wire.CodeLost) }, session.OutcomeRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				b := newBystander(n)
				p1, done := n.forwardVia("evil")
				_, _ = p1.Write([]byte("hello"))
				begun := time.Now()
				seen := make(chan time.Duration, 1)
				go func() {
					_ = howEnded(p1)
					seen <- time.Since(begun)
				}()
				over := make(chan struct{})
				var playing sync.WaitGroup
				attempts := 0
				playing.Go(func() {
					for {
						select {
						case p := <-n.strangers:
							attempts++
							synctest.Wait()
							c.reply(p)
							playing.Go(func() { _ = p.end(); p.st.Reset(wire.CodeLost) })
						case <-over:
							return
						}
					}
				})
				if d := <-seen; d > 31*time.Second {
					t.Errorf("P1 was reset after %v", d)
				}
				if sum := soon(t, time.Minute, done); sum.Outcome != c.end {
					t.Errorf("summary %+v", sum)
				}
				close(over)
				playing.Wait()
				if attempts > 200 {
					t.Errorf("%d attempts", attempts)
				}
				b.check(t)
			})
		})
	}
}

// TestServerThatLoses grants each attempt and loses its stream at once: P2 goes
// on, but not as fast as it can.
func TestServerThatLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, done := n.forwardVia("evil")
		attempts := 0
		over := make(chan struct{})
		var playing sync.WaitGroup
		playing.Go(func() {
			for {
				select {
				case p := <-n.strangers:
					attempts++
					p.grant(opened())
					synctest.Wait() // it has been read
					p.st.Reset(wire.CodeLost)
				case <-over:
					return
				}
			}
		})
		time.Sleep(20 * time.Second)
		close(over)
		playing.Wait()
		if attempts < 5 || attempts > 200 {
			t.Errorf("%d attempts", attempts)
		}
		p1.reset()
		n.stopClient()
		<-done
	})
}
