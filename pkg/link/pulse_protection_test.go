package link_test

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// isParity reports whether a packet is a parity datagram, by its first byte.
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
			rate = upload(t, dialled, accepted, 4*time.Second)
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

// Where a full queue drops packets, a link sends no parity apart from its trial: parity would add
// to the overload.
func TestNoParityWhereQueuesOverflow(t *testing.T) {
	for _, queue := range []time.Duration{50 * time.Millisecond, 20 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			network := linktest.New(t, 10*time.Millisecond)
			b := &linktest.Bottleneck{Rate: 10e6 / 8, Queue: queue}
			dialled, accepted := network.Pair()
			network.Drop(b.Drop)
			network.Delay(b.Delay)
			rate := upload(t, dialled, accepted, 10*time.Second)
			stats := dialled.Stats()
			t.Logf("queue of %v: %.2f MiB/s, %d of %d packets dropped, %d of parity", queue, rate, b.Drops, stats.PacketsSent, stats.ParitySent)
			if b.Drops < 10 {
				t.Errorf("%d packets dropped: the queue has not overflowed", b.Drops)
			}
			if stats.ParitySent > stats.PacketsSent/50 {
				t.Errorf("%d packets of parity for %d packets", stats.ParitySent, stats.PacketsSent)
			}
		})
	}
}

// A link sends no parity over a short path, whatever the path loses, and none but the trial's over
// one that loses nothing.
func TestNoParityWithoutNeed(t *testing.T) {
	for _, test := range []struct {
		name    string
		latency time.Duration
		loss    float64
		most    uint64
	}{
		{"short", time.Millisecond, 0.01, 0},
		{"clean", 10 * time.Millisecond, 0, 2000},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := linktest.New(t, test.latency)
				dialled, accepted := network.Pair()
				b := &linktest.Bottleneck{Rate: 20e6 / 8, Queue: time.Second}
				lost := losing(1, test.loss)
				network.Drop(func(p linktest.Packet) bool { return lost(p) || b.Drop(p) })
				network.Delay(b.Delay)
				upload(t, dialled, accepted, 5*time.Second)
				if n := dialled.Stats().ParitySent; n > test.most {
					t.Errorf("%d packets of parity", n)
				}
				if n := accepted.Stats().Restored; n > 0 {
					t.Errorf("%d packets restored, of none lost", n)
				}
			})
		})
	}
}

// A NAT gives the dialler another port. The relay restores packets from the new address, and sends
// its parity there.
func TestParityFollowsTheAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		dialled, accepted := network.Pair()
		network.Drop(losing(1, 0.01))
		upload(t, dialled, accepted, 2*time.Second)
		upload(t, accepted, dialled, 2*time.Second)
		up, down := accepted.Stats().Restored, dialled.Stats().Restored
		if up < 10 || down < 10 {
			t.Errorf("%d and %d packets restored", up, down)
		}
		before := accepted.RemoteAddr()
		network.Rebind(linktest.DiallerHost)
		upload(t, dialled, accepted, 2*time.Second)
		upload(t, accepted, dialled, 2*time.Second)
		if accepted.RemoteAddr() == before {
			t.Error("the listener has not noticed the new address")
		}
		if more := accepted.Stats().Restored - up; more < 10 {
			t.Errorf("%d packets restored of those from the new address", more)
		}
		if more := dialled.Stats().Restored - down; more < 10 {
			t.Errorf("%d packets restored of those to the new address", more)
		}
	})
}

// A relay drops the parity of strangers, and keeps nothing of it.
func TestForgedParity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		dialled, accepted := network.Pair()
		forged := network.Listen("192.0.2.66:6")
		defer forged.Close()
		relay := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(linktest.RelayAddress))
		random := rand.New(rand.NewPCG(1, 1))
		for range 1000 {
			b := make([]byte, 700)
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			b[0], b[1], b[2] = 8, byte(random.IntN(2)), byte(1+random.IntN(8))
			if _, err := forged.WriteTo(b, relay); err != nil {
				t.Fatal(err)
			}
		}
		upload(t, dialled, accepted, 100*time.Millisecond) // whose first parity may come before it is known of
		if stats := accepted.Socket().Stats(); stats.ParityStray < 1000 || stats.ParityStray > 1050 || stats.Restored != 0 {
			t.Errorf("%+v", stats)
		}
		if dialled.Err() != nil {
			t.Error(dialled.Err())
		}
	})
}
