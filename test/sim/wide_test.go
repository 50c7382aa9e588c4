//go:build !race

package sim

import (
	"io"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ptthqd/pkg/link/linktest"
	"ptthqd/test/testutil"
)

// TestBulkLeavesRoom uploads over two links of 200 Mbit/s with 50 ms of queue each. The upload fills them, but makes no
// queue worth speaking of: what else is on its way hardly waits. With a window of twice what the path holds, or more, the round
// trips were 110 and 172 ms. Nor does the window hold up QUIC's start. The race detector makes it too slow.
func TestBulkLeavesRoom(t *testing.T) {
	for _, test := range []struct {
		name  string
		extra time.Duration // for each of the four hops of a round trip
		early float64       // MiB in the first two seconds
		least float64       // MiB/s of the upload after them
		most  time.Duration // round trip beside it
	}{
		{"40 ms", 0, 38, 21, 65 * time.Millisecond},
		{"100 ms", 15 * time.Millisecond, 20, 20, 150 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(t *testing.T, w *world) {
				w.quiet = true
				b := &linktest.Bottleneck{Rate: 200e6 / 8, Queue: 50 * time.Millisecond, Extra: test.extra}
				w.network.Drop(b.Drop)
				w.network.Delay(b.Delay)
				var arrived atomic.Int64
				w.target("127.0.0.1:9", func(conn *testutil.Conn) {
					_, _ = io.Copy(counter{&arrived}, conn)
					_ = conn.Close()
				})
				w.target("127.0.0.1:7", echo)
				w.relay(relayHost, nas)
				w.server(w.serverConfig(w.relays(relayHost), "7 laptop", "9 laptop"))
				w.client(w.clientConfig(w.relays(relayHost), "echo nas 7", "sink nas 9"))
				settle()
				small, bulk := w.connect("echo"), w.connect("sink")
				exchange(t, small, "first")

				until, done := time.Now().Add(5*time.Second), make(chan struct{})
				go func() {
					defer close(done)
					for chunk := make([]byte, 64<<10); time.Now().Before(until); {
						if _, err := bulk.Write(chunk); err != nil {
							t.Error(err)
							return
						}
					}
				}()
				time.Sleep(2 * time.Second)
				before, began := arrived.Load(), time.Now()
				var trips []time.Duration
				for time.Now().Before(until) {
					asked := time.Now()
					exchange(t, small, "?")
					trips = append(trips, time.Since(asked))
					time.Sleep(20 * time.Millisecond)
				}
				rate := float64(arrived.Load()-before) / time.Since(began).Seconds() / (1 << 20)
				slices.Sort(trips)
				median := trips[len(trips)/2]
				early := float64(before) / (1 << 20)
				t.Logf("%.1f MiB, then %.1f MiB/s, round trip beside it p50 %v, p99 %v, %d packets dropped", early, rate, median, trips[len(trips)*99/100], b.Drops)
				if early < test.early {
					t.Errorf("%.1f MiB in the first two seconds, want at least %v", early, test.early)
				}
				if rate < test.least {
					t.Errorf("%.1f MiB/s of 23.8, want at least %v", rate, test.least)
				}
				if median > test.most {
					t.Errorf("a round trip of %v beside the upload, want at most %v", median, test.most)
				}
				<-done
				_ = bulk.Close()
			})
		})
	}
}

// TestBulkStarts uploads over links that are new, and again. The window doesn't hold up QUIC's start: with one that grew once in two
// round trips, 2.0 and 2.7 MiB were delivered in 0.3 s. Nor does it let QUIC lose packets: they were 740 on the fast links
// with one of three times what the path holds, made fourfold at a time. On slow links some 30 to 50 are lost at some round trips and none at
// others, with any of these windows: that is QUIC's own start, and depends on the moment.
func TestBulkStarts(t *testing.T) {
	for _, test := range []struct {
		name         string
		rate         float64       // Mbit/s
		extra        time.Duration // for each of the four hops of a round trip
		fresh, again float64       // MiB in 0.3 s
		drops        int           // at most
	}{
		{"200 Mbit/s, 40 ms", 200, 0, 1.9, 4.2, 0},
		{"20 Mbit/s, 40 ms", 20, 0, 0.45, 0.5, 0}, // a new link tries parity, too
		{"20 Mbit/s, 52 ms", 20, 3 * time.Millisecond, 0.4, 0.4, 60},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(t *testing.T, w *world) {
				w.quiet = true
				b := &linktest.Bottleneck{Rate: test.rate * 1e6 / 8, Queue: 50 * time.Millisecond, Extra: test.extra}
				w.network.Drop(b.Drop)
				w.network.Delay(b.Delay)
				var arrived atomic.Int64
				w.target("127.0.0.1:9", func(conn *testutil.Conn) {
					_, _ = conn.Write([]byte("!"))
					_, _ = io.Copy(counter{&arrived}, conn)
					_ = conn.Close()
				})
				w.relay(relayHost, nas)
				w.server(w.serverConfig(w.relays(relayHost), "9 laptop"))
				w.client(w.clientConfig(w.relays(relayHost), "sink nas 9"))
				settle()
				for _, least := range []float64{test.fresh, test.again} {
					bulk := w.connect("sink")
					if _, err := io.ReadFull(bulk, make([]byte, 1)); err != nil { // it is open
						t.Fatal(err)
					}
					before, begun := arrived.Load(), time.Now()
					early := make(chan int64, 1)
					time.AfterFunc(300*time.Millisecond, func() { early <- arrived.Load() - before })
					for chunk := make([]byte, 64<<10); time.Since(begun) < 2*time.Second; {
						if _, err := bulk.Write(chunk); err != nil {
							t.Fatal(err)
						}
					}
					_ = bulk.CloseWrite()
					_, _ = io.Copy(io.Discard, bulk)
					mib := float64(<-early) / (1 << 20)
					t.Logf("%.2f MiB in 0.3 s, %d packets dropped", mib, b.Drops)
					if mib < least {
						t.Errorf("%.2f MiB in 0.3 s, want at least %v", mib, least)
					}
					_ = bulk.Close()
					time.Sleep(5 * time.Second)
				}
				if b.Drops > test.drops {
					t.Errorf("%d packets dropped, want at most %d", b.Drops, test.drops)
				}
			})
		})
	}
}

// counter counts what is written.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
