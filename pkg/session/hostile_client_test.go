package session_test

import (
	"context"
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
