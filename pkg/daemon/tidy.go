package daemon

import (
	"context"
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"time"
)

// Go's collector works by what is allocated, so a process that has become calm keeps what the last burst has left: the
// garbage of a thousand handshakes, stacks and pools as large as they needed, pages that it holds in reserve. Where nothing
// has been collected for tidyEvery, and that is much, it is all given back.
const (
	tidyEvery = 5 * time.Second
	// tidyLeast is how many bytes are worth it, and tidyPart that they are one in so many of those that live.
	tidyLeast = 4 << 20
	tidyPart  = 8
)

// tidy keeps a calm process small.
func tidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	var last heap
	burst := true // there was one since it was last tidy
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
		case now.waste < max(tidyLeast, now.live/tidyPart):
		default:
			if burst {
				runtime.GC() // what pools hold takes two collections
			}
			debug.FreeOSMemory()
			burst = false
		}
		last = now
	}
}

// heap is what the runtime says of it.
type heap struct {
	collections uint64 // that were not asked for
	live        uint64 // bytes, at the last collection
	waste       uint64 // bytes, at most: allocated since then, or held in reserve
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
