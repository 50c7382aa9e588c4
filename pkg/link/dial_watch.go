package link

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ptthqd/pkg/carrier"
)

// watch kicks when the host has slept, when packets to the relay leave from a new address, or when
// a route to the relay appears. It asks the routing table and sends nothing.
func (d *Dialer) watch(ctx context.Context, kicks chan<- string) {
	kick := func(why string) {
		select {
		case kicks <- why:
		default: // a kick is waiting
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.kicked != nil {
			d.kicked()
		}
	}
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	at, boot := time.Now(), d.SinceBoot()
	var to netip.AddrPort
	var from netip.Addr
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		late := max(time.Since(at), d.SinceBoot()-boot) - watchEvery
		at, boot = time.Now(), d.SinceBoot()
		if late > sleptAfter {
			kick(fmt.Sprintf("this host or process slept for %v", late.Round(time.Second)))
		}
		d.mu.Lock()
		peer, linked := d.peer, d.state.Link != nil
		d.mu.Unlock()
		if !peer.IsValid() {
			continue
		}
		now, _ := d.Route(peer) // the zero address without a route
		switch {
		case peer != to || now == from:
		case !now.IsValid():
			continue // keep the last address for when a route is back
		case from.IsValid():
			kick(fmt.Sprintf("the local address changed from %v to %v", from, now))
		case !linked:
			kick("a route to the relay appeared")
		}
		to, from = peer, now
	}
}

// route returns the local address from which packets to an address leave. It connects a UDP socket,
// which sends nothing.
func route(to netip.AddrPort) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	return carrier.AddrPort(conn.LocalAddr()).Addr(), nil
}
