package session_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// hostile makes a network whose server dials P5s that nobody minds.
func hostile(t *testing.T, limits session.Limits) *network {
	n := start(t, limits)
	n.dial = func(context.Context) (session.Conn, error) {
		ours, _ := connPair(n.conns)
		return ours, nil
	}
	return n
}

// TestTokenUsedAgain opens sessions under tokens whose tombstones expire at
// that very moment.
func TestTokenUsedAgain(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // of those who wake at the same time, the last one runs first
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		n.decide = func(string, string) *session.Refusal {
			n.mu.Unlock()
			time.Sleep(time.Second)
			n.mu.Lock()
			return nil
		}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				for range 4 {
					p := n.play("laptop", hello(byte(i)))
					if p.status() == wire.StatusOpen {
						p.frame(wire.Frame{Kind: wire.FrameReset})
					}
					_ = p.end()
					p.st.Reset(wire.CodeLost)
					time.Sleep(2*time.Minute - time.Second)
				}
			})
		}
		all.Wait()
		time.Sleep(10 * time.Minute)
		if left := n.server.Sessions(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// TestEndedWhileOpening withdraws rights while sessions are opened: whoever asks
// hears something, and nothing is left.
func TestEndedWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				for j := range 500 {
					tip := hello(byte(i))
					tip.Token[2], tip.Token[3] = byte(j), byte(j>>8)
					p := n.play("laptop", tip)
					_ = p.st.SetReadDeadline(time.Now().Add(time.Minute))
					if _, _, err := p.answer(); errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("no answer")
					}
					p.st.Reset(wire.CodeRevoked)
				}
			})
		}
		all.Go(func() {
			for range 20000 {
				n.server.End(func(session.Info) bool { return true }, session.EndRevoked)
			}
		})
		all.Wait()
		synctest.Wait()
		if left := n.server.Sessions(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// TestAttemptsAtOnce brings two attempts at the same moment: the higher one has
// the session, whichever comes first.
func TestAttemptsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		for i := range 1000 {
			first, second := hello(0), hello(0)
			for _, m := range []*wire.Open{first, second} {
				m.Token[2], m.Token[3] = byte(i), byte(i>>8)
			}
			second.Attempt = 2
			one, two := n.play("laptop", first), n.play("laptop", second)
			if status := two.status(); status != wire.StatusOpen {
				t.Fatalf("the second attempt: %v", status)
			}
			two.data([]byte("hello"))
			if status := one.status(); status == wire.StatusOpen {
				_ = one.end()
			}
			two.frame(wire.Frame{Kind: wire.FramePing})
			if _, _, err := two.until(wire.FramePong); err != nil {
				t.Fatalf("the second attempt: %v", err)
			}
			one.st.Reset(wire.CodeLost)
			two.st.Reset(wire.CodeRevoked)
		}
	})
}

// TestWithdrawnBetweenAttempts refuses the second attempt of an opening: what
// the first has opened must not stay.
func TestWithdrawnBetweenAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		p := n.play("laptop", hello(1))
		_ = p.status()
		p.st.Reset(wire.CodeLost)
		synctest.Wait()
		n.decide = func(string, string) *session.Refusal {
			return &session.Refusal{Status: wire.StatusNotAllowed, Text: "not any more"}
		}
		second := hello(1)
		second.Attempt = 2
		p = n.play("laptop", second)
		if status := p.status(); status != wire.StatusNotAllowed {
			t.Errorf("the second attempt: %v", status)
		}
		p.st.Reset(wire.CodeLost)
		synctest.Wait()
		if left := n.server.Sessions(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}
