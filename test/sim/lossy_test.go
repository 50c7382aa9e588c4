//go:build !race

package sim

import (
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ptthqd/pkg/link/linktest"
	"ptthqd/test/testutil"
)

// TestBulkOverLossyPaths uploads over two links that lose packets without being full. Without parity
// the first two rates are 0.8 and 1.2 MiB/s, as NewReno takes each loss for a full queue. The race
// detector makes it too slow.
func TestBulkOverLossyPaths(t *testing.T) {
	for _, test := range []struct {
		name  string
		mbit  float64
		extra time.Duration // for each of the four hops of a round trip
		loss  float64       // of each link, each way
		burst float64       // packets that are lost in a row, on average
		least float64       // MiB/s, the median of a few runs
	}{
		{"40 ms, 1 %", 200, 0, 0.01, 1, 9},
		{"40 ms, 3 %", 200, 0, 0.03, 1, 4.5},
		{"40 ms, 1 % in bursts", 200, 0, 0.01, 3, 2},
		{"100 ms, 0.1 %", 200, 15 * time.Millisecond, 0.001, 1, 6},
		{"20 ms, 5 % of 50 Mbit/s", 50, -5 * time.Millisecond, 0.05, 1, 2.8},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var rates []float64
			for seed := range uint64(3) {
				path := &linktest.Bottleneck{Rate: test.mbit * 1e6 / 8, Queue: 50 * time.Millisecond, Extra: test.extra}
				rates = append(rates, lossyUpload(t, path, losses(seed, test.loss, test.burst)))
			}
			slices.Sort(rates)
			t.Logf("%s: %.1f MiB/s", test.name, rates)
			if median := rates[len(rates)/2]; median < test.least {
				t.Errorf("%.1f MiB/s, want at least %v", median, test.least)
			}
		})
	}
}

// losses returns a function that loses a share of the packets of each way, in runs of so many on
// average (the model of Gilbert and Elliott).
func losses(seed uint64, share, burst float64) func(linktest.Packet) bool {
	random := rand.New(rand.NewPCG(seed, 0))
	bad := make(map[[2]netip.Addr]bool)
	enter, leave := share/burst/(1-share), 1/burst
	return func(p linktest.Packet) bool {
		way := [2]netip.Addr{p.From.Addr(), p.To.Addr()}
		if bad[way] {
			bad[way] = random.Float64() >= leave
		} else {
			bad[way] = random.Float64() < enter
		}
		return bad[way]
	}
}

// lossyUpload uploads for ten seconds, and returns the rate in MiB/s.
func lossyUpload(t *testing.T, path *linktest.Bottleneck, lost func(linktest.Packet) bool) (rate float64) {
	inBubble(t, func(t *testing.T, w *world) {
		w.quiet = true
		w.network.Drop(func(p linktest.Packet) bool { return path.Drop(p) || lost(p) })
		w.network.Delay(path.Delay)
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
