//go:build !race

package sim

import (
	"io"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ptthqd/pkg/link/linktest"
	"ptthqd/test/testutil"
)

// TestBulkOverLossyPaths uploads over two links of 200 Mbit/s that lose packets without being full. Without parity the rates are
// 0.8 and 1.2 MiB/s, as NewReno takes each loss for a full queue. The race detector makes it too slow.
func TestBulkOverLossyPaths(t *testing.T) {
	for _, test := range []struct {
		name  string
		extra time.Duration // for each of the four hops of a round trip
		loss  float64       // of each link, each way
		least float64       // MiB/s, the median of a few runs
	}{
		{"40 ms, 1 %", 0, 0.01, 1.5},
		{"100 ms, 0.1 %", 15 * time.Millisecond, 0.001, 6},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var rates []float64
			for seed := range uint64(3) {
				rates = append(rates, lossyUpload(t, seed, test.extra, test.loss))
			}
			slices.Sort(rates)
			t.Logf("%.1f MiB/s", rates)
			if median := rates[len(rates)/2]; median < test.least {
				t.Errorf("%.1f MiB/s, want at least %v", median, test.least)
			}
		})
	}
}

// lossyUpload uploads for ten seconds, and returns the rate in MiB/s.
func lossyUpload(t *testing.T, seed uint64, extra time.Duration, loss float64) (rate float64) {
	inBubble(t, func(t *testing.T, w *world) {
		w.quiet = true
		b := &linktest.Bottleneck{Rate: 200e6 / 8, Queue: 50 * time.Millisecond, Extra: extra}
		random := rand.New(rand.NewPCG(seed, 0))
		w.network.Drop(func(p linktest.Packet) bool { return b.Drop(p) || random.Float64() < loss })
		w.network.Delay(b.Delay)
		var arrived atomic.Int64
		w.target("127.0.0.1:9", func(conn *testutil.Conn) {
			_, _ = io.Copy(counter{&arrived}, conn)
			_ = conn.Close()
		})
		w.relay(relayHost, nas)
		w.server(w.serverConfig(w.relays(relayHost), "9 laptop"))
		w.client(w.clientConfig(w.relays(relayHost), "sink nas 9"))
		settle()
		bulk := w.connect("sink")
		began := time.Now()
		for chunk := make([]byte, 64<<10); time.Since(began) < 10*time.Second; {
			if _, err := bulk.Write(chunk); err != nil {
				t.Error(err)
				break
			}
		}
		rate = float64(arrived.Load()) / time.Since(began).Seconds() / (1 << 20)
		_ = bulk.Close()
	})
	return rate
}
