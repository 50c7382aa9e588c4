package link_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
)

func TestProbe(t *testing.T) {
	for _, c := range []struct {
		name   string
		spoil  func(*world) // after the relay has started
		reason link.Reason
		words  string
	}{
		{"nothing is wrong", func(*world) {}, "", ""},
		{"nobody answers", func(w *world) { w.network.Cut(linktest.RelayHost) }, link.DialNoAnswer, "UDP may be blocked on the way"},
		{"the path takes small packets alone", func(w *world) {
			w.network.Drop(func(p linktest.Packet) bool { return len(p.Data) > 1000 })
		}, link.DialUnfinished, "The path's MTU is too small"},
		{"the relay does not know the key", func(w *world) { w.peers.Store(&linktest.Peers{}) }, link.DialUnknownKey, "does not know this node's key"},
		{"the relay has another key", func(w *world) { w.dialer.Keys = []ident.PublicKey{linktest.Key(w).Public()} }, link.DialWrongKey, "the config pins"},
		{"the name is nobody's", func(w *world) {
			w.dialer.Address = "relay.example.com"
			w.dialer.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
				return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
			}
		}, link.DialUnresolved, "cannot resolve relay.example.com"},
		{"no socket is to be had", func(w *world) {
			w.dialer.ListenPacket = func(context.Context) (net.PacketConn, error) { return nil, errors.New("too many open files") }
		}, link.DialFailed, "too many open files"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.start()
				c.spoil(w)
				p := w.dialer.Probe(t.Context())
				if p.Reason != c.reason || !strings.Contains(p.Error, c.words) || (p.Error == "") != (c.reason == "") {
					t.Errorf("%+v, want %q, %q", p, c.reason, c.words)
				}
				if c.reason == "" && (p.RTT != 20*ms || p.Handshake < 40*ms || p.Handshake > 70*ms || p.Remote.String() != linktest.RelayAddress) {
					t.Errorf("%+v", p)
				}
				if len(w.accepted) > 0 {
					t.Error("the probe has become a link")
				}
			})
		})
	}
}

// A probe with the key of a live link does that link no harm.
func TestProbeSupersedesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dial()
		live := w.took(40*ms, 40*ms)
		probe := w.newDialer("10.0.0.9", make(chan *link.Link, 1))
		if p := probe.Probe(t.Context()); p.Reason != "" {
			t.Errorf("%+v", p)
		}
		time.Sleep(time.Minute)
		if err := live.Err(); err != nil {
			t.Error(err)
		}
	})
}

// The path MTU is found over real sockets alone.
func TestProbeFindsTheMTU(t *testing.T) {
	socket, err := carrier.New(listenUDP(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	relay, key := linktest.Key(t), linktest.Key(t)
	listener := &link.Listener{Socket: socket, Identity: relay, Admit: linktest.Peers{key.Public(): "client"}.Admit}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- listener.Run(ctx) }()
	defer func() {
		stop()
		<-ended
	}()
	d := &link.Dialer{Address: socket.LocalAddr().String(), Keys: []ident.PublicKey{relay.Public()}, Identity: key}
	p := d.Probe(t.Context())
	if p.Error != "" || p.RTT <= 0 || p.Handshake <= 0 || runtime.GOOS == "linux" && p.MTU < 1440 {
		t.Errorf("%+v", p)
	}
}

func listenUDP(t *testing.T) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	return conn
}
