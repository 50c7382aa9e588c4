package linktest

import (
	"net/netip"
	"time"
)

// udpAndIP is the size of the headers around a QUIC packet.
const udpAndIP = 28

// A Bottleneck is what a link of limited rate does, in each direction between two hosts: packets
// wait their turn, and those that would wait for too long are dropped. Its methods Drop and Delay
// are for the Network's, both of them.
type Bottleneck struct {
	Rate  float64       // bytes per second
	Queue time.Duration // how long a packet waits at most
	Extra time.Duration // latency of each packet

	Drops int // packets so far

	free map[[2]netip.Addr]time.Time
}

// Drop tells whether a packet finds the queue full; else it takes its place.
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
	b.free[way] = begin.Add(time.Duration(float64(len(p.Data)+udpAndIP) / b.Rate * float64(time.Second)))
	return false
}

// Delay is how long a packet is on its way beyond the Network's latency.
func (b *Bottleneck) Delay(p Packet) time.Duration {
	return b.Extra + time.Until(b.free[[2]netip.Addr{p.From.Addr(), p.To.Addr()}])
}
