package host

import (
	"context"
	"log/slog"
	"math"
	"os"
	"runtime"
	"time"
)

// The rules of AdaptProcessors.
const (
	// processorsFull is the share of its processors that a busy process uses when it gets more. A
	// process that has the machine to itself comes close to 1. Beside other busy processes it does
	// not, and more processors would not help.
	processorsFull = 0.9
	// processorsFit is the share that is used at most of fewer processors. Work costs about a
	// quarter more on more processors; the gap between the two shares keeps it from going back and
	// forth.
	processorsFit = 0.6
	// processorsCalm is how long fewer processors must have been enough before they are taken away.
	processorsCalm = 2 * time.Second
	// processorsEvery is the time between two looks; processorsIdle while there is hardly any work.
	processorsEvery = 200 * time.Millisecond
	processorsIdle  = time.Second
)

// processors decides how many processors the process uses.
type processors struct {
	most int
	now  int
	calm time.Duration // for which fewer were enough
}

// use takes the processor time that was used in a while, and returns the number of processors from
// now on.
func (p *processors) use(used, in time.Duration) int {
	busy := used.Seconds() / in.Seconds()
	enough := max(1, int(math.Ceil(busy/processorsFit)))
	switch {
	case busy > processorsFull*float64(p.now):
		p.now, p.calm = min(2*p.now, p.most), 0
	case enough >= p.now:
		p.calm = 0
	default:
		if p.calm += in; p.calm >= processorsCalm {
			p.now, p.calm = enough, 0
		}
	}
	return p.now
}

// next returns the time until the next look.
func (p *processors) next(used, in time.Duration) time.Duration {
	if p.now == 1 && used < in/4 {
		return processorsIdle
	}
	return processorsEvery
}

// AdaptProcessors sets GOMAXPROCS to what the work needs until ctx is done: 1 while that is enough,
// more while all are busy, Go's default at most. Then it returns to Go's default. It does nothing
// if the environment sets GOMAXPROCS.
//
// Go wakes another thread for each small step while a processor is idle, and forwarding is made of
// small steps. On a machine with two processors a chain takes 15 to 35 % less processor time with
// one; what that does to throughput and latency depends on the machine, see docs/performance.md.
func AdaptProcessors(ctx context.Context, log *slog.Logger) {
	used, known := processorTime()
	if os.Getenv("GOMAXPROCS") != "" || !known {
		return
	}
	p := processors{most: runtime.GOMAXPROCS(0)}
	p.now = p.most
	defer runtime.SetDefaultGOMAXPROCS()
	timer := time.NewTimer(processorsEvery)
	defer timer.Stop()
	for at := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		now := time.Now()
		total, _ := processorTime()
		spent, in := total-used, now.Sub(at)
		before := p.now
		if n := p.use(spent, in); n != before {
			busy := math.Round(100*spent.Seconds()/in.Seconds()) / 100
			log.Debug("processors", "from", before, "to", n, "busy", busy)
			runtime.GOMAXPROCS(n)
		}
		used, at = total, now
		timer.Reset(p.next(spent, in))
	}
}
