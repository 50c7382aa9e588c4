package sim

import (
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ptthqd/pkg/link/linktest"
)

// Connections are opened all the while that the relay restarts, ten times, five of them without a word to its peers, when an
// idle server notices with its next heartbeat. None is refused. The server is farther away than the client, so it is back later.
func TestRelayRestartsRefuseNothing(t *testing.T) {
	const restarts = 10
	inBubble(t, func(t *testing.T, w *world) {
		w.quiet = true
		relay, _, _ := w.chain()
		w.network.Delay(func(p linktest.Packet) time.Duration {
			if between(relayHost, nasHost)(p) {
				return 150 * time.Millisecond
			}
			return 0
		})
		var opened, refused atomic.Int64
		var work sync.WaitGroup
		begin := func(i int) {
			opened.Add(1)
			work.Go(func() {
				conn := w.connect("echo")
				_, _ = conn.Write([]byte("hello"))
				_ = conn.CloseWrite()
				if got, err := io.ReadAll(conn); string(got) != "hello" {
					refused.Add(1)
					t.Logf("restart %d: %q, %v", i, got, err)
				}
			})
		}
		for i := range restarts {
			idle := i%4 > 1
			for range 20 {
				begin(i)
				time.Sleep(20 * time.Millisecond)
			}
			if idle {
				work.Wait()
				time.Sleep(time.Minute)
			}
			if i%2 == 0 {
				relay.stop()
			} else {
				w.network.Kill(relayHost, relay.stop)
			}
			relay = w.relay(relayHost, nas)
			for range 100 {
				begin(i)
				time.Sleep(20 * time.Millisecond)
			}
			work.Wait()
		}
		t.Logf("%d connections over %d restarts of the relay, %d refused", opened.Load(), restarts, refused.Load())
		if refused.Load() > 0 {
			t.Errorf("%d connections were refused", refused.Load())
		}
	})
}
