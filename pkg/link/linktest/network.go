// Package linktest is a simulated network for tests of links and of what stands on them. It works
// inside a testing/synctest bubble: real QUIC connections, exact virtual latencies, and a router
// that a test can make misbehave.
//
//	synctest.Test(t, func(t *testing.T) {
//		network := linktest.New(t, 10*time.Millisecond)
//		listener := network.Listener(linktest.RelayAddress, relayKey, peers, serveRelay)
//		dialer := network.Dialer("10.0.0.1", linktest.RelayAddress, relayKey.Public(), key, serve)
//		network.Run(listener.Run)
//		network.Run(dialer.Run)
//		...
//		network.Cut("10.0.0.1")
//
// Hosts are IP addresses. Each socket that a Dialer opens has a new port of its host.
// [Network.Pair] returns both ends of one link.
package linktest

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go/testutils/simnet"

	"ptthqd/pkg/link"
)

// A Network has a router in the middle. Its verbs may be called from any goroutine. They act on
// packets that are sent from then on.
type Network struct {
	// Limits are those of later Dialers and Listeners.
	Limits link.Limits

	t       testing.TB
	latency time.Duration

	mu      sync.Mutex
	nodes   map[netip.AddrPort]simnet.PacketReceiver
	links   []*simnet.SimulatedLink
	ports   map[netip.Addr]uint16
	cut     map[netip.Addr]bool
	drop    func(Packet) bool
	double  func(Packet) bool
	delay   func(Packet) time.Duration
	rebound map[netip.AddrPort]netip.AddrPort // what a NAT makes of a source
	inside  map[netip.AddrPort]netip.AddrPort // the reverse of rebound
	aliases map[netip.AddrPort]netip.AddrPort // the address of a socket by its alias
	packets int
}

// A Packet is a packet as the router sees it.
type Packet struct {
	From, To netip.AddrPort
	Data     []byte
}

// New makes a network whose packets take latency from one host to another. Call it inside the
// bubble. It ends with the test: close its users first.
func New(t testing.TB, latency time.Duration) *Network {
	t.Helper()
	n := &Network{
		t:       t,
		latency: latency,
		nodes:   map[netip.AddrPort]simnet.PacketReceiver{},
		ports:   map[netip.Addr]uint16{},
		cut:     map[netip.Addr]bool{},
		rebound: map[netip.AddrPort]netip.AddrPort{},
		inside:  map[netip.AddrPort]netip.AddrPort{},
		aliases: map[netip.AddrPort]netip.AddrPort{},
	}
	t.Cleanup(n.close)
	return n
}

// Cut takes hosts off the network: their packets vanish, both ways.
func (n *Network) Cut(hosts ...string) { n.setCut(true, hosts) }

// Heal puts hosts back.
func (n *Network) Heal(hosts ...string) { n.setCut(false, hosts) }

func (n *Network) setCut(cut bool, hosts []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, h := range hosts {
		n.cut[netip.MustParseAddr(h)] = cut
	}
}

// Kill stops a node on a host so that no other node hears of it: what the node says on its way out
// is lost. The host is on the network again when Kill returns.
func (n *Network) Kill(host string, stop func()) {
	n.Cut(host)
	stop()
	synctest.Wait() // its last packets reach the router
	n.Heal(host)
}

// Drop makes the router drop the packets for which f returns true. It replaces the last f; nil
// drops none.
func (n *Network) Drop(f func(Packet) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = f
}

// Double makes the packets for which f returns true arrive twice, each copy with its own delay. It
// replaces the last f; nil doubles none.
func (n *Network) Double(f func(Packet) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.double = f
}

// Delay adds what f returns to the latency of a packet. It replaces the last f; nil adds nothing.
func (n *Network) Delay(f func(Packet) time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = f
}

// Rebind gives the sockets of a host new ports, as a NAT does that has forgotten them. Packets to
// the old ports vanish.
func (n *Network) Rebind(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	addr := netip.MustParseAddr(host)
	for node := range n.nodes {
		if node.Addr() != addr {
			continue
		}
		delete(n.inside, n.rebound[node])
		outside := n.portLocked(addr)
		n.rebound[node], n.inside[outside] = outside, node
	}
}

// Alias gives a socket a second address to be reached at. Its packets still come from the first.
func (n *Network) Alias(alias, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.aliases[netip.MustParseAddrPort(alias)] = netip.MustParseAddrPort(address)
}

// Packets returns how many packets the router has seen, with those that it has dropped.
func (n *Network) Packets() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.packets
}

// Listen opens a socket at an address. The address is free again when the socket is closed.
func (n *Network) Listen(address string) net.PacketConn {
	return n.open(netip.MustParseAddrPort(address))
}

// ListenPacket returns a function that opens sockets of a host, each at a new port, for
// link.Dialer.
func (n *Network) ListenPacket(host string) func(context.Context) (net.PacketConn, error) {
	addr := netip.MustParseAddr(host)
	return func(context.Context) (net.PacketConn, error) {
		n.mu.Lock()
		port := n.portLocked(addr)
		n.mu.Unlock()
		return n.open(port), nil
	}
}

func (n *Network) portLocked(host netip.Addr) netip.AddrPort {
	n.ports[host]++
	return netip.AddrPortFrom(host, 40000+n.ports[host])
}

func (n *Network) open(at netip.AddrPort) net.PacketConn {
	uplink := &simnet.SimulatedLink{
		UplinkSettings:   simnet.LinkSettings{MTU: 1500},
		DownlinkSettings: simnet.LinkSettings{MTU: 1500},
		UploadPacket:     n,
		LatencyFunc:      n.latencyOf,
	}
	conn := simnet.NewBlockingSimConn(net.UDPAddrFromAddrPort(at), uplink)
	uplink.Start()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[at] != nil {
		n.t.Errorf("linktest: %v is in use", at)
	}
	n.nodes[at] = uplink
	n.links = append(n.links, uplink)
	return &socket{SimConn: conn, network: n, at: at}
}

func (n *Network) latencyOf(p simnet.Packet) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.delay == nil {
		return n.latency
	}
	return n.latency + n.delay(packet(p))
}

// SendPacket implements simnet's router.
func (n *Network) SendPacket(p simnet.Packet) error {
	to, doubled := n.route(&p)
	if to == nil {
		return nil
	}
	to.RecvPacket(p)
	if doubled {
		to.RecvPacket(p)
	}
	return nil
}

func (n *Network) route(p *simnet.Packet) (to simnet.PacketReceiver, doubled bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.packets++
	seen := packet(*p)
	if n.cut[seen.From.Addr()] || n.cut[seen.To.Addr()] || n.drop != nil && n.drop(seen) {
		return nil, false
	}
	doubled = n.double != nil && n.double(seen)
	if outside, ok := n.rebound[seen.From]; ok {
		p.From = net.UDPAddrFromAddrPort(outside)
	}
	if address, ok := n.aliases[seen.To]; ok {
		return n.nodes[address], doubled
	}
	if inside, ok := n.inside[seen.To]; ok {
		p.To = net.UDPAddrFromAddrPort(inside)
		return n.nodes[inside], doubled
	}
	if _, ok := n.rebound[seen.To]; ok {
		return nil, false
	}
	return n.nodes[seen.To], doubled
}

// AddNode implements simnet's router; open does the work.
func (n *Network) AddNode(net.Addr, simnet.PacketReceiver) {}

func (n *Network) close() {
	n.mu.Lock()
	links := n.links
	n.mu.Unlock()
	for _, l := range links {
		_ = l.Close()
	}
}

func packet(p simnet.Packet) Packet {
	return Packet{From: addrPort(p.From), To: addrPort(p.To), Data: p.Data}
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// A socket gives its address back when it is closed.
type socket struct {
	*simnet.SimConn
	network *Network
	at      netip.AddrPort
}

func (s *socket) Close() error {
	s.network.mu.Lock()
	delete(s.network.nodes, s.at)
	s.network.mu.Unlock()
	return s.SimConn.Close()
}
