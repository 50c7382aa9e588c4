package link

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"ptthqd/pkg/carrier"
)

// watch kicks when the host has slept or this process stood still, and when packets to the relay leave from another address
// than before or a route appears. It asks the routing table, without sending anything.
func (d *Dialer) watch(ctx context.Context, kicks chan<- string) {
	kick := func(why string) {
		select {
		case kicks <- why:
		default: // one is waiting
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
		now, _ := d.Route(peer) // without a route: the zero address
		switch {
		case peer != to || now == from:
		case !now.IsValid():
			continue // what was before counts, for when it comes back
		case from.IsValid():
			kick(fmt.Sprintf("the local address changed from %v to %v", from, now))
		case !linked:
			kick("a route to the relay appeared")
		}
		to, from = peer, now
	}
}

// route is the local address from which packets to an address leave. Connecting a UDP socket sends nothing.
func route(to netip.AddrPort) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	return carrier.AddrPort(conn.LocalAddr()).Addr(), nil
}
