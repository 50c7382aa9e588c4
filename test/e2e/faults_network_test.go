//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// TestOneFamily has hosts that have IPv4 alone and hosts that have IPv6 alone
// meet at a relay that has both, by its name.
func TestOneFamily(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, laptop, nas, hub string }{
		{"client 6, server 4", "6", "4", "46"},
		{"client 4, server 6", "4", "6", "46"},
		{"all 4", "4", "4", "4"},
		{"all 6", "6", "6", "6"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, l := newLabWorld(t, endServer, "relay")
			hosts := w.path("hosts", "")
			if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost\n::1 localhost\n10.91.0.1 relay.test\nfd91::1 relay.test\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			l.in("hub", "ip", "addr", "add", "fd91::1/128", "dev", "lo")
			for i, host := range []string{"laptop", "nas"} {
				l.in("hub", "ip", "addr", "add", fmt.Sprintf("fd91:%d::1/64", i+1), "dev", "to-"+host, "nodad")
				l.in(host, "ip", "addr", "add", fmt.Sprintf("fd91:%d::2/64", i+1), "dev", "eth0", "nodad")
				l.in(host, "ip", "-6", "route", "add", "default", "via", fmt.Sprintf("fd91:%d::1", i+1))
			}
			for host, families := range map[string]string{"laptop": c.laptop, "nas": c.nas, "hub": c.hub} {
				if !strings.Contains(families, "6") {
					l.in(host, "sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1")
				}
				if !strings.Contains(families, "4") {
					for _, dev := range []string{"eth0", "to-laptop", "to-nas"} {
						if (host == "hub") == (dev != "eth0") {
							l.in(host, "ip", "-4", "addr", "flush", "dev", dev)
						}
					}
					if host == "hub" {
						l.in(host, "ip", "addr", "delete", "10.91.0.1/32", "dev", "lo")
					}
				}
			}
			w.hosts["relay"] = "[::]"
			w.writeConfigs()
			for _, node := range []string{"laptop", "nas"} {
				edit(t, w, node, fmt.Sprintf("[::]:%d", w.ports["relay"]), fmt.Sprintf("relay.test:%d", w.ports["relay"]))
				w.prefix[node] = append(w.prefix[node], "sh", "-c", "mount --bind "+hosts+` /etc/hosts && exec "$0" "$@"`)
			}
			w.all()
			p1 := w.mustDial()
			if err := exchange(p1, 1<<20, 1<<20, nil); err != nil {
				t.Error(err)
			}
			for node, families := range map[string]string{"laptop": c.laptop, "nas": c.nas} {
				for _, link := range w.status(node).Links {
					t.Logf("%s is connected with %s", node, link.Address)
					if at, err := netip.ParseAddrPort(link.Address); err != nil || at.Addr().Is4() != (families == "4") {
						t.Errorf("%s: %s, %v", node, link.Address, err)
					}
				}
			}
		})
	}
}

// TestSmallMTU has paths whose MTU is IPv6's least: one that says nothing of it
// and drops what is larger, and one that begins with a small interface of this host, while a link is up.
func TestSmallMTU(t *testing.T) {
	t.Parallel()
	const silently = "meta length > 1280 drop"
	pour := func(t *testing.T, w *world) {
		t.Helper()
		p1 := w.mustDial()
		_ = p1.SetDeadline(time.Now().Add(30 * time.Second))
		begun := time.Now()
		if err := exchange(p1, 4<<20, 4<<20, nil); err != nil {
			t.Error(err)
		}
		t.Logf("4 MiB each way in %v", time.Since(begun))
	}
	for _, c := range []struct {
		name   string
		before func(l *lab)
		during func(l *lab)
	}{
		{"the path drops larger packets silently", func(l *lab) {
			for _, host := range []string{"laptop", "nas"} {
				l.in("hub", "nft", "add rule inet f in iifname to-"+host+" "+silently+"; add rule inet f out oifname to-"+host+" "+silently)
			}
		}, func(*lab) {}},
		{"an interface becomes small", func(*lab) {}, func(l *lab) {
			l.in("laptop", "ip", "link", "set", "eth0", "mtu", "1280")
			l.in("hub", "ip", "link", "set", "to-nas", "mtu", "1280")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, l := newLabWorld(t, endServer, "relay")
			for _, node := range []string{"relay", "laptop", "nas"} { // nft sees a packet's segments as one
				w.prefix[node] = append(w.prefix[node], "env", "QUIC_GO_DISABLE_GSO=true")
			}
			c.before(l)
			w.all()
			pour(t, w)
			all := startTraffic(w, "request")
			c.during(l)
			pour(t, w)
			finish(w, all)
		})
	}
}

// A nameServer is DNS for the tests: it has one answer for all names, and gives
// it as it is told.
type nameServer struct {
	conn net.PacketConn

	mu    sync.Mutex
	does  naming
	asked int
}

// A naming is what a nameServer does.
type naming struct {
	fails, silent bool
	after         time.Duration
	answer        netip.Addr
}

func startNameServer(t *testing.T, address string, does naming) *nameServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", address+":53")
	requires(t, err == nil, fmt.Sprintf("a name server's port needs root: %v", err))
	s := &nameServer{conn: conn, does: does}
	t.Cleanup(func() { _ = conn.Close() })
	go s.serve()
	return s
}

func (s *nameServer) set(does naming) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.does = does
}

func (s *nameServer) serve() {
	p := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(p)
		if err != nil {
			return
		}
		var question dnsmessage.Message
		if question.Unpack(p[:n]) != nil || len(question.Questions) == 0 {
			continue
		}
		s.mu.Lock()
		does := s.does
		s.asked++
		s.mu.Unlock()
		if does.silent {
			continue
		}
		answer := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: question.ID, Response: true, RecursionAvailable: true},
			Questions: question.Questions[:1],
		}
		q := question.Questions[0]
		switch {
		case does.fails:
			answer.RCode = dnsmessage.RCodeServerFailure
		case q.Type == dnsmessage.TypeA:
			answer.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: does.answer.As4()},
			}}
		}
		packed, err := answer.Pack()
		if err != nil {
			continue
		}
		time.AfterFunc(does.after, func() { _, _ = s.conn.WriteTo(packed, from) })
	}
}

// resolves has nodes ask name servers of the test, in the order given.
func (w *world) resolves(servers []string, nodes ...string) {
	w.t.Helper()
	wantMounts(w.t)
	for _, node := range nodes {
		file := w.path(node, ".resolv.conf")
		if err := os.WriteFile(file, []byte("nameserver "+strings.Join(servers, "\nnameserver ")+"\n"), 0o644); err != nil {
			w.t.Fatal(err)
		}
		w.prefix[node] = mounted("mount --bind " + file + " /etc/resolv.conf")
	}
}

// TestNameOfRelay has the relay's name resolved by a DNS that fails, keeps
// silent or takes its time.
func TestNameOfRelay(t *testing.T) {
	t.Parallel()
	loopback := netip.MustParseAddr("127.0.0.1")
	named := func(t *testing.T, servers ...string) *world {
		t.Helper()
		w := newWorld(t, endServer)
		for _, node := range []string{"laptop", "nas"} {
			edit(t, w, node, fmt.Sprintf("127.0.0.1:%d", w.ports["relay"]), fmt.Sprintf("relay.example.com:%d", w.ports["relay"]))
		}
		w.resolves(servers, "laptop", "nas")
		for _, node := range []string{"relay", "nas", "laptop"} {
			w.start(node)
		}
		return w
	}
	for i, c := range []struct {
		name   string
		first  naming // of the first name server
		others []naming
		within time.Duration // until the chain carries
	}{
		{"it answers after 4 s", naming{after: 4 * time.Second, answer: loopback}, nil, 15 * time.Second},
		{"its first server is dead", naming{silent: true}, []naming{{answer: loopback}}, 15 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var servers []string
			for j, does := range append([]naming{c.first}, c.others...) {
				address := fmt.Sprintf("127.53.%d.%d", i+1, j+1)
				startNameServer(t, address, does)
				servers = append(servers, address)
			}
			begun := time.Now()
			w := named(t, servers...)
			w.carries(c.within)
			t.Logf("the chain carries after %v", time.Since(begun))
		})
	}
	t.Run("it fails, and comes back", func(t *testing.T) {
		t.Parallel()
		const address = "127.53.9.1"
		s := startNameServer(t, address, naming{fails: true})
		w := named(t, address)
		w.procs["laptop"].says(t, "WARN .*no link to the relay .*cannot resolve relay.example.com")
		s.set(naming{answer: loopback})
		w.carries(10 * time.Second)

		// What is up needs no name; and what has been up finds its way back without one.
		all := startTraffic(w, "request")
		for _, does := range []naming{{fails: true}, {silent: true}} {
			s.set(does)
			pauses := measure(w, all, func() {
				w.procs["relay"].kill()
				w.start("relay")
			})
			within(t, fmt.Sprintf("the relay restarts while DNS does %+v", does), pauses, 8*time.Second)
		}
		finish(w, all)
	})
}

// TestNameOfTarget has a target's name resolved by a DNS that takes its time,
// and by one that fails, and then works. Other targets don't notice.
func TestNameOfTarget(t *testing.T) {
	t.Parallel()
	const address, slow = "127.53.9.2", 3 * time.Second
	s := startNameServer(t, address, naming{after: slow, answer: netip.MustParseAddr("127.0.0.1")})
	w := newWorld(t, endServer)
	w.resolves([]string{address}, "nas")
	port := w.forward(fmt.Sprintf("db.example.com:%d", w.ports["target"]))
	w.all()
	done := make(chan error, 1)
	begun := time.Now()
	go func() {
		c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err == nil {
			err = exchange(c, 1<<20, 1<<20, nil)
			_ = c.Close()
		}
		done <- err
	}()
	for range 10 {
		c := w.echoes(t)
		_ = c.Close()
	}
	if took := time.Since(begun); took >= slow {
		t.Errorf("ten connections to another target took %v, as if they waited for the name", took)
	}
	if err := <-done; err != nil {
		t.Errorf("the connection to the target whose name takes %v: %v", slow, err)
	}
	s.set(naming{fails: true})
	refusedConnection(t, port)
	w.procs["laptop"].says(t, `connection refused .*target=db\.example\.com:\d+ .*code=50[24] .*the server.* by=nas`)
	s.set(naming{answer: netip.MustParseAddr("127.0.0.1")})
	eventually(t, 10*time.Second, "the target is reached again", func() error {
		c, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := probe(c); err != nil {
			return errors.Join(errors.New("probe"), err)
		}
		return nil
	})
}
