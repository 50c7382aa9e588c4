package host_test

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/host"
)

// What a burst has left is given back to the system once it is over.
func TestReleaseMemory(t *testing.T) {
	const burst = 64 << 20
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // no collection of others finds it alive, or comes in between
	kept := make([][]byte, burst>>16)
	for i := range kept {
		kept[i] = make([]byte, 1<<16)
		kept[i][0] = 1
	}
	runtime.KeepAlive(kept)
	before := held()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			host.ReleaseMemory(ctx)
		}()
		time.Sleep(time.Minute)
		cancel()
		<-done
	})
	if now := held(); now > before-burst/2 {
		t.Errorf("the process holds %d MiB of its heap, %d before: the burst of %d was not given back", now>>20, before>>20, burst>>20)
	}
}

// held is how much of the system's memory the heap holds, in bytes.
func held() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapSys - m.HeapReleased
}
