// Package bind makes the sockets of a listener of the config: inherited ones if there are any,
// otherwise new ones.
//
// A [Binder] binds a listener as a whole or not at all. Its [Error] says why it cannot, and what to
// do. Most causes pass by themselves (a port in use, an address that no interface has yet), so the
// caller goes on without the listener, and tries again with [Retry].
//
//	binder := bind.Binder{Directory: "/run/ptthqd", Streams: inherited}
//	l, err := binder.Listen(ctx, mapping.Listen, mapping.ListenMode) // TCP, a Unix socket, systemd
//	sockets, err := binder.ListenPacket(ctx, listen)                 // UDP, systemd
//	go bind.Retry(ctx, bindTheRest)
//
// The caller owns the sockets and closes them. A Binder may be used from several goroutines if its
// functions may.
package bind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"ptthqd/pkg/config"
)

// Every is the interval at which Retry tries. A try is three system calls, fewer than a look at the
// host's addresses would take: an address that appears is bound within this time.
const Every = 2 * time.Second

// Retry calls try every [Every], until ctx is done.
func Retry(ctx context.Context, try func()) {
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			try()
		case <-ctx.Done():
			return
		}
	}
}

// A Binder binds listeners. The zero value inherits nothing and knows no directory.
type Binder struct {
	// Directory has the files of Unix sockets; empty: there is no such directory.
	Directory string
	// Streams and Packets return the sockets that the process has inherited under a name, and hand
	// them over. Names are "127.0.0.1:2200" or "[::1]:2200" for an address, "unix:NAME" for a Unix
	// socket, "systemd:NAME" for one that the service manager made. Nil: nothing was inherited.
	Streams func(name string) []net.Listener
	Packets func(name string) []net.PacketConn
}

// A Socket is one socket of a listener, with the name under which it can be inherited.
type Socket[S io.Closer] struct {
	Socket S
	Name   string
}

// ListenPacket binds a UDP or systemd listener.
func (b *Binder) ListenPacket(
	ctx context.Context, at config.Listen,
) ([]Socket[net.PacketConn], error) {
	if at.Kind == config.Systemd {
		return handedOver(at, b.Packets, "UDP socket", "ListenDatagram=")
	}
	return each(at, b.Packets, func(addr netip.AddrPort) (net.PacketConn, error) {
		return new(net.ListenConfig).ListenPacket(ctx, network("udp", addr), addr.String())
	})
}

// handedOver returns the sockets of a socket unit.
func handedOver[S io.Closer](
	at config.Listen, inherit func(name string) []S, what, option string,
) ([]Socket[S], error) {
	var sockets []Socket[S]
	if inherit != nil {
		for _, s := range inherit(at.String()) {
			sockets = append(sockets, Socket[S]{s, at.String()})
		}
	}
	if len(sockets) == 0 {
		return nil, &Error{
			Place: at.String(), Final: true,
			Err: errors.New("systemd has handed over no " + what + " of this name"),
			Hint: fmt.Sprintf("a socket unit must have FileDescriptorName=%s, %s and Service=, and be "+
				"started before this service: start it, then restart the service", at.Addr, option),
		}
	}
	return sockets, nil
}

// each binds all addresses of a listener, or none. The host may lack one of the loopback's two
// families.
func each[S io.Closer](
	at config.Listen, inherit func(name string) []S, fresh func(netip.AddrPort) (S, error),
) (sockets []Socket[S], err error) {
	defer func() {
		if err != nil {
			for _, s := range sockets {
				_ = s.Socket.Close()
			}
			sockets = nil
		}
	}()
	var missing error
	addrs := at.Addrs()
	for _, addr := range addrs {
		name := addr.String()
		if s, ok := first(inherit, name); ok {
			sockets = append(sockets, Socket[S]{s, name})
			continue
		}
		s, err := fresh(addr)
		switch {
		case err == nil:
			sockets = append(sockets, Socket[S]{s, name})
		case len(addrs) > 1 &&
			(errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)):
			missing = err
		default:
			return sockets, newError(at.Kind, name, err)
		}
	}
	if len(sockets) == 0 {
		return nil, newError(at.Kind, at.String(), missing)
	}
	return sockets, nil
}

// first returns the first socket that was inherited under a name, and closes the others.
func first[S io.Closer](inherit func(name string) []S, name string) (s S, ok bool) {
	if inherit == nil {
		return s, false
	}
	sockets := inherit(name)
	if len(sockets) == 0 {
		return s, false
	}
	for _, extra := range sockets[1:] {
		_ = extra.Close()
	}
	return sockets[0], true
}

// network returns the network with which net.Listen binds exactly the address. With "tcp", 0.0.0.0
// would be both families.
func network(protocol string, addr netip.AddrPort) string {
	switch {
	case addr.Addr().Is4():
		return protocol + "4"
	case addr.Addr().IsUnspecified():
		return protocol
	}
	return protocol + "6"
}
