package link_test

import (
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// isParity tells whether a packet is a parity datagram, by its first byte.
func isParity(p linktest.Packet) bool { return p.Data[0] == 8 }

// losing drops a share of all packets, the same ones in each run.
func losing(seed uint64, share float64) func(linktest.Packet) bool {
	random := rand.New(rand.NewPCG(seed, 1))
	return func(linktest.Packet) bool { return random.Float64() < share }
}

// upload sends for a while and returns how much arrived, in MiB/s.
func upload(t *testing.T, dialled, accepted *link.Link, for_ time.Duration) float64 {
	t.Helper()
	s := open(t, dialled, "")
	peer := accept(t, accepted)
	until := time.Now().Add(for_)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for chunk := make([]byte, 64<<10); time.Now().Before(until); {
			if _, err := s.Write(chunk); err != nil {
				t.Error(err)
				break
			}
		}
		_ = s.CloseWrite()
	}()
	began := time.Now()
	n, err := io.Copy(io.Discard, peer)
	if err != nil {
		t.Error(err)
	}
	<-done
	peer.Reset(wire.CodeLost)
	return float64(n) / time.Since(began).Seconds() / (1 << 20)
}

func TestParityMakesUpForLoss(t *testing.T) {
	run := func(seed uint64, parity bool) (rate float64) {
		synctest.Test(t, func(t *testing.T) {
			network := linktest.New(t, 10*time.Millisecond)
			dialled, accepted := network.Pair()
			lost := losing(seed, 0.01)
			network.Drop(func(p linktest.Packet) bool { return lost(p) || !parity && isParity(p) })
			rate = upload(t, dialled, accepted, 15*time.Second)
			t.Logf("parity %v: %.2f MiB/s, %d of %d packets lost, %d restored", parity, rate, dialled.Stats().PacketsLost, dialled.Stats().PacketsSent, accepted.Stats().Restored)
		})
		return rate
	}
	var without, with []float64
	for seed := range uint64(3) {
		without, with = append(without, run(seed, false)), append(with, run(seed, true))
	}
	slices.Sort(without)
	slices.Sort(with)
	if with[1] < 2.5*without[1] {
		t.Errorf("%.2f MiB/s with parity, %.2f without", with, without)
	}
}
