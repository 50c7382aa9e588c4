package linktest

import (
	"net/netip"
	"time"
)

// udpAndIP is the size in bytes of the headers around a QUIC packet.
const udpAndIP = 28

// A Bottleneck is a link of limited rate, in each direction between two hosts: packets queue, and
// those that would wait for too long are dropped. Pass both methods to the Network.
type Bottleneck struct {
	Rate  float64       // bytes per second
	Queue time.Duration // how long a packet waits at most
	Extra time.Duration // latency added to each packet

	Drops int // packets so far

	free map[[2]netip.Addr]time.Time
}

// Drop reports whether a packet finds the queue full. If not, the packet is queued.
func (b *Bottleneck) Drop(p Packet) bool {
	if b.free == nil {
		b.free = make(map[[2]netip.Addr]time.Time)
	}
	way, now := [2]netip.Addr{p.From.Addr(), p.To.Addr()}, time.Now()
	begin := b.free[way]
	if begin.Before(now) {
		begin = now
	}
	if begin.Sub(now) > b.Queue {
		b.Drops++
		return true
	}
	seconds := float64(len(p.Data)+udpAndIP) / b.Rate
	b.free[way] = begin.Add(time.Duration(seconds * float64(time.Second)))
	return false
}

// Delay returns how much longer than the Network's latency a packet takes.
func (b *Bottleneck) Delay(p Packet) time.Duration {
	return b.Extra + time.Until(b.free[[2]netip.Addr{p.From.Addr(), p.To.Addr()}])
}
