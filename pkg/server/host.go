package server

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"ptthqd/pkg/policy"
)

// Host knows the addresses of the machine on which a server runs. A service whose target is a
// network or a host name does not offer them (see [policy.Special]). The zero value asks the
// system. Several goroutines may use a Host.
type Host struct {
	Addresses func() ([]net.Addr, error) // nil: net.InterfaceAddrs
	Resolver  *net.Resolver              // nil: net.DefaultResolver

	known atomic.Pointer[ownAddresses]
}

type ownAddresses struct {
	at    time.Time
	addrs map[netip.Addr]bool
}

// ownLifetime is how long the addresses that were read count. An address that the host gets
// meanwhile is noticed by self: a connection to oneself has the same address at both ends.
const ownLifetime = time.Second

// Owns reports whether an address is the host's, or the broadcast address of one of its networks.
// If the system does not answer, the last known addresses count.
func (h *Host) Owns(addr netip.Addr) bool {
	known := h.known.Load()
	if known == nil || time.Since(known.at) > ownLifetime {
		known = h.read(known)
		h.known.Store(known)
	}
	return known.addrs[addr]
}

func (h *Host) read(last *ownAddresses) *ownAddresses {
	addresses := h.Addresses
	if addresses == nil {
		addresses = net.InterfaceAddrs
	}
	list, err := addresses()
	now := &ownAddresses{at: time.Now(), addrs: make(map[netip.Addr]bool, 2*len(list))}
	if err != nil && last != nil {
		now.addrs = last.addrs
		return now
	}
	for _, a := range list {
		// Interfaces of IP have prefixes; others are of no use here.
		prefix, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		now.addrs[prefix.Addr().Unmap()] = true
		if all, ok := shared(prefix); ok {
			now.addrs[all] = true
		}
	}
	return now
}

// shared returns the broadcast address of an IPv4 network, or the subnet-router anycast address of
// an IPv6 network (RFC 4291, section 2.6.1). Both may reach the host itself.
func shared(p netip.Prefix) (netip.Addr, bool) {
	if p.Addr().BitLen()-p.Bits() < 2 {
		return netip.Addr{}, false // a network of one or two addresses has none
	}
	first := p.Masked().Addr()
	if first.Is6() {
		return first, true
	}
	bytes := first.As4()
	for i := p.Bits(); i < 32; i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(bytes), true
}

// Resolve decides as a server does, the dial included: it looks up what a host name means at this
// moment. If the lookup fails, the decision says so in its reason.
func (h *Host) Resolve(
	ctx context.Context, services *policy.Services, client string, asked policy.Target,
) (policy.Target, policy.Decision) {
	target, d := services.Resolve(client, asked, h.Owns)
	if !d.Guarded || !target.IsHostName() {
		return target, d
	}
	resolver := h.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	addrs, err := resolver.LookupNetIP(ctx, "ip", target.Host())
	if err != nil {
		d.Reason += fmt.Sprintf("; whether %s is another host can't be told: %v", target.Host(), err)
		return target, d
	}
	var barred []string
	for _, addr := range addrs {
		if what := policy.Special(addr, h.Owns); what != "" {
			barred = append(barred, (&specialError{addr, what}).Error())
		}
	}
	if len(barred) == 0 || len(barred) < len(addrs) {
		return target, d
	}
	d.Allowed, d.Guarded = false, false
	d.Reason = target.String() + ": " + strings.Join(barred, ", ") + "; " + specialHint
	return policy.Target{}, d
}

// A specialError says that a host name or network leads to a special address.
type specialError struct {
	addr netip.Addr
	what string
}

func (e *specialError) Error() string { return fmt.Sprintf("it is %v, %s", e.addr, e.what) }

const specialHint = "name the address itself, or write allow_local = true in the service"

// guard is the control function of a dial that must not end at a special address, whatever a name
// server answers.
func (s *Server) guard(network, address string, socket syscall.RawConn) error {
	if at, err := netip.ParseAddrPort(address); err == nil {
		if what := policy.Special(at.Addr(), s.host.Owns); what != "" {
			return &specialError{at.Addr(), what}
		}
	}
	return s.spareDescriptors(network, address, socket)
}

// self returns an error if a connection leads from this host to itself, by an address that was not
// known as its own.
func self(conn net.Conn) error {
	local, _ := conn.LocalAddr().(*net.TCPAddr)
	remote, _ := conn.RemoteAddr().(*net.TCPAddr)
	if local == nil || remote == nil || !local.IP.Equal(remote.IP) {
		return nil
	}
	return &specialError{remote.AddrPort().Addr().Unmap(), "an address of the server itself"}
}
