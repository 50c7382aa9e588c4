package link

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"ptthqd/pkg/carrier"
)

// A way is one way to a relay: a carrier, and the address to which it moves packets. A race opens
// each way at most once.
type way interface {
	// open returns a new socket, which the caller closes, and the relay's address as the socket
	// knows it.
	open(ctx context.Context) (*carrier.Socket, net.Addr, error)
}

// A udpWay is UDP to an IP address. It is the only kind so far.
type udpWay struct {
	to     netip.AddrPort
	listen func(context.Context) (net.PacketConn, error)
	log    *slog.Logger
}

func (w udpWay) open(ctx context.Context) (*carrier.Socket, net.Addr, error) {
	pc, err := w.listen(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	socket, err := carrier.New(pc, w.log)
	return socket, net.UDPAddrFromAddrPort(w.to), err
}

// ways returns the ways to the relay's addresses, in the order in which they are tried.
func (d *Dialer) ways(addresses []netip.AddrPort) []way {
	ways := make([]way, len(addresses))
	for i, to := range addresses {
		ways[i] = udpWay{to, d.ListenPacket, d.log}
	}
	return ways
}
