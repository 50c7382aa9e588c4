//go:build !race

package link_test

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link/linktest"
)

// TestWhatHasWaitedComesTogether has many streams write much over and over. A stream that has
// waited for its turn isn't mixed packet by packet with the others, so a reader finds about 19 KiB
// at a time; with all streams mixed it is 8 KiB. Under the race detector the test says nothing:
// readers and writers are held up at other places.
func TestWhatHasWaitedComesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const count, size, times = 40, 64 << 10, 8
		_, here, there := many(t, linktest.New(t, time.Millisecond), count)
		var reads atomic.Int64
		var all sync.WaitGroup
		for i := range count {
			all.Go(func() {
				for buffer, got := make([]byte, size), 0; got < times*size; reads.Add(1) {
					n, err := there[i].Read(buffer)
					if err != nil {
						t.Error(err)
						return
					}
					got += n
				}
			})
			all.Go(func() {
				for range times {
					if _, err := here[i].Write(make([]byte, size)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if each := count * size * times / reads.Load(); each < 12<<10 {
			t.Errorf("%d bytes at a time", each)
		}
		resetAll(here, there)
	})
}

// TestWhatIsSaidAtOnceGoesTogether has many streams write a few bytes at the same time, in a
// process with one processor. They leave in a few packets, not in one packet for each stream. The
// race detector changes what runs when.
func TestWhatIsSaidAtOnceGoesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		const count = 32
		network := linktest.New(t, time.Millisecond)
		_, here, there := many(t, network, count)
		var packets atomic.Int32
		network.Drop(func(p linktest.Packet) bool {
			if p.To.Addr().String() == linktest.RelayHost {
				packets.Add(1)
			}
			return false
		})
		var all sync.WaitGroup
		now := make(chan struct{})
		for i := range count {
			all.Go(func() {
				<-now
				if _, err := here[i].Write([]byte("ls\n")); err != nil {
					t.Error(err)
				}
			})
			all.Go(func() {
				if _, err := there[i].Read(make([]byte, 8)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(now)
		all.Wait()
		if n := packets.Load(); n == 0 || n > count/4 {
			t.Errorf("%d packets for what %d streams had to say at once", n, count)
		}
		resetAll(here, there)
	})
}
