package host

import (
	"context"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

// The times and sizes of ReleaseMemory.
const (
	releaseEvery = 5 * time.Second // between two looks
	releaseLeast = 4 << 20         // bytes of waste below which nothing is released
	releasePart  = 8               // nor below one in so many bytes of the live heap
)

// ReleaseMemory gives memory that a burst has left back to the system, until ctx is done.
//
// Go collects garbage when enough is allocated. A process that becomes calm would keep what the
// last burst has left: the garbage of a thousand handshakes, large stacks and pools, pages in
// reserve. ReleaseMemory looks every 5 s whether nothing was collected since and much could be.
func ReleaseMemory(ctx context.Context) {
	tick := time.NewTicker(releaseEvery)
	defer tick.Stop()
	var last heap
	burst := true // garbage was collected since the last release
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := readHeap()
		switch {
		case now.collections != last.collections:
			burst = true
		case now.waste < max(releaseLeast, now.live/releasePart):
		default:
			if burst {
				runtime.GC() // pools are emptied by the second collection
			}
			debug.FreeOSMemory()
			burst = false
		}
		last = now
	}
}

// heap is the state of the heap.
type heap struct {
	collections uint64 // by the runtime itself
	live        uint64 // bytes that were in use at the last collection
	waste       uint64 // bytes allocated since then, or held in reserve
}

func readHeap() heap {
	samples := []runtimemetrics.Sample{
		{Name: "/gc/cycles/automatic:gc-cycles"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	runtimemetrics.Read(samples)
	h := heap{collections: samples[0].Value.Uint64(), live: samples[1].Value.Uint64()}
	objects, reserve := samples[2].Value.Uint64(), samples[3].Value.Uint64()
	h.waste = objects - min(h.live, objects) + reserve
	return h
}
