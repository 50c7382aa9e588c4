//go:build linux

package e2e

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

// back is how soon after a process is up again the chain must serve.
const back = 2 * time.Second

func TestClientBeforeServer(t *testing.T) {
	promised(t, back+time.Second, func() map[string]time.Duration {
		w := newWorld(t, endServer)
		w.start("laptop")
		w.start("relay")
		w.start("nas")
		took := w.carries(20 * time.Second)
		w.end()
		return map[string]time.Duration{"all are up": took}
	})
}

// TestRestarts ends each process, in each way, before and after the others have
// connected; the chain serves again within two seconds.
func TestRestarts(t *testing.T) {
	for _, name := range []string{"relay", "nas", "laptop"} {
		for _, sig := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			t.Run(name+" "+sig.String(), func(t *testing.T) {
				t.Parallel()
				promised(t, back, func() map[string]time.Duration {
					w := newWorld(t, endServer).all()
					again := func() time.Duration {
						w.procs[name].signal(sig)
						<-w.procs[name].exited
						w.start(name)
						return w.carries(20 * time.Second)
					}
					took := map[string]time.Duration{name + " is up": again(), name + " is up again": again()}
					w.end()
					return took
				})
			})
			t.Run(name+" alone first "+sig.String(), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, endServer)
				w.start(name)
				w.procs[name].signal(sig)
				<-w.procs[name].exited
				w.all()
			})
		}
	}
}

// TestEndsCloseWhileProxiesStay closes P1 and P5 in turn; P2 and P4 serve on.
func TestEndsCloseWhileProxiesStay(t *testing.T) {
	w := newWorld(t, endServer).all()
	for range 3 {
		c := w.mustDial()
		if err := probe(c); err != nil { // P1 ends first
			t.Fatal(err)
		}
		c = w.mustDial()
		if err := exchange(c, 0, 1<<20, nil); err != nil { // P5 ends first
			t.Fatal(err)
		}
		c = w.mustDial()
		_, _ = c.Write(request{kind: kindEcho}.bytes())
		_ = c.SetLinger(0)
		_ = c.Close() // a reset
	}
	w.carries(10 * time.Second)
}

// TestRelayKilledInTransfers kills the relay again and again in the middle of
// transfers both ways on eight connections: not a byte is lost, no connection
// breaks, and the pause is short once the relay is back.
func TestRelayKilledInTransfers(t *testing.T) {
	size, outages := uint64(8<<20), []time.Duration{200 * time.Millisecond, 3 * time.Second}
	if *full {
		size = 128 << 20
		outages = slices.Repeat([]time.Duration{200 * time.Millisecond, 3 * time.Second, 20 * time.Second}, 10)
	}
	promised(t, 1500*time.Millisecond, func() map[string]time.Duration {
		medians := make(map[string]time.Duration)
		for outage, all := range pausesOfTransfers(t, size, outages) {
			slices.Sort(all)
			t.Logf("after %v without a relay: longest pauses %v", outage, all)
			medians["median after "+outage.String()] = all[len(all)/2]
		}
		return medians
	})
}

// pausesOfTransfers returns the longest pause of the transfers after each outage of the relay, by the outage's length.
func pausesOfTransfers(t *testing.T, size uint64, outages []time.Duration) map[time.Duration][]time.Duration {
	t.Helper()
	w := newWorld(t, endServer).all()
	const connections = 8
	clocks := make([]clock, connections)
	results := make(chan error, connections)
	for i := range connections {
		c := w.mustDial()
		go func() { results <- exchange(c, size, size, &clocks[i]) }()
	}
	total := func() (n uint64) {
		for i := range clocks {
			n += clocks[i].bytes.Load()
		}
		return n
	}
	// Before the next blow, and at the end, the pauses since the last one are noted.
	pauses := map[time.Duration][]time.Duration{}
	note := func(i int) {
		if i < 0 {
			return
		}
		var longest time.Duration
		for i := range clocks {
			longest = max(longest, clocks[i].pause())
		}
		pauses[outages[i]] = append(pauses[outages[i]], longest)
	}
	for i, outage := range outages {
		mark := uint64(i+1) * size * connections / uint64(len(outages)+1)
		eventually(t, time.Minute, "data flows on all connections", func() error {
			for i := range clocks {
				if !clocks[i].goesOn() && clocks[i].bytes.Load() < size {
					return fmt.Errorf("not on connection %d", i)
				}
			}
			if n := total(); n < mark {
				return fmt.Errorf("%d bytes have come of %d", n, mark)
			}
			return nil
		})
		note(i - 1)
		w.procs["relay"].kill()
		<-time.After(outage)
		w.start("relay")
		up := time.Now()
		for i := range clocks {
			clocks[i].from(up)
		}
	}
	for range connections {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	note(len(outages) - 1)
	w.end()
	return pauses
}
