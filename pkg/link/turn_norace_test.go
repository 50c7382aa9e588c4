//go:build !race

package link_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link/linktest"
)

// TestWhatHasWaitedComesTogether has many streams write much over and over. Who has waited for his turn isn't mixed packet by packet
// with all others, so that their readers find much at a time: about 19 KiB; where all are mixed, it is 8. Under the race
// detector it says nothing: readers and writers are held up at other places.
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
