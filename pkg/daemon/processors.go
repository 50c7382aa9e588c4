package daemon

import (
	"context"
	"log/slog"
	"math"
	"os"
	"runtime"
	"time"
)

// Go hands what becomes ready to another thread wherever a processor is idle. What one node forwards is many small steps, one after
// another, so most of that is waking threads, and caches that are cold: with as many processors as it has work for, all three
// processes of a chain on a machine of two take 15 to 35 % less processor time for the same bytes. (On one host of two
// that cost a tenth of an idle round trip; on the other it halved it.) So a process has one of Go's processors while that is enough, and more, up to what
// GOMAXPROCS would be, as soon as it keeps busy what it has.
const (
	// processorsFull is the share of its processors that a process keeps busy when it wants more of them. Where it
	// has the machine to itself, it comes close to 1; beside others that take their part it doesn't, and more would not help it.
	processorsFull = 0.9
	// processorsFit is what is left busy at most of fewer ones. Work costs more on more of them, by about a quarter, so
	// what lies between the two does not go back and forth.
	processorsFit = 0.6
	// processorsCalm is for how long fewer must have been enough.
	processorsCalm = 2 * time.Second
	// processorsEvery is how often one looks, and processorsIdle where there is hardly anything to do.
	processorsEvery = 200 * time.Millisecond
	processorsIdle  = time.Second
)

// processors decides how many of Go's processors a process has.
type processors struct {
	most int
	now  int
	calm time.Duration // for how long fewer were enough
}

// use takes what the process has used of processor time in a while, and returns how many processors it has from now on.
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

// next is when to look again.
func (p *processors) next(used, in time.Duration) time.Duration {
	if p.now == 1 && used < in/4 {
		return processorsIdle
	}
	return processorsEvery
}

// fitProcessors has the process use as many processors as it has work for, until ctx is done. It leaves alone what an
// administrator has set.
func fitProcessors(ctx context.Context, log *slog.Logger) {
	used, known := processorTime()
	if os.Getenv("GOMAXPROCS") != "" || !known {
		return
	}
	p := processors{most: runtime.GOMAXPROCS(0)}
	p.now = p.most
	defer runtime.GOMAXPROCS(p.most)
	every := processorsEvery
	for at := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
		now := time.Now()
		total, _ := processorTime()
		spent, in := total-used, now.Sub(at)
		before := p.now
		if n := p.use(spent, in); n != before {
			log.Debug("processors", "from", before, "to", n, "busy", math.Round(100*spent.Seconds()/in.Seconds())/100)
			runtime.GOMAXPROCS(n)
		}
		used, at, every = total, now, p.next(spent, in)
	}
}
