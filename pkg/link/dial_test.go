package link_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// lines is a log that a test reads.
type lines struct {
	mu    sync.Mutex
	lines []string
}

func (l *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler               { return l }
func (l *lines) WithGroup(string) slog.Handler                    { return l }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := r.Time.Format(time.TimeOnly) + " " + r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	l.lines = append(l.lines, line)
	return nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// world is a relay that can be restarted, and a node that dials it.
type world struct {
	*testing.T
	network  *linktest.Network
	relayKey ident.PrivateKey
	key      ident.PrivateKey
	peers    atomic.Pointer[linktest.Peers] // the relay's config
	listener *link.Listener
	stop     func() // stops the relay

	dialer   *link.Dialer
	log      *lines
	links    chan *link.Link // of the dialer
	accepted chan *link.Link // of the relay
	dials    atomic.Int64    // sockets that the dialer has opened
}

func newWorld(t *testing.T) *world {
	w := &world{
		T:        t,
		network:  linktest.New(t, 10*time.Millisecond),
		relayKey: linktest.Key(t), key: linktest.Key(t),
		log:   &lines{},
		links: make(chan *link.Link, 100), accepted: make(chan *link.Link, 100),
	}
	w.peers.Store(&linktest.Peers{w.key.Public(): "client"})
	w.dialer = w.newDialer(linktest.DiallerHost, w.links)
	w.dialer.Logger = slog.New(w.log)
	listen := w.dialer.ListenPacket
	w.dialer.ListenPacket = func(ctx context.Context) (net.PacketConn, error) {
		w.dials.Add(1)
		return listen(ctx)
	}
	return w
}

func (w *world) newDialer(host string, links chan<- *link.Link) *link.Dialer {
	return w.network.Dialer(host, linktest.RelayAddress, w.relayKey.Public(), w.key, func(ctx context.Context, l *link.Link) {
		links <- l
		<-ctx.Done()
	})
}

// start starts the relay.
func (w *world) start(adjust ...func(*link.Listener)) {
	w.listener = w.network.Listener(linktest.RelayAddress, w.relayKey, nil, func(ctx context.Context, l *link.Link) {
		w.accepted <- l
		<-ctx.Done()
	})
	w.listener.Admit = func(key ident.PublicKey) (string, error) { return w.peers.Load().Admit(key) }
	for _, f := range adjust {
		f(w.listener)
	}
	stop := w.network.Run(w.listener.Run)
	w.stop = func() {
		stop()
		_ = w.listener.Socket.Close()
	}
}

// kill ends the relay without a word.
func (w *world) kill() {
	w.network.Kill(linktest.RelayHost, w.stop)
}

func (w *world) dial() (stop func()) { return w.network.Run(w.dialer.Run) }

// took tells how long it takes until there is a link.
func (w *world) took(want ...time.Duration) *link.Link {
	w.Helper()
	start := time.Now()
	l := <-w.links
	if d := time.Since(start); d < want[0] || d > want[1] {
		w.Errorf("the link took %v, not %v to %v", d, want[0], want[1])
	}
	return l
}

const (
	ms  = time.Millisecond
	sec = time.Second
)

// A slowLog takes a second to say that a link is up.
type slowLog struct {
	slog.Handler
	said *atomic.Bool
}

func (h slowLog) WithAttrs([]slog.Attr) slog.Handler { return h }

func (h slowLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "link up" {
		time.Sleep(time.Second)
		h.said.Store(true)
	}
	return nil
}

// TestLinkIsUpBeforeItIsServed has Serve find its link in State and in the log.
func TestLinkIsUpBeforeItIsServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var said atomic.Bool
		w.dialer.Logger = slog.New(slowLog{w.log, &said})
		w.dialer.Serve = func(ctx context.Context, l *link.Link) {
			if s := w.dialer.State(); s.Link != l || !said.Load() {
				t.Errorf("said: %v; state %+v", said.Load(), s)
			}
			w.links <- l
			<-ctx.Done()
		}
		w.start()
		w.dial()
		<-w.links
	})
}

func TestDialBeforeTheRelayIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dial()
		time.Sleep(30*sec + 500*ms)
		if n := w.dials.Load(); n < 28 || n > 31 {
			t.Errorf("%d dials in the first 30 s", n)
		}
		s := w.dialer.State()
		if s.Link != nil || s.Attempts < 27 || s.Attempts > 31 || !strings.Contains(s.LastError, "no answer over UDP to 192.0.2.1:30380; UDP may be blocked") {
			t.Errorf("state %+v", s)
		}
		w.start()
		l := w.took(0, 1200*ms)
		if s := w.dialer.State(); s.Link != l || s.LastError != "" || s.Attempts != 0 {
			t.Errorf("state %+v", s)
		}
		if l.Peer() != linktest.RelayAddress || l.Key() != w.relayKey.Public() {
			t.Error(l.Peer(), l.Key())
		}
		if a := <-w.accepted; a.Peer() != "client" || a.Key() != w.key.Public() || a.RemoteAddr().Addr().String() != linktest.DiallerHost {
			t.Error(a.Peer(), a.Key(), a.RemoteAddr())
		}
	})
}

func TestRelayRestarts(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(*world)
		within time.Duration // of the restarted relay being up
	}{
		{"in order", func(w *world) { w.stop() }, 1200 * ms},
		{"killed", (*world).kill, 1200 * ms},
	} {
		for _, down := range []time.Duration{0, 300 * ms, 5 * sec, 40 * sec} {
			t.Run(fmt.Sprintf("%s, down for %v", c.name, down), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.start()
					w.dial()
					w.took(40*ms, 40*ms)
					time.Sleep(5 * sec) // heartbeats are still fast
					c.end(w)
					time.Sleep(down)
					w.start()
					w.took(0, c.within)
				})
			})
		}
	}
}

// A relay that is killed again and again is found as fast the tenth time as the first.
func TestRelayRestartsAgainAndAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dial()
		w.took(40*ms, 40*ms)
		for range 10 {
			time.Sleep(2 * sec)
			w.kill()
			time.Sleep(300 * ms)
			w.start()
			w.took(0, 1200*ms)
		}
	})
}

func TestStatelessResetIsNoticedWithinAHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dial()
		l := w.took(40*ms, 40*ms)
		time.Sleep(time.Hour)
		w.kill()
		w.start()
		start := time.Now()
		<-l.Done()
		if d := time.Since(start); d > 10*sec+100*ms {
			t.Errorf("the restart was noticed after %v", d)
		}
		if err := l.Err(); !strings.Contains(err.Error(), "restarted") {
			t.Error(err)
		}
		w.took(0, 100*ms)
	})
}

func TestBackoffAndRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dial()
		w.took(40*ms, 40*ms)
		w.kill()
		time.Sleep(10 * time.Hour)
		// About 60 in the first minute, then one each 30 to 40 s.
		if n := w.dials.Load(); n < 800 || n > 1400 {
			t.Errorf("%d dials in 10 hours", n)
		}
		if n := len(strings.Split(w.log.String(), "\n")); n > 20 {
			t.Errorf("%d lines in the log:\n%s", n, w.log)
		}
		w.start()
		w.took(0, 41*sec)
		if !strings.Contains(w.log.String(), "failed_dials=") {
			t.Errorf("the log:\n%s", w.log)
		}
	})
}

func TestKicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var slept atomic.Int64
		var here atomic.Value
		here.Store(netip.MustParseAddr(linktest.DiallerHost))
		began := time.Now()
		w.dialer.SinceBoot = func() time.Duration { return time.Since(began) + time.Duration(slept.Load()) }
		w.dialer.Route = func(netip.AddrPort) (netip.Addr, error) {
			if a := here.Load().(netip.Addr); a.IsValid() {
				return a, nil
			}
			return netip.Addr{}, errors.New("network is unreachable")
		}
		w.dial()
		time.Sleep(time.Hour) // deep in the backoff

		// The host slept: dial at once, eagerly again.
		slept.Add(int64(time.Minute))
		before := w.dials.Load()
		time.Sleep(13 * sec)
		if n := w.dials.Load() - before; n < 8 {
			t.Errorf("%d dials after a wake-up", n)
		}
		time.Sleep(time.Hour)

		// A route came back, from another address.
		here.Store(netip.Addr{})
		time.Sleep(10 * sec)
		here.Store(netip.MustParseAddr("10.0.0.2"))
		before = w.dials.Load()
		time.Sleep(13 * sec)
		if n := w.dials.Load() - before; n < 8 {
			t.Errorf("%d dials after a change of address", n)
		}
		w.start()
		first := w.took(0, 1200*ms)

		// A live link is replaced by a fresh one, not cut, after a change of address and after a
		// sleep.
		time.Sleep(10 * sec)
		here.Store(netip.MustParseAddr("10.0.0.3"))
		second := w.took(0, 2100*ms)
		slept.Add(int64(time.Minute))
		w.took(0, 2100*ms)
		time.Sleep(sec)
		for _, l := range []*link.Link{first, second} {
			if l.Err() == nil {
				t.Error("an old link lives on")
			}
		}
		// A route that goes and comes back as it was changes nothing.
		here.Store(netip.Addr{})
		time.Sleep(10 * sec)
		here.Store(netip.MustParseAddr("10.0.0.3"))
		time.Sleep(time.Minute)
		if len(w.links) > 0 {
			t.Error("a fresh link without a reason")
		}
		if strings.Contains(w.log.String(), "another node") {
			t.Errorf("the log:\n%s", w.log)
		}
	})
}

func TestNewestWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dial()
		first := w.took(40*ms, 40*ms)
		accepted := <-w.accepted
		time.Sleep(time.Minute)

		// A second process with the same key takes the peer's place.
		others := make(chan *link.Link, 10)
		stop := w.network.Run(w.newDialer("10.0.0.9", others).Run)
		<-others
		<-accepted.Done()
		<-first.Done()
		closed, ok := errors.AsType[*link.ClosedError](first.Err())
		if !ok || closed.Code != wire.CloseSuperseded || !closed.Remote {
			t.Errorf("the first ended with %v", first.Err())
		}
		time.Sleep(sec)
		stop()
		if !strings.Contains(w.log.String(), "ERROR another node holds this node's key") {
			t.Errorf("the log:\n%s", w.log)
		}
		lost := w.dialer.State()
		if !strings.HasPrefix(lost.LastError, "another node holds this node's key") || lost.Contested.IsZero() || time.Until(lost.NextDial) < 28*sec {
			t.Errorf("the state while it waits: %+v", lost)
		}
		// The loser comes back, but not soon, whatever happens.
		w.took(29*sec, 34*sec)
		if s := w.dialer.State(); s.Contested != lost.Contested || s.LastError != "" {
			t.Errorf("the state when it is back: %+v", s)
		}

		// The next time it waits longer.
		w.network.Run(w.newDialer("10.0.0.10", others).Run)
		<-others
		<-w.links // after the other's pause of 30 s is over it comes back, so here is a third link of ours
	})
}

func TestWrongKeys(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(w *world)
		words string
	}{
		{
			"the relay's", func(w *world) { w.dialer.Keys = []ident.PublicKey{linktest.Key(w).Public()} },
			"presented the key %[1]v, the config pins %[3]v",
		},
		{
			"the node's", func(w *world) { w.peers.Store(&linktest.Peers{}) },
			"does not know this node's key, %[2]v",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				c.spoil(w)
				w.start()
				w.dial()
				time.Sleep(time.Hour)
				s := w.dialer.State()
				words := fmt.Sprintf(c.words, w.relayKey.Public(), w.key.Public(), w.dialer.Keys[0])
				if !strings.Contains(s.LastError, words) || s.Link != nil {
					t.Errorf("state %+v", s)
				}
				if n := w.dials.Load(); n < 100 || n > 150 {
					t.Errorf("%d dials in an hour", n)
				}
				if len(w.accepted)+len(w.links) > 0 {
					t.Error("there was a link")
				}
				if n := strings.Count(w.log.String(), words); n == 0 || n > 5 {
					t.Errorf("the log:\n%s", w.log)
				}
			})
		})
	}
}

func TestRevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dial()
		l := w.took(40*ms, 40*ms)
		time.Sleep(sec)
		if n := w.listener.Recheck(); n != 0 {
			t.Errorf("Recheck closed %d links", n)
		}
		w.peers.Store(&linktest.Peers{})
		if n := w.listener.Recheck(); n != 1 {
			t.Errorf("Recheck closed %d links", n)
		}
		<-l.Done()
		if closed, ok := errors.AsType[*link.ClosedError](l.Err()); !ok || closed.Code != wire.CloseRevoked || !closed.Remote {
			t.Error(l.Err())
		}
		time.Sleep(time.Minute)
		if s := w.dialer.State(); !strings.Contains(s.LastError, "does not know this node's key") {
			t.Errorf("state %+v", s)
		}
		w.peers.Store(&linktest.Peers{w.key.Public(): "renamed"})
		w.took(0, 31*sec)
		for len(w.accepted) > 1 {
			<-w.accepted
		}
		if a := <-w.accepted; a.Peer() != "renamed" {
			t.Error(a.Peer())
		}
	})
}

func TestLinkMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		revoked := make(chan string, 1)
		w.dialer.OnRevoked = func(_ *link.Link, r *wire.Revoked) { revoked <- r.Client + " " + r.Target }
		w.start()
		w.dial()
		dialled, accepted := w.took(40*ms, 40*ms), <-w.accepted
		if err := accepted.SendRevoked("laptop", ":22"); err != nil {
			t.Error(err)
		}
		if got := <-revoked; got != "laptop :22" {
			t.Error(got)
		}
		select {
		case <-dialled.PeerClosing():
			t.Error("closing already")
		default:
		}
		// Only a relay says these; from a node they mean nothing.
		if err := errors.Join(dialled.SendClosing(), dialled.SendRevoked("laptop", "")); err != nil {
			t.Error(err)
		}
		if err := accepted.SendClosing(); err != nil {
			t.Error(err)
		}
		<-dialled.PeerClosing()
		time.Sleep(time.Minute)
		if err := errors.Join(dialled.Err(), accepted.Err()); err != nil {
			t.Error(err)
		}
		select {
		case <-accepted.PeerClosing():
			t.Error("a relay believes in a closing node")
		default:
		}
	})
}

func TestNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var answer atomic.Pointer[[]netip.Addr]
		w.dialer.Address = "relay.example.com" // the default port
		w.dialer.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
			if a := answer.Load(); a != nil && host == "relay.example.com" {
				return *a, nil
			}
			return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
		}
		w.dial()
		time.Sleep(10 * sec)
		if s := w.dialer.State(); !strings.Contains(s.LastError, "cannot resolve relay.example.com: ") {
			t.Errorf("state %+v", s)
		}

		// Each dial resolves the name again, and takes the first address that answers. The first
		// address leads nowhere, so the second is tried after 250 ms.
		w.start()
		answer.Store(&[]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr(linktest.RelayHost)})
		l := w.took(0, 1500*ms)
		if got := l.RemoteAddr().String(); got != linktest.RelayAddress {
			t.Error(got)
		}

		// A name server that fails is no obstacle as long as the addresses are known.
		answer.Store(nil)
		w.kill()
		w.start()
		w.took(0, 1500*ms)
	})
}

// TestSlowNames has a name server that is slow: a dial that knows addresses doesn't wait for it as
// long as it takes.
func TestSlowNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		moved := netip.MustParseAddr("192.0.2.77")
		var answer atomic.Pointer[netip.Addr]
		first := netip.MustParseAddr(linktest.RelayHost)
		answer.Store(&first)
		w.dialer.Address = "relay.example.com:30380"
		w.dialer.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			select {
			case <-time.After(10 * sec): // two of its servers are dead
				return []netip.Addr{*answer.Load()}, nil
			case <-ctx.Done():
				return nil, &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}
			}
		}
		w.start()
		w.dial()
		w.took(10*sec, 11*sec)

		// The relay moves. The dialer tries the last address meanwhile, and uses the answer of the
		// name server when it comes.
		w.kill()
		answer.Store(&moved)
		w.network.Alias(moved.String()+":30380", linktest.RelayAddress)
		w.network.Drop(func(p linktest.Packet) bool { return p.To.Addr() == first })
		w.start()
		w.took(5*sec, 45*sec)
	})
}

func TestRaceHasOneWinner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dialer.Address = "relay.example.com:30380"
		w.dialer.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr(linktest.RelayHost), netip.MustParseAddr("2001:db8::1")}, nil
		}
		w.start()
		// Both addresses are the relay's. The one that is tried first is so slow that both
		// handshakes are under way at the same time.
		w.network.Alias("[2001:db8::1]:30380", linktest.RelayAddress)
		w.network.Delay(func(p linktest.Packet) time.Duration {
			if p.To.String() == linktest.RelayAddress {
				return 260 * ms
			}
			return 0
		})
		w.dial()
		w.took(280*ms, sec)
		time.Sleep(time.Minute)
		if n := len(w.accepted); n != 1 {
			t.Errorf("the relay has seen %d links", n)
		}
		if len(w.links) > 0 || strings.Contains(w.log.String(), "link down") {
			t.Errorf("the log:\n%s", w.log)
		}
	})
}

// faulty is a socket that can't send.
type faulty struct{ net.PacketConn }

func (faulty) WriteTo([]byte, net.Addr) (int, error) {
	return 0, &net.OpError{Op: "write", Net: "udp", Err: os.NewSyscallError("sendto", syscall.ENETUNREACH)}
}

// forbidden is a socket that a sandbox lets nobody read from.
type forbidden struct{ net.PacketConn }

func (forbidden) ReadFrom([]byte) (int, net.Addr, error) {
	return 0, nil, &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("recvmsg", syscall.EPERM)}
}

func TestWords(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(w *world)
		words string
	}{
		{"no route", func(w *world) {
			listen := w.dialer.ListenPacket
			w.dialer.ListenPacket = func(ctx context.Context) (net.PacketConn, error) {
				pc, err := listen(ctx)
				return faulty{pc}, err
			}
		}, "cannot send to 192.0.2.1:30380: sendto: network is unreachable"},
		{"no socket", func(w *world) {
			w.dialer.ListenPacket = func(context.Context) (net.PacketConn, error) {
				return nil, &net.OpError{Op: "listen", Net: "udp", Err: syscall.EMFILE}
			}
		}, "open a UDP socket: listen udp: too many open files"},
		{"no socket in a sandbox", func(w *world) {
			w.dialer.ListenPacket = func(context.Context) (net.PacketConn, error) {
				return nil, &net.OpError{Op: "listen", Net: "udp", Err: os.NewSyscallError("socket", syscall.EAFNOSUPPORT)}
			}
		}, "open a UDP socket: listen udp: socket: address family not supported by protocol: a sandbox around this process refuses the call"},
		{"no packet in a sandbox", func(w *world) {
			listen := w.dialer.ListenPacket
			w.dialer.ListenPacket = func(ctx context.Context) (net.PacketConn, error) {
				pc, err := listen(ctx)
				return forbidden{pc}, err
			}
		}, "cannot receive from 192.0.2.1:30380: recvmsg: operation not permitted: a sandbox around this process refuses the call"},
		{"UDP is blocked", func(w *world) { w.network.Cut(linktest.RelayHost) }, "no answer over UDP to 192.0.2.1:30380; UDP may be blocked"},
		{"only the first packets arrive", func(w *world) {
			var mu sync.Mutex
			from := map[netip.AddrPort]int{}
			w.network.Drop(func(p linktest.Packet) bool {
				mu.Lock()
				defer mu.Unlock()
				from[p.To]++
				return p.From.Addr().String() == linktest.RelayHost && from[p.To] > 1
			})
		}, "answers, but no link comes about within 10s"},
		{"the relay speaks something else", func(w *world) {
			w.stop()
			pc := w.network.Listen(linktest.RelayAddress)
			w.network.Run(func(ctx context.Context) error {
				stop := context.AfterFunc(ctx, func() { _ = pc.Close() })
				defer stop()
				b := make([]byte, 2000)
				for {
					_, from, err := pc.ReadFrom(b)
					if err != nil {
						return err
					}
					_, _ = pc.WriteTo([]byte("hello, this is a DNS server"), from)
				}
			})
		}, "answers, but no link comes about within 10s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.start()
				c.spoil(w)
				w.dial()
				time.Sleep(15 * sec)
				if s := w.dialer.State(); !strings.Contains(s.LastError, c.words) || s.Link != nil {
					t.Errorf("state %+v", s)
				}
				if !strings.Contains(w.log.String(), c.words) {
					t.Errorf("the log:\n%s", w.log)
				}
			})
		})
	}
}

func TestLinkThatComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(func(l *link.Listener) {
			l.Serve = func(context.Context, *link.Link) { time.Sleep(100 * ms) }
		})
		w.dialer.Serve = func(ctx context.Context, _ *link.Link) { <-ctx.Done() }
		w.dial()
		time.Sleep(2 * time.Hour)
		if n := w.dials.Load(); n < 220 || n > 300 {
			t.Errorf("%d dials in 2 hours", n)
		}
		if n := strings.Count(w.log.String(), "\n"); n > 30 {
			t.Errorf("%d lines in the log", n)
		}
	})
}

func TestTokensSpareRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.Limits = link.Limits{HandshakesPerSecond: 1}
		var retries atomic.Int64
		w.network.Drop(func(p linktest.Packet) bool {
			if p.Data[0]&0xf0 == 0xf0 { // a long header of type Retry, RFC 9000, section 17.2.5
				retries.Add(1)
			}
			return false
		})
		w.start()
		w.dial()
		w.took(40*ms, 40*ms)
		time.Sleep(5 * sec)
		w.kill() // the keys of tokens outlive a restart
		w.start()
		for range 5 { // use up what the limit allows
			_, _ = w.raw("10.0.0.2", w.tls(w.key))
		}
		before := retries.Load()
		if before == 0 {
			t.Error("the relay is under no pressure")
		}
		w.took(0, sec)
		if n := retries.Load(); n != before {
			t.Errorf("%d Retry packets for a node with a token", n-before)
		}
	})
}
