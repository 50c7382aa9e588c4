//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

// A middlebox is a bad path between nodes and a relay: it forwards UDP on this
// host as a NAT does, and spoils it.
type middlebox struct {
	inside *net.UDPConn // the nodes send here
	relay  netip.AddrPort

	mu       sync.Mutex
	random   *rand.Rand
	faults   faults
	bindings map[netip.AddrPort]*net.UDPConn // the outside of each node's socket
	lost     int
}

// faults are what a middlebox does to packets, in either direction.
type faults struct {
	loss, double, late float64 // how many packets, of 1
	largest            int     // what is larger is lost without a word; bytes of UDP's payload, 0 for all
}

// through has nodes reach a relay over a middlebox. Call it when the configs are
// written, and before the nodes start.
func (w *world) through(relay string, nodes ...string) *middlebox {
	w.t.Helper()
	address := fmt.Sprintf("%s:%d", w.hosts[relay], w.ports[relay])
	inside, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		w.t.Fatal(err)
	}
	m := &middlebox{
		inside: inside, relay: netip.MustParseAddrPort(address),
		random: rand.New(rand.NewPCG(1, 2)), bindings: map[netip.AddrPort]*net.UDPConn{},
	}
	_ = inside.SetReadBuffer(4 << 20)
	w.t.Cleanup(func() {
		_ = inside.Close()
		m.rebind()
	})
	go m.outwards()
	for _, node := range nodes {
		edit(w.t, w, node, address, inside.LocalAddr().String())
	}
	return m
}

// spoil sets the faults from now on.
func (m *middlebox) spoil(f faults) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = f
}

// rebind forgets all bindings: what the relay sends to them is lost, and what
// the nodes send comes from new ports.
func (m *middlebox) rebind() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for node, c := range m.bindings {
		_ = c.Close()
		delete(m.bindings, node)
	}
}

func (m *middlebox) outwards() {
	p := make([]byte, 64<<10)
	for {
		n, node, err := m.inside.ReadFromUDPAddrPort(p)
		if err != nil {
			return
		}
		if c := m.binding(node); c != nil {
			m.pass(p[:n], func(p []byte) { _, _ = c.Write(p) })
		}
	}
}

func (m *middlebox) binding(node netip.AddrPort) *net.UDPConn {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.bindings[node]; c != nil {
		return c
	}
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(m.relay))
	if err != nil {
		return nil
	}
	_ = c.SetReadBuffer(4 << 20)
	m.bindings[node] = c
	go m.inwards(c, node)
	return c
}

func (m *middlebox) inwards(c *net.UDPConn, node netip.AddrPort) {
	p := make([]byte, 64<<10)
	for {
		n, err := c.Read(p)
		if os.IsTimeout(err) || err != nil && m.holds(node, c) { // nobody listens at the relay's port at the moment
			continue
		}
		if err != nil {
			return
		}
		m.pass(p[:n], func(p []byte) { _, _ = m.inside.WriteToUDPAddrPort(p, node) })
	}
}

func (m *middlebox) holds(node netip.AddrPort, c *net.UDPConn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bindings[node] == c
}

// pass does to a packet what the faults say.
func (m *middlebox) pass(p []byte, send func([]byte)) {
	m.mu.Lock()
	f := m.faults
	lost := f.largest > 0 && len(p) > f.largest || m.random.Float64() < f.loss
	double, late := m.random.Float64() < f.double, m.random.Float64() < f.late
	if lost {
		m.lost++
	}
	m.mu.Unlock()
	if lost {
		return
	}
	if double {
		send(p)
	}
	if late {
		kept := bytes.Clone(p)
		time.AfterFunc(3*time.Millisecond, func() { send(kept) })
		return
	}
	send(p)
}

// TestBadPath has real processes over a path that loses a fifth of the packets,
// sends others twice, and lets them overtake each other.
func TestBadPath(t *testing.T) {
	t.Parallel()
	size := uint64(256 << 10)
	if *full {
		size = 4 << 20
	}
	w := newWorld(t, endServer)
	m := w.through("relay", "laptop", "nas")
	w.all()
	m.spoil(faults{loss: 0.2, double: 0.1, late: 0.1})
	const connections = 4
	each(t, "survives the path", connections, func(int) error {
		c, err := w.dial()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return exchange(c, size, size, nil)
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost < 100 {
		t.Errorf("the path has lost %d packets", m.lost)
	}
}

// TestNATRebinds has a NAT between the nodes and the relay that forgets its
// bindings every 10 s.
func TestNATRebinds(t *testing.T) {
	t.Parallel()
	rounds := 1
	if *full {
		rounds = 12
	}
	w := newWorld(t, endServer)
	m := w.through("relay", "laptop", "nas")
	w.all()
	all := startTraffic(w, "request", "request")
	for range rounds {
		promised(t, 3*time.Second, func() map[string]time.Duration {
			<-time.After(10*time.Second - 1500*time.Millisecond) // what measure takes
			return measure(w, all, m.rebind)
		})
	}
	finish(w, all)
}

// TestPathShrinks has a path begin to lose large packets while a link lives that
// has found out that they pass: a route has changed to a tunnel, say, and nobody
// tells. Heartbeats still pass, and so would everything in packets that are small enough.
func TestPathShrinks(t *testing.T) {
	t.Parallel()
	for _, node := range []string{"laptop", "nas"} {
		t.Run("the hop of "+node, func(t *testing.T) {
			t.Parallel()
			const size = 16 << 20
			w := newWorld(t, endServer)
			m := w.through("relay", node)
			w.all()
			var k clock
			result := make(chan error, 1)
			c := w.mustDial()
			go func() { result <- exchange(c, size, size, &k) }()
			eventually(t, 20*time.Second, "data flows", func() error {
				if k.bytes.Load() < size/8 {
					return os.ErrNotExist
				}
				return nil
			})
			shrunk := time.Now()
			k.from(shrunk)
			m.spoil(faults{largest: 1280 - 28})
			select {
			case err := <-result:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(2 * time.Minute): // as slowly as a busy machine may be
				t.Errorf("of %d bytes %d have come, and no more come", size, k.bytes.Load())
			}
			t.Logf("done %v after the path has shrunk, longest pause %v", time.Since(shrunk), k.pause())
			if k.pause() > 8*time.Second {
				t.Errorf("a pause of %v", k.pause())
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if m.lost == 0 {
				t.Error("no packet was too large: the link had not found the path's MTU")
			}
		})
	}
}
