//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

// TestStarved has 5,000 connections say a byte at once, while client, relay and server have a fifth of one processor together, as
// on a small host. Each waits for the others, which is no reason to go elsewhere: none is resumed, and who comes new is served.
// Then the relay is killed, and all are back in one wave, with a few lines of log.
func TestStarved(t *testing.T) {
	const connections, openers = 5000, 100
	w := newWorld(t, endServer)
	t.Log(w.starve(20))
	w.all()
	stood := testutil.WatchMachine()
	conns := make([]*net.TCPConn, connections)
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()

	start := time.Now()
	turns := make(chan struct{}, openers)
	each(t, "opens", connections, func(i int) (err error) {
		turns <- struct{}{}
		defer func() { <-turns }()
		if conns[i], err = w.dial(); err != nil {
			return err
		}
		if _, err := conns[i].Write(request{kind: kindEcho}.bytes()); err != nil {
			return err
		}
		return saysByte(conns[i])
	})
	opening := time.Since(start)

	start = time.Now()
	each(t, "says a byte", connections, func(i int) error { return saysByte(conns[i]) })
	spoken := time.Since(start)
	resumed := w.status("laptop").Counters.Resumed
	trips := w.newTrips(t, 5)
	still := stood()
	t.Logf("%d connections: open after %v; a byte of each was back after %v; new trips %v; resumed %d; the machine itself stood still for %v at a time",
		connections, opening, spoken, trips, resumed, still)
	if resumed > 0 {
		testutil.Broken(t, still, stalled, "%d connections have resumed", resumed)
	}
	const most = 250 * time.Millisecond
	if median := trips[len(trips)/2]; median > most+still {
		t.Errorf("a new connection's first trip takes %v, more than %v", median, most)
	}

	lines := map[string]int{}
	for name, p := range w.procs {
		lines[name] = strings.Count(p.output(), "\n")
	}
	stood = testutil.WatchMachine()
	w.procs["relay"].kill()
	start = time.Now()
	w.start("relay")
	eventually(t, 2*opening, "all connections are back", func() error {
		time.Sleep(500 * time.Millisecond) // a status of 5,000 connections is work, too
		if n := w.status("laptop").Counters.Resumed - resumed; n < connections {
			return fmt.Errorf("%d of %d are", n, connections)
		}
		return nil
	})
	back := time.Since(start)
	each(t, "goes on", connections, func(i int) error { return saysByte(conns[i]) })
	again := w.status("laptop").Counters.Resumed - resumed
	still = stood()
	t.Logf("all were back after %v, resumed %d times; the machine itself stood still for %v at a time", back, again, still)
	if again > connections+connections/20 {
		testutil.Broken(t, still, stalled, "%d connections have resumed %d times", connections, again)
	}
	for _, name := range []string{"laptop", "nas"} {
		if n := strings.Count(w.procs[name].output(), "\n") - lines[name]; n > 20 {
			t.Errorf("%s has said %d lines about it", name, n)
		}
	}
}

// saysByte sends a byte and has it back.
func saysByte(c *net.TCPConn) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// newTrips is how long new connections take until their first byte is back, in order.
func (w *world) newTrips(t *testing.T, n int) (took []time.Duration) {
	t.Helper()
	for range n {
		start := time.Now()
		c := w.mustDial()
		if _, err := c.Write(request{kind: kindEcho}.bytes()); err != nil {
			t.Fatal(err)
		}
		if err := saysByte(c); err != nil {
			t.Fatalf("a new connection: %v", err)
		}
		took = append(took, time.Since(start).Round(time.Millisecond))
		_ = c.Close()
	}
	slices.Sort(took)
	return took
}
