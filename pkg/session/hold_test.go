package session_test

import (
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// TestHold lets the last relay that is asked hold an opening for its server, and no other.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.setLinks("a", "b")
		n.playRelay(func(l *memLink, _ wire.Message) *wire.Reply {
			if l.name == "a" {
				return &wire.Reply{Status: wire.StatusNotConnected, Node: "relay"}
			}
			return nil
		})
		p1, accepted, done := n.forward()
		<-accepted
		time.Sleep(time.Second)
		var a, b []wire.Connect
		n.set(func() { a, b = n.links[0].tips, n.links[1].tips })
		if len(a) != 1 || a[0].Hold || len(b) != 1 || !b[0].Hold {
			t.Errorf("a was asked %+v, b %+v", a, b)
		}
		n.cut()
		time.Sleep(time.Second)
		n.set(func() {
			for _, tip := range slices.Concat(n.links[0].tips[1:], n.links[1].tips[1:]) {
				if tip.Hold {
					t.Error("a resume asks to be held")
				}
			}
		})
		p1.reset()
		<-done
	})
}

// TestServerIsStopping opens a session at a server that is about to stop and refuses it. The client
// tries again until a server takes the session, or until its open timeout is over.
func TestServerIsStopping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		begun := time.Now()
		stopping := func(*memLink, wire.Message) *wire.Reply {
			if time.Since(begun) > 6*time.Second {
				return nil
			}
			return &wire.Reply{Status: wire.StatusNotConnected, Node: "nas", Text: "the server is stopping"}
		}
		n.playRelay(stopping)
		p1, accepted, done := n.forward()
		_, _ = p1.Write([]byte("hello"))
		if _, err := io.ReadFull(<-accepted, make([]byte, 5)); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 9*time.Second {
			t.Errorf("it took %v", took)
		}
		p1.reset()
		<-done

		// Not for ever: then P1 hears what the server has said.
		begun = time.Now().Add(time.Hour)
		p1, _, done = n.forward()
		if err := howEnded(p1); !errors.Is(err, errReset) {
			t.Errorf("P1 saw %v", err)
		}
		if sum := soon(t, time.Second, done); sum.Outcome != session.OutcomeRefused || sum.Status != wire.StatusNotConnected || sum.Text != "the server is stopping" {
			t.Errorf("summary %+v", sum)
		}
		if took := time.Since(begun.Add(-time.Hour)); took > 31*time.Second {
			t.Errorf("P1 was held for %v", took)
		}
	})
}
