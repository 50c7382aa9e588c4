//go:build linux

package e2e

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/test/testutil"
)

// A newcomer is an honest client that comes for the first time.
type newcomer struct {
	w     *world
	relay string
	host  string
	key   ident.PrivateKey
}

// comes tells how long it takes until the relay has let it in.
func (n *newcomer) comes(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	up := make(chan struct{}, 10)
	d := &link.Dialer{
		Address: fmt.Sprintf("%s:%d", n.w.hosts[n.relay], n.w.ports[n.relay]), Keys: []ident.PublicKey{n.w.keys[n.relay].Public()}, Identity: n.key,
		Serve: func(ctx context.Context, _ *link.Link) {
			up <- struct{}{}
			<-ctx.Done()
		},
		ListenPacket: func(context.Context) (pc net.PacketConn, err error) {
			err = n.w.lab.do(n.host, func() (err error) {
				pc, err = net.ListenUDP("udp4", nil)
				return err
			})
			return pc, err
		},
		Route: func(netip.AddrPort) (netip.Addr, error) { return netip.AddrFrom4([4]byte{10, 91, 1, 2}), nil },
	}
	start := time.Now()
	var dialling sync.WaitGroup
	dialling.Go(func() { _ = d.Run(ctx) })
	defer dialling.Wait()
	defer cancel()
	select {
	case <-up:
		return time.Since(start), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("not let in after %v: %s", time.Since(start).Round(time.Second), d.State().LastError)
	}
}

// A paced upload has a rate, where the way has room for it.
type paced struct {
	conn    net.Conn
	arrived *atomic.Int64
	stop    chan struct{}
	done    chan error
}

const pace = 50 << 20 // bytes a second

func startPaced(c net.Conn, arrived *atomic.Int64) *paced {
	p := &paced{conn: c, arrived: arrived, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { p.done <- p.run() }()
	return p
}

func (p *paced) run() error {
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	chunk := make([]byte, 64<<10)
	start := time.Now()
	for sent := 0; ; {
		select {
		case <-p.stop:
			return nil
		case <-tick.C:
		}
		due := int(time.Since(start).Seconds() * pace)
		for sent = max(sent, due-pace/5); sent < due; { // what the way hasn't taken for 0.2 s is not made up for
			n, err := p.conn.Write(chunk[:min(len(chunk), due-sent)])
			if err != nil {
				return err
			}
			sent += n
		}
	}
}

// rate is how many MiB a second arrive as long as during lasts.
func (p *paced) rate(during func()) float64 {
	start, before := time.Now(), p.arrived.Load()
	during()
	return float64(p.arrived.Load()-before) / (1 << 20) / time.Since(start).Seconds()
}

// A flooded world is a chain whose relay strangers flood. Beside them there are an upload at a
// steady rate, a connection that measures round trips, and a client that connects anew.
type flooded struct {
	*world
	mob     *mob
	phone   *newcomer
	honest  *pingpong
	load    *paced
	lasting time.Duration // for how long each flood is measured
	keeps   float64       // the least share of its rate that the upload keeps

	idle     float64   // the relay's share of a processor before all floods
	was      footprint // the relay's, before all floods
	resident int64     // the relay's memory beside the upload, in bytes
}

// newFlooded starts the chain, without the upload.
func newFlooded(t *testing.T, serve func(net.Conn)) *flooded {
	t.Helper()
	// Beside other tests, and for a second, no figure is exact.
	f := &flooded{lasting: time.Second, keeps: 0.6}
	if *full {
		f.lasting, f.keeps = 20*time.Second, 0.8
	}
	f.world, _ = newLabWorld(t, serve, "relay")
	key := newKey(t)
	f.extra["relay"] += fmt.Sprintf("[[peers]]\nid = \"phone\"\nrole = \"client\"\npublic_key = %q\n", key.Public())
	f.withMetrics("relay")
	f.all()
	f.mob = newMob(t, f.world, "relay")
	f.phone = &newcomer{f.world, "relay", "laptop", key}
	if _, err := f.phone.comes(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.honest = pings(t, f.mustDial())
	f.idle = f.world.load(t, "relay", func() { <-time.After(time.Second) })
	f.was = f.footprint(t, "relay")
	return f
}

// startUpload begins the upload, and measures it without a flood.
func (f *flooded) startUpload(t *testing.T, arrived *atomic.Int64) {
	t.Helper()
	upload := f.mustDial()
	if _, err := upload.Write([]byte{'u'}); err != nil {
		t.Fatal(err)
	}
	f.load = startPaced(upload, arrived)
	<-time.After(500 * time.Millisecond)
	f.honest.take()
	rate := f.load.rate(func() { <-time.After(f.lasting) })
	f.resident, _ = f.world.resident("relay")
	t.Logf("relay at rest: %.1f %% of a processor, %d MiB; upload: %.1f MiB/s, %d MiB, trips beside it: %v",
		100*f.idle, f.was.resident>>20, rate, f.resident>>20, f.honest.take())
}

// A flood is one way to flood a relay, until ctx is done.
type flood struct {
	name string
	full bool // only in the long form
	run  func(ctx context.Context)
}

// floods are all ways that strangers have. Some packets of honest nodes were seen.
func (m *mob) floods(t *testing.T, seen []captured) []flood {
	t.Helper()
	const junk = 20_000 // packets per second
	stranger, err := ident.DialTLS(newKey(t), m.key)
	if err != nil {
		t.Fatal(err)
	}
	fickle := stranger.Clone()
	fickle.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return errors.New("no") }
	hellos := m.hellos(500)
	poured := func(next func() (netip.AddrPort, []byte)) func(context.Context) {
		return func(ctx context.Context) { m.pour(ctx, junk, next) }
	}
	allPackets := func() (int, int) { return always, always }
	return []flood{
		{"garbage", false, poured(garbage)},
		{"replays", false, poured(replay(seen))},
		{"handshakes under false names", false, poured(func() (netip.AddrPort, []byte) {
			return one(), initial(random(8), nil)
		})},
		{"handshakes under an honest name", false, poured(func() (netip.AddrPort, []byte) {
			return netip.AddrPortFrom(netip.MustParseAddr("10.91.1.2"), one().Port()), initial(random(8), nil)
		})},
		{"true hellos under false names", true, poured(func() (netip.AddrPort, []byte) {
			return one(), hellos[rand.N(len(hellos))]
		})},
		{"handshakes of 300 sources that stall when they have proved their addresses", false, func(ctx context.Context) {
			m.stallAfterRetry(ctx, 2000, 300)
		}},
		{"handshakes of 2,000 sources that stall when they have proved their addresses", true, func(ctx context.Context) {
			m.stallAfterRetry(ctx, 5000, 2000)
		}},
		{"handshakes that stall at each step", false, func(ctx context.Context) {
			m.dialers(ctx, 20, stranger, time.Second, func() (int, int) {
				if rand.N(2) == 0 {
					return 1 + rand.N(6), always
				}
				return always, rand.N(6)
			})
		}},
		{"handshakes broken off", true, func(ctx context.Context) { m.dialers(ctx, 8, fickle, time.Second, allPackets) }},
		{"wrong keys", false, func(ctx context.Context) { m.dialers(ctx, 16, stranger, time.Second, allPackets) }},
	}
}

// withstands floods the relay, and wants the upload to keep its rate, a newcomer to get in, and the
// relay's memory to stay in bounds. Others may want this host's processors, too: where the upload
// falls behind, there are five tries.
func (f *flooded) withstands(t *testing.T, fl flood) {
	t.Helper()
	for try, calm := 1, 0; ; try++ {
		base, rate, busy, still := f.try(t, fl)
		if rate >= f.keeps*min(pace>>20, base) {
			return
		}
		if still < stalled/3 {
			calm++
		}
		if try < 5 {
			t.Logf("%s: once more; the machine itself stood still for %v at a time", fl.name, still)
			continue
		}
		if calm == 0 && busy < 0.7 {
			testutil.Unmeasured(t, "%s: the upload fell from %.1f to %.1f MiB/s; the machine stood still for %v at a time, and the relay had %.0f %% of a processor",
				fl.name, base, rate, still, 100*busy)
			return
		}
		t.Errorf("%s: the upload fell from %.1f to %.1f MiB/s", fl.name, base, rate)
		return
	}
}

// try floods the relay once. It returns the upload's rates before and during the flood, in MiB per
// second, the relay's share of a processor, and for how long the machine itself stood still.
func (f *flooded) try(t *testing.T, fl flood) (base, rate, busy float64, still time.Duration) {
	t.Helper()
	stood := testutil.WatchMachine()
	alone := f.world.load(t, "relay", func() { base = f.load.rate(func() { <-time.After(f.lasting / 2) }) })
	watched := f.watch(t, "relay")
	ctx, cancel := context.WithCancel(t.Context())
	var flooding sync.WaitGroup
	flooding.Go(func() { fl.run(ctx) })
	<-time.After(500 * time.Millisecond)
	f.honest.take()
	began, sent := time.Now(), f.mob.sent.Load()
	busy = f.world.load(t, "relay", func() { rate = f.load.rate(func() { <-time.After(f.lasting) }) })
	during, each := f.honest.take(), float64(f.mob.sent.Load()-sent)/time.Since(began).Seconds()
	took, refused := f.phone.comes(t.Context()) // while the flood goes on
	cancel()
	flooding.Wait()
	peak, still := watched.end()["relay"], stood()
	t.Logf("%s: %.0f/s; upload %.1f MiB/s, %.1f before; trips: %v; newcomer let in after %v; relay: %.0f %% of a processor, %.0f before, at most %d MiB",
		fl.name, each, rate, base, during, took.Round(time.Millisecond), 100*busy, 100*alone, peak)
	if refused != nil {
		t.Errorf("%s: a newcomer: %v", fl.name, refused)
	}
	if most := f.resident>>20 + 128; peak > most {
		t.Errorf("%s: the relay took %d MiB", fl.name, peak)
	}
	return base, rate, busy, still
}

// TestFloods has strangers flood a relay in all ways that they have. The open connections keep their
// rate, honest newcomers get in, and the relay is then as it was before.
func TestFloods(t *testing.T) {
	var arrived atomic.Int64
	stood := testutil.WatchMachine()
	f := newFlooded(t, func(c net.Conn) { uploadOrEnd(c, &arrived) })
	seen := f.mob.eavesdrop("laptop", func() {
		<-time.After(time.Second)
		_, _ = f.phone.comes(t.Context())
	})
	if len(seen) < 20 {
		t.Fatalf("%d packets are captured", len(seen))
	}
	floods := f.mob.floods(t, seen)
	f.startUpload(t, &arrived)
	for _, fl := range floods {
		if !fl.full || *full {
			f.withstands(t, fl)
		}
	}

	close(f.load.stop)
	if err := <-f.load.done; err != nil {
		t.Errorf("the upload: %v", err)
	}
	_ = f.load.conn.Close()
	f.settles(t, "relay", f.was, 20*time.Second)
	eventually(t, 20*time.Second, "the relay's processor time is as it was", func() error {
		now := f.world.load(t, "relay", func() { <-time.After(time.Second) })
		if now > f.idle+0.05 {
			return fmt.Errorf("%.1f %%, after %.1f %% before", 100*now, 100*f.idle)
		}
		return nil
	})
	after, _ := f.world.resident("relay")
	t.Logf("relay at rest again: %d MiB, trips: %v; limits hit: %v", after>>20, f.honest.take(), f.limitsHit("relay"))
	f.honest.end(t)
	f.carries(5 * time.Second)
	if n := f.status("laptop").Counters.Resumed; n > 0 {
		testutil.Broken(t, stood(), stalled, "a flood has cost a link: %d connections had to be resumed", n)
	}
	f.fewLines(t, "relay", 200)
}

// uploadOrEnd is P5: it counts the bytes of an upload, and is an endServer for all else.
func uploadOrEnd(c net.Conn, arrived *atomic.Int64) {
	var first [1]byte
	if _, err := io.ReadFull(c, first[:]); err != nil {
		return
	}
	if first[0] != 'u' {
		endServer(&unread{c.(*net.TCPConn), first[0]})
		return
	}
	defer func() { _ = c.Close() }()
	buf := make([]byte, 256<<10)
	for {
		n, err := c.Read(buf)
		arrived.Add(int64(n))
		if err != nil {
			return
		}
	}
}

// unread is a connection of which one byte was read too early.
type unread struct {
	*net.TCPConn
	first byte
}

func (c *unread) Read(p []byte) (int, error) {
	if c.first != 0 && len(p) > 0 {
		p[0], c.first = c.first, 0
		return 1, nil
	}
	return c.TCPConn.Read(p)
}
