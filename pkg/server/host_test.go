package server

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// hostOf is a host that has addresses.
func hostOf(addresses string) *Host {
	return &Host{
		Addresses: func() (list []net.Addr, _ error) {
			for text := range strings.FieldsSeq(addresses) {
				prefix := netip.MustParsePrefix(text)
				list = append(list, &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())})
			}
			return list, nil
		},
	}
}

// resolverFor returns a resolver to which every name means an IPv4 address.
func resolverFor(t *testing.T, addr string) *net.Resolver {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	t.Cleanup(func() {
		_ = conn.Close()
		<-served
	})
	go func() {
		defer close(served)
		p := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(p)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(p[:n]) != nil || len(m.Questions) == 0 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()},
				}}
			}
			if packed, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(packed, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func TestOwnAddresses(t *testing.T) {
	h := hostOf("127.0.0.1/8 192.168.1.5/24 10.0.0.4/31 203.0.113.9/32 2001:db8::5/64 fe80::1/64 ::1/128")
	for text, want := range map[string]bool{
		"192.168.1.5": true, "192.168.1.6": false, "192.168.1.0": false,
		"192.168.1.255": true,                    // reaches all hosts there
		"10.0.0.4":      true, "10.0.0.5": false, // a network of two
		"203.0.113.9": true, "203.0.113.10": false,
		"2001:db8::5": true, "2001:db8::6": false,
		"2001:db8::": true, // any router there
	} {
		if got := h.Owns(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s is the host's own: %v, want %v", text, got, want)
		}
	}
}

func TestOwnAddressesChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		addresses, asked, failed := "10.0.0.1/24", 0, error(nil)
		h := &Host{Addresses: func() ([]net.Addr, error) {
			asked++
			list, _ := hostOf(addresses).Addresses()
			return list, failed
		}}
		owns := func(text string) bool { return h.Owns(netip.MustParseAddr(text)) }
		if !owns("10.0.0.1") || owns("10.0.0.2") || asked != 1 {
			t.Errorf("the first is not known, or was asked for %d times", asked)
		}
		addresses = "10.0.0.2/24"
		time.Sleep(ownLifetime + 1)
		if owns("10.0.0.1") || !owns("10.0.0.2") {
			t.Error("a new address is not known after a second")
		}
		failed = errors.New("no netlink")
		time.Sleep(ownLifetime + 1)
		if !owns("10.0.0.2") {
			t.Error("what was known is forgotten where the system doesn't say")
		}
	})
}

// newTestServer is a server with services, which lets laptop reach them.
func newTestServer(t *testing.T, host *Host, services ...policy.Service) *Server {
	t.Helper()
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	all, err := policy.ParsePattern("*")
	if err != nil {
		t.Fatal(err)
	}
	for i := range services {
		services[i].Clients = []policy.Pattern{all}
	}
	c := &config.Config{Role: config.RoleServer, ID: "nas", Services: services, Limits: config.DefaultLimits()}
	s, err := New(Config{Settings: c, Identity: key, Host: host})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func service(t *testing.T, text string, allowLocal bool) policy.Service {
	t.Helper()
	parsed, err := policy.ParseServiceTarget(text)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Service{Target: parsed, AllowLocal: allowLocal}
}

// open asks a server for a target as a client does.
func open(t *testing.T, s *Server, asked string) *session.Refusal {
	t.Helper()
	dial, refusal := s.decide("laptop", asked)
	if refusal != nil {
		return refusal
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := dial(ctx)
	if err == nil {
		_ = conn.Close()
		return nil
	}
	refusal, ok := errors.AsType[*session.Refusal](err)
	if !ok {
		t.Fatalf("%s: %T: %v", asked, err, err)
	}
	return refusal
}

// A host name that means this host is refused unless allow_local is set, and so is its own address
// within a network. Resolve explains both.
func TestServersDoNotReachThemselves(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	const name = "db.example.com"
	host := hostOf("127.0.0.1/8 192.0.2.7/24")
	host.Resolver = resolverFor(t, "127.0.0.1")
	for _, test := range []struct {
		service    string
		allowLocal bool
		asked      string
		allowed    bool
		says       string
	}{
		{"127.0.0.1:" + port, false, "localhost:" + port, true, ""},
		{"127.0.0.0/8:" + port, false, "127.0.0.1:" + port, true, ""},
		{name + ":" + port, true, name + ":" + port, true, ""},
		{name + ":" + port, false, name + ":" + port, false, "it is 127.0.0.1, the server's loopback"},
		{"192.0.2.0/24:" + port, false, "192.0.2.7:" + port, false, "an address of the server itself"},
		{"0.0.0.0/0:" + port, true, "169.254.169.254:" + port, false, "a link-local address"},
	} {
		t.Run(test.service+" "+test.asked, func(t *testing.T) {
			s := newTestServer(t, host, service(t, test.service, test.allowLocal))
			refusal := open(t, s, test.asked)
			_, explained := host.Resolve(t.Context(), s.services.Load(), "laptop", target(t, test.asked))
			if explained.Allowed != test.allowed || !strings.Contains(explained.Reason, test.says) {
				t.Errorf("explained: %+v", explained)
			}
			if (refusal == nil) != test.allowed || refusal != nil && refusal.Status != wire.StatusNotAllowed {
				t.Errorf("refused with %+v", refusal)
			}
			took, reached := s.Reach(t.Context(), s.services.Load().All()[0], target(t, test.asked))
			if (reached == nil) != test.allowed || reached != nil && !strings.Contains(reached.Text, test.says) {
				t.Errorf("a trial takes %v, and is refused with %+v", took, reached)
			}
		})
	}
}

// If the system does not tell its addresses, a connection of the host to itself is still
// recognised.
func TestConnectionToOneself(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	d := newTestDialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	})
	for _, guarded := range []bool{true, false} {
		conn, err := d.connect(t.Context(), target(t, "192.0.2.7:22"), guarded)
		if err == nil {
			_ = conn.Close()
		}
		if refused := err != nil; refused != guarded {
			t.Errorf("guarded %v: %v", guarded, err)
		}
	}
}
