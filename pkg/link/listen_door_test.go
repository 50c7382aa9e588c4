package link_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// A crowd is a relay with limits, and the hosts that knock at it.
type crowd struct {
	*world
	relay string // its address

	mu      sync.Mutex
	hits    map[string]int
	stalled map[netip.AddrPort]bool // who hears no answers; true: but that its address must be proved
	stall   bool                    // whoever sends a packet now
	prove   bool                    // who stalls now proves its address where that is asked for
	work    sync.WaitGroup
}

func newCrowd(t *testing.T, limits link.Limits) *crowd {
	c := &crowd{world: newWorld(t), relay: linktest.RelayAddress, hits: make(map[string]int), stalled: make(map[netip.AddrPort]bool)}
	c.network.Limits = limits
	c.start(c.listens)
	c.network.Drop(func(p linktest.Packet) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.stall && p.From.String() != c.relay {
			c.stalled[p.From] = c.prove
		}
		prove, stalled := c.stalled[p.To]
		return stalled && !(prove && p.Data[0]>>4 == 0xf) // a Retry: RFC 9000, section 17.2.5
	})
	t.Cleanup(c.work.Wait)
	time.Sleep(sec)
	return c
}

func (c *crowd) listens(l *link.Listener) {
	l.Logger = slog.New(c.log)
	l.LimitHit = func(limit string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.hits[limit]++
	}
}

// wantHit fails the test unless these limits were hit, and each was told of once. Each packet that
// begins a handshake counts.
func (c *crowd) wantHit(limits ...string) {
	c.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.hits) != len(limits) {
		c.Errorf("limits hit: %v, want %v", c.hits, limits)
	}
	for _, limit := range limits {
		if n := strings.Count(c.log.String(), "limit="+limit+" "); c.hits[limit] < 1 || n != 1 {
			c.Errorf("%s: hit %d times, and %d lines about it:\n%s", limit, c.hits[limit], n, c.log)
		}
	}
}

// knock makes a handshake.
func (c *crowd) knock(host string, config *tls.Config) (*quic.Conn, error) {
	c.Helper()
	pc, err := c.network.ListenPacket(host)(c.Context())
	if err != nil {
		c.Fatal(err)
	}
	transport := &quic.Transport{Conn: pc}
	c.Cleanup(func() { _, _ = transport.Close(), pc.Close() })
	ctx, cancel := context.WithTimeout(c.Context(), 5*sec)
	defer cancel()
	return transport.Dial(ctx, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(c.relay)), config, &quic.Config{HandshakeIdleTimeout: 30 * sec})
}

// begin begins handshakes and leaves them there. The hosts prove their addresses where they must.
func (c *crowd) begin(hosts ...string) { c.stallAll(true, hosts) }

// forge begins handshakes of hosts that hear nothing: their addresses are forged, or they have
// given up.
func (c *crowd) forge(hosts ...string) { c.stallAll(false, hosts) }

func (c *crowd) stallAll(prove bool, hosts []string) {
	c.setStall(true, prove)
	for _, host := range hosts {
		c.work.Go(func() {
			if _, err := c.knock(host, c.tls(c.key)); err == nil {
				c.Errorf("the handshake of %s did not stall", host)
			}
		})
	}
	time.Sleep(50 * ms)
	c.setStall(false, prove)
}

func (c *crowd) setStall(on, prove bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stall, c.prove = on, prove
}

// hosts returns so many hosts of a network, each with some handshakes.
func hosts(network string, n, each int) (all []string) {
	for i := range n {
		all = append(all, slices.Repeat([]string{fmt.Sprintf("%s.%d", network, 2+i)}, each)...)
	}
	return all
}

func (c *crowd) wantLetIn(host string, want bool) {
	c.Helper()
	conn, err := c.knock(host, c.tls(c.key))
	if err == nil {
		time.Sleep(100 * ms) // until the handshake is over at the other end too: one that is broken off has failed
		_ = conn.CloseWithError(0, "")
	}
	if want && err != nil || !want && !refused(err) {
		c.Errorf("%s: %v", host, err)
	}
}

// refused reports whether a connection was refused before its handshake.
func refused(err error) bool {
	e, ok := errors.AsType[*quic.TransportError](err)
	return ok && e.Remote && e.ErrorCode == quic.ConnectionRefused
}

func TestHandshakesOfOneSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 2, HandshakeTimeout: 6 * sec})
		c.begin("10.0.0.2", "10.0.0.2")
		c.wantLetIn("10.0.0.2", false)
		c.wantLetIn("10.0.0.3", true)
		c.wantHit("handshakes_per_source", "retry_rate")
		c.network.Cut("10.0.0.2") // nobody says that those handshakes are given up
		time.Sleep(7 * sec)
		c.network.Heal("10.0.0.2")
		for range 5 { // those that are over don't count
			c.wantLetIn("10.0.0.2", true)
		}
	})
}

func TestHandshakesInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{Handshakes: 3})
		c.begin("10.0.0.2", "10.0.0.3", "10.0.0.4")
		c.wantLetIn("10.0.0.5", false)
		c.wantHit("handshakes", "retry_rate")
		c.listener.SetLimits(link.Limits{Handshakes: 4})
		c.wantLetIn("10.0.0.5", true)
		c.listener.SetLimits(link.Limits{Handshakes: 3})
		time.Sleep(11 * sec)
		c.wantLetIn("10.0.0.5", true)
	})
}

// When a relay has stood still, its socket holds the first packets of dials that its own peers gave
// up long ago. Neither they nor packets under a forged address of a peer may keep new dials out.
func TestStaleHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{})
		c.forge(slices.Repeat([]string{linktest.DiallerHost}, 100)...)
		c.dial()
		c.took(0, 200*ms)
		c.wantHit("retry_rate")
	})
}

// Forged addresses leave room for true ones.
func TestForgedHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{Handshakes: 40})
		c.forge(hosts("10.0.1", 60, 1)...)
		for i := range 20 {
			c.wantLetIn(fmt.Sprintf("10.0.2.%d", 2+i), true)
		}
		c.wantHit("retry_rate")
	})
}

// Many sources that use all handshakes they can have leave room for other sources.
func TestHandshakesOfManySources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{Handshakes: 64, HandshakesPerSource: 32})
		c.begin(hosts("10.0.1", 20, 8)...)
		for i := range 10 {
			c.wantLetIn(fmt.Sprintf("10.0.2.%d", 2+i), true)
		}
		c.wantHit("retry_rate", "handshakes_per_source")
	})
}

// A source that breaks off each handshake is limited in how many it may begin.
func TestHandshakesBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 4})
		config := c.tls(c.key)
		config.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return errors.New("no") }
		begun := 0
		for start := time.Now(); time.Since(start) < 10*sec; {
			if err := end(c.knock("10.0.0.2", config)); !refused(err) {
				begun++
			}
		}
		if begun < 20 || begun > 50 {
			t.Errorf("%d handshakes in 10 s", begun)
		}
		time.Sleep(sec)
		c.wantLetIn("10.0.0.2", true)
		c.wantHit("handshakes_per_source", "retry_rate")
	})
}

// A peer that makes one link after another causes a few log lines, not one for each.
func TestLinksInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{})
		for range 200 {
			conn, err := c.knock("10.0.0.2", c.tls(c.key))
			if err != nil {
				t.Fatal(err)
			}
			s, err := conn.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = s.Write(wire.Append(nil, &wire.Control{}))
			<-c.accepted
			_ = conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseProtocol), "")
			time.Sleep(50 * ms)
		}
		if n := strings.Count(c.log.String(), " link "); n != 100 {
			t.Errorf("%d lines", n)
		}
		time.Sleep(time.Hour)
		c.dial()
		c.took(0, sec)
		if !strings.Contains(c.log.String(), "left_out=300") {
			t.Error("nobody tells what was left out")
		}
	})
}

// fail makes handshakes with an unknown key, one after another.
func (c *crowd) fail(host string, times int) {
	c.Helper()
	for range times {
		if err := end(c.knock(host, c.tls(linktest.Key(c)))); err == nil || refused(err) {
			c.Errorf("%s, unknown: %v", host, err)
		}
		time.Sleep(sec) // until the failed one counts no more
	}
}

// wantLimited fails the test unless a source may have one handshake at a time or more, an eighth of
// the usual number.
func (c *crowd) wantLimited(host string, want bool) {
	c.Helper()
	c.begin(host)
	c.wantLetIn(host, !want)
	time.Sleep(11 * sec) // until the one that was begun has timed out
}

func TestPenalty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 8, AuthPenalty: 60 * sec, AuthPenaltyMax: 100 * sec, PenaltySources: 2})
		stranger := func(host string) { c.wantLimited(host, true) }
		c.fail("10.0.0.2", 1)
		stranger("10.0.0.2")
		c.wantHit("auth_penalty")
		time.Sleep(60 * sec)
		c.fail("10.0.0.2", 3) // to 100 s
		time.Sleep(75 * sec)
		stranger("10.0.0.2")
		time.Sleep(20 * sec)
		c.wantLetIn("10.0.0.3", true)

		c.fail("10.0.0.4", 1)
		c.fail("10.0.0.5", 1)
		c.fail("10.0.0.6", 1) // the first is forgotten for it
		c.wantLimited("10.0.0.4", false)
		stranger("10.0.0.5")
		c.listener.Links.Forgive()
		c.wantLimited("10.0.0.6", false)
	})
}

// A few failures are a node whose key is being added. sshd has the same bound.
func TestPenaltiesBelow15SecondsHaveNoEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 8, AuthPenalty: 5 * sec})
		c.fail("10.0.0.2", 3)
		c.wantLimited("10.0.0.2", false)
		c.fail("10.0.0.3", 6)
		c.wantLimited("10.0.0.3", true)
	})
}

func TestSourcesWithoutPenalty(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 8, AuthPenalty: 60 * sec, PenaltyExempt: []netip.Prefix{netip.MustParsePrefix("10.0.0.3/32")}})
		c.fail("10.0.0.3", 3)
		c.wantLimited("10.0.0.3", false)

		c.wantLetIn("10.0.0.4", true) // a peer is there
		c.fail("10.0.0.4", 3)
		c.wantLimited("10.0.0.4", false)
		time.Sleep(25 * time.Hour)
		c.fail("10.0.0.4", 3)
		c.wantLimited("10.0.0.4", true)
	})
}

// A peer whose link is older than a day is still there.
func TestLongLinksKeepTheirSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 8, AuthPenalty: 60 * sec})
		c.dial()
		c.took(0, sec)
		time.Sleep(30 * time.Hour)
		c.fail(linktest.DiallerHost, 3)
		c.wantLimited(linktest.DiallerHost, false)

		// The key is removed, so the source counts as any other.
		c.peers.Store(&linktest.Peers{})
		c.listener.Recheck()
		time.Sleep(sec)
		c.listener.Links.Forgive()
		c.fail(linktest.DiallerHost, 3)
		c.begin(linktest.DiallerHost)
		if err := end(c.knock(linktest.DiallerHost, c.tls(c.key))); !refused(err) {
			t.Error(err)
		}
	})
}

// A wrong signature costs its sender as much as an unknown key, whatever key it comes with, and
// tells the sender as little.
func TestWorthlessSignatures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 8, AuthPenalty: 60 * sec})
		forged := func(host string, key ident.PrivateKey) error {
			config := c.tls(linktest.Key(t))
			config.Certificates[0].Certificate = c.tls(key).Certificates[0].Certificate
			return end(c.knock(host, config))
		}
		known, unknown := forged("10.0.0.2", c.key), forged("10.0.0.3", linktest.Key(t))
		if e, ok := errors.AsType[*quic.TransportError](known); !ok || !e.Remote || known.Error() != unknown.Error() {
			t.Errorf("a known key without its private one gets %v, an unknown one %v", known, unknown)
		}
		time.Sleep(sec)
		c.wantLimited("10.0.0.2", true)
		c.wantLimited("10.0.0.3", true)
		if list := c.listener.Links.Strangers(); len(list) > 0 {
			t.Errorf("keys that nobody has proved: %v", list)
		}
	})
}

func TestPenaltyOfAnIPv6Network(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 8, AuthPenalty: 60 * sec})
		c.relay = "[2001:db8::1]:30380"
		six := c.network.Listener(c.relay, c.relayKey, *c.peers.Load(), c.listener.Serve)
		c.listens(six)
		c.network.Run(six.Run)
		time.Sleep(sec)
		c.fail("2001:db8:1:1::5", 1)
		c.begin("2001:db8:1:1::6")
		c.wantLetIn("2001:db8:1:1:ffff::7", false)
		c.wantLetIn("2001:db8:1:2::5", true)
	})
}

// named is a socket whose neighbours have addresses of another kind than UDP's, as another
// carrier's have.
type named struct{ net.PacketConn }

type namedAddr struct{ net.Addr }

func (a namedAddr) Network() string { return "named" }
func (a namedAddr) String() string  { return "neighbour " + a.Addr.String() }

func (n named) ReadFrom(p []byte) (int, net.Addr, error) {
	size, from, err := n.PacketConn.ReadFrom(p)
	if err == nil {
		from = namedAddr{from}
	}
	return size, from, err
}

func (n named) WriteTo(p []byte, to net.Addr) (int, error) {
	if a, ok := to.(namedAddr); ok {
		to = a.Addr
	}
	return n.PacketConn.WriteTo(p, to)
}

// Neighbours whose addresses are not UDP's are not all one source.
func TestSourcesThatAreNotUDP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 1})
		c.relay = "192.0.2.9:30380"
		socket, err := carrier.New(named{c.network.Listen(c.relay)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		listener := &link.Listener{Socket: socket, Identity: c.relayKey, Admit: c.listener.Admit, Serve: c.listener.Serve, Limits: c.network.Limits}
		c.network.Run(listener.Run)
		c.begin("10.0.0.2")
		c.wantLetIn("10.0.0.3", true)
	})
}

// A node that is refused must keep telling the reason.
func TestPenaltyKeepsItsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{HandshakesPerSource: 8, AuthPenalty: 60 * sec})
		peers := *c.peers.Load()
		c.peers.Store(&linktest.Peers{})
		c.dial()
		time.Sleep(20 * sec)
		if s := c.dialer.State(); s.Attempts < 2 || !strings.Contains(s.LastError, "does not know this node's key") {
			t.Errorf("state %+v", s)
		}
		c.peers.Store(&peers)
		c.listener.Links.Forgive()
		time.Sleep(31 * sec)
		c.took(0, 100*sec)
	})
}

func TestLinksInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, link.Limits{Links: 1})
		c.dial()
		c.took(0, sec)
		other := linktest.Key(t)
		c.peers.Store(&linktest.Peers{c.key.Public(): "client", other.Public(): "other"})
		conn, err := c.knock("10.0.0.2", c.tls(other))
		if err != nil {
			t.Fatal(err)
		}
		s, err := conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Write(wire.Append(nil, &wire.Control{}))
		if e, ok := errors.AsType[*quic.ApplicationError](end(conn, nil)); !ok || wire.CloseCode(e.ErrorCode) != wire.CloseProtocol {
			t.Errorf("the second link ended with %v", e)
		}
		c.wantHit("links")

		// A newer link of the same peer takes the place of the old one.
		again := c.newDialer("10.0.0.9", c.links)
		c.network.Run(again.Run)
		c.took(0, sec)
	})
}

func TestPendingTips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		network.Limits = link.Limits{PendingTipsTotal: 2}
		dialled, accepted := network.Pair()
		var streams []*link.Stream
		for range 3 {
			s, err := dialled.Open([]byte{1}) // the beginning of a tip
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, s)
		}
		s := open(t, dialled, "") // a tip that is whole waits for nobody
		accept(t, accepted)
		refused := 0
		for _, s := range streams {
			_ = s.SetReadDeadline(time.Now().Add(time.Second))
			if reply, err := wire.Read(s); err == nil {
				if r, ok := reply.(*wire.Reply); !ok || r.Status != wire.StatusTooMany {
					t.Errorf("answered with %+v", reply)
				}
				refused++
			}
			s.Reset(wire.CodeLost)
		}
		if refused != 1 {
			t.Errorf("%d of 3 are refused", refused)
		}
		s.Reset(wire.CodeLost)
	})
}
