package sim

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/link/linktest"
	"ptthqd/test/testutil"
)

var (
	storms    = flag.Int("storms", 4, "how many seeds TestStorm goes through")
	firstSeed = flag.Uint64("storm", 0, "the first of them")
)

// TestStorm carries connections of all kinds through chains over two relays, while hosts lose the network, packets are lost
// and overtake each other, NATs rebind, and relays stop, vanish and come back, at random moments of virtual time: every byte
// arrives once, and nothing is left.
func TestStorm(t *testing.T) {
	for i := range *storms {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(t *testing.T, w *world) { storm(t, w, seed) })
		})
	}
}

func storm(t *testing.T, w *world, seed uint64) {
	w.quiet = *storms > 1
	r := rand.New(rand.NewPCG(seed, 1))
	w.target("127.0.0.1:7", stormServer)
	relays := map[string]*relayNode{relayHost: w.relay(relayHost, nas), relay2Host: w.relay(relay2Host, nas)}
	both := w.relays(relayHost, relay2Host)
	s := w.server(w.serverConfig(both, "7 laptop"))
	c := w.client(w.clientConfig(both, "echo nas 7"))
	settle()

	// Most open while all is well. Those that open in the storm may be refused, but only before their first byte is back.
	const connections = 24
	var work sync.WaitGroup
	var refused atomic.Int64
	for i := range connections {
		kind, size := stormKinds[i%len(stormKinds)], r.IntN(200<<10)
		late := time.Duration(0)
		if i%4 == 3 {
			late = time.Duration(r.IntN(15000)) * time.Millisecond
		}
		work.Go(func() {
			time.Sleep(late)
			conn := w.dialMapping("echo")
			if _, err := conn.Write([]byte{byte(i)}); err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
			if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
				if late == 0 || !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("connection %d: first byte: %v", i, err)
				}
				refused.Add(1)
				return
			}
			time.Sleep(2*time.Second - min(late, 2*time.Second)) // until the storm is there
			if err := kind(conn, rand.New(rand.NewPCG(seed, uint64(i))), size); err != nil {
				t.Errorf("connection %d of kind %d: %v", i, i%len(stormKinds), err)
			}
		})
	}
	time.Sleep(time.Second)

	lossy := rand.New(rand.NewPCG(seed, 2)) // under the network's lock
	hosts := []string{laptopHost, nasHost, relayHost, relay2Host}
	until := time.Now().Add(20 * time.Second)
	for time.Now().Before(until) {
		time.Sleep(time.Duration(r.IntN(1500)) * time.Millisecond)
		host := hosts[r.IntN(len(hosts))]
		lasts := time.Duration(r.IntN(3000)) * time.Millisecond
		switch r.IntN(7) {
		case 0, 1:
			w.network.Cut(host)
			time.Sleep(lasts)
			w.network.Heal(host)
		case 2:
			w.network.Rebind(hosts[r.IntN(2)])
		case 3:
			host = hosts[2+r.IntN(2)]
			relays[host].stop()
			time.Sleep(lasts)
			relays[host] = w.relay(host, nas)
		case 4: // killed: nobody hears of it
			host = hosts[2+r.IntN(2)]
			w.network.Kill(host, relays[host].stop)
			time.Sleep(lasts)
			relays[host] = w.relay(host, nas)
		case 5:
			percent := r.IntN(15)
			w.network.Drop(func(linktest.Packet) bool { return lossy.IntN(100) < percent })
			time.Sleep(lasts)
			w.network.Drop(nil)
		case 6:
			spread := 1 + r.IntN(30)
			w.network.Delay(func(linktest.Packet) time.Duration {
				return time.Duration(lossy.IntN(spread)) * time.Millisecond
			})
		}
	}
	w.network.Delay(nil)
	work.Wait()
	if n := refused.Load(); n > connections/4 {
		t.Errorf("%d connections were refused", n)
	}
	time.Sleep(time.Second)
	if left := c.Snapshot().Sessions; len(left) != 0 {
		t.Errorf("left at the client: %+v", left)
	}
	time.Sleep(10 * time.Minute) // what the client could not say any more expires
	if left := s.Snapshot().Sessions; len(left) != 0 {
		t.Errorf("left at the server: %+v", left)
	}
}

// stormServer is P5: it sends back what it gets.
func stormServer(conn *testutil.Conn) {
	defer func() { _ = conn.Close() }()
	if _, err := io.Copy(conn, conn); err == nil {
		_ = conn.CloseWrite()
	}
}

// stormKinds are what P1 does with a connection.
var stormKinds = []func(conn *testutil.Conn, r *rand.Rand, size int) error{
	bulk,
	func(conn *testutil.Conn, r *rand.Rand, _ int) error { // request and response
		for range 100 {
			if err := ask(conn, r, 1+r.IntN(600)); err != nil {
				return err
			}
			time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
		}
		return bulk(conn, r, 0)
	},
	func(conn *testutil.Conn, r *rand.Rand, _ int) error { // idle
		time.Sleep(25 * time.Second)
		return bulk(conn, r, 10)
	},
	func(conn *testutil.Conn, r *rand.Rand, size int) error { // half-closed, and a slow reader
		want := randomBytes(r, size)
		var writing sync.WaitGroup
		writing.Go(func() {
			_, _ = conn.Write(want)
			_ = conn.CloseWrite()
		})
		defer writing.Wait()
		var got []byte
		for p := make([]byte, 4096); ; time.Sleep(100 * time.Millisecond) {
			n, err := conn.Read(p)
			got = append(got, p[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
		}
		return same(got, want)
	},
	func(conn *testutil.Conn, r *rand.Rand, _ int) error { // bulk in the midst of the storm
		time.Sleep(time.Duration(r.IntN(10000)) * time.Millisecond)
		return bulk(conn, r, 1<<20)
	},
	func(conn *testutil.Conn, r *rand.Rand, size int) error { // reset by P1
		time.Sleep(time.Duration(r.IntN(5000)) * time.Millisecond)
		_, _ = conn.Write(randomBytes(r, min(size, 20<<10)))
		conn.Reset()
		return nil
	},
}

// bulk sends size bytes and the end, and expects them back.
func bulk(conn *testutil.Conn, r *rand.Rand, size int) error {
	want := randomBytes(r, size)
	var writing sync.WaitGroup
	writing.Go(func() {
		_, _ = conn.Write(want)
		_ = conn.CloseWrite()
	})
	got, err := io.ReadAll(conn)
	writing.Wait()
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", len(got), size, err)
	}
	return same(got, want)
}

// ask sends size bytes and expects them back.
func ask(conn *testutil.Conn, r *rand.Rand, size int) error {
	want := randomBytes(r, size)
	if _, err := conn.Write(want); err != nil {
		return err
	}
	got := make([]byte, size)
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	return same(got, want)
}

func same(got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%d bytes came back that differ from the %d sent", len(got), len(want))
	}
	return nil
}

func randomBytes(r *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// dialMapping connects to a mapping's listener, which must be there.
func (w *world) dialMapping(mapping string) *testutil.Conn {
	w.mu.Lock()
	l := w.inbox["systemd:"+mapping]
	w.mu.Unlock()
	conn, err := l.Dial(w.t.Context())
	if err != nil {
		w.t.Error(err)
	}
	return conn
}
