package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ptthqd/pkg/wire"
)

// addresses resolves the relay's name, for each dial again. It leaves out addresses without a
// route, unless no other is left. While the last addresses are known, a slow or failing name server
// does no harm.
func (d *Dialer) addresses(ctx context.Context) ([]netip.AddrPort, error) {
	ips := make([]netip.Addr, 1)
	var err error
	if ips[0], err = netip.ParseAddr(d.host); err != nil {
		ips, err = d.resolve(ctx)
	}
	if err == nil && len(ips) > 0 {
		d.known = d.known[:0]
		for _, ip := range alternate(ips) {
			d.known = append(d.known, netip.AddrPortFrom(ip, d.port))
		}
	}
	if len(d.known) == 0 {
		return nil, &resolveError{err}
	}
	reachable := slices.DeleteFunc(slices.Clone(d.known), func(a netip.AddrPort) bool {
		_, err := d.Route(a)
		return err != nil
	})
	if len(reachable) == 0 {
		reachable = slices.Clone(d.known)
	}
	d.mu.Lock()
	d.peer = reachable[0]
	d.mu.Unlock()
	return reachable, nil
}

// A lookup is the question to the name server, if one is open. A question may outlive its dial.
type lookup struct {
	lifetime context.Context   // of Run or Probe
	work     sync.WaitGroup    // the question's goroutine
	answer   chan lookupResult // nil: no question is open
}

type lookupResult struct {
	ips []netip.Addr
	err error
}

// resolve asks the name server. Without known addresses it waits resolveMost: the system's resolver
// may first try several dead servers. With known addresses it waits resolveTime, and leaves a later
// answer to a later dial.
func (d *Dialer) resolve(ctx context.Context) ([]netip.Addr, error) {
	if d.lookup.answer == nil {
		answer := make(chan lookupResult, 1)
		d.lookup.answer = answer
		d.lookup.work.Go(func() {
			ctx, cancel := context.WithTimeout(d.lookup.lifetime, resolveMost)
			defer cancel()
			ips, err := d.Resolve(ctx, d.host)
			answer <- lookupResult{ips, err}
		})
	}
	patience := resolveMost
	if len(d.known) > 0 {
		patience = resolveTime
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-d.lookup.answer:
		d.lookup.answer = nil
		return r.ips, r.err
	case <-timer.C:
		return nil, fmt.Errorf("the name server does not answer within %v", patience)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

type resolveError struct{ err error }

func (e *resolveError) Error() string { return "no address" }
func (e *resolveError) Unwrap() error { return e.err }

// alternate orders addresses so that the families alternate, beginning with the family of the first
// address (RFC 8305, section 4). It returns at most maxAddresses.
func alternate(ips []netip.Addr) []netip.Addr {
	var first, second, all []netip.Addr
	for _, ip := range ips {
		ip = ip.Unmap()
		if ip.Is4() == ips[0].Unmap().Is4() {
			first = append(first, ip)
		} else {
			second = append(second, ip)
		}
	}
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			all = append(all, first[i])
		}
		if i < len(second) {
			all = append(all, second[i])
		}
	}
	return all[:min(len(all), maxAddresses)]
}

// splitAddress splits a relay's address into host and port. A missing port is wire.DefaultPort.
func splitAddress(address string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		host, text = strings.Trim(address, "[]"), strconv.Itoa(wire.DefaultPort)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is no UDP port", text)
	}
	if host == "" {
		return "", 0, errors.New("the host is missing")
	}
	return host, uint16(n), nil
}

// listenPacket opens a UDP socket for both address families, where the host has both.
func listenPacket(ctx context.Context) (net.PacketConn, error) {
	return (&net.ListenConfig{}).ListenPacket(ctx, "udp", ":0")
}
