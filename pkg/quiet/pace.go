package quiet

import (
	"cmp"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Pace lets the lines that each causer makes pass up to a rate. One causer's lines do not use up
// the rate of another.
type Pace struct {
	// Every is the interval of lines in the long run. Default 10 ms: a third of the rate that
	// journald takes by default.
	Every time.Duration
	// AtOnce is the size of a burst, in lines. Default 2,000.
	AtOnce int

	mu      sync.Mutex
	causers map[string]*causer
}

type causer struct {
	limiter *rate.Limiter
	leftOut int // lines since the last one that passed
}

// maxCausers bounds how many causers are remembered. One more, and all are forgotten: each then
// begins with a full burst.
const maxCausers = 16384

// Level returns the level for the causer's next line: the given level, or LevelDebug for a line
// beyond the rate. leftOut is how many lines were beyond the rate since the last one that was not.
func (p *Pace) Level(causedBy string, level slog.Level) (_ slog.Level, leftOut int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.causers[causedBy]
	if c == nil {
		if p.causers == nil || len(p.causers) >= maxCausers {
			p.causers = make(map[string]*causer)
		}
		limit := rate.Every(cmp.Or(p.Every, 10*time.Millisecond))
		c = &causer{limiter: rate.NewLimiter(limit, cmp.Or(p.AtOnce, 2000))}
		p.causers[causedBy] = c
	}
	if !c.limiter.Allow() {
		c.leftOut++
		return slog.LevelDebug, 0
	}
	leftOut, c.leftOut = c.leftOut, 0
	return level, leftOut
}

// LeftOut returns the attribute that tells how many lines are missing before this one. For 0 it is
// empty, and handlers leave it out.
func LeftOut(n int) slog.Attr {
	if n == 0 {
		return slog.Attr{}
	}
	return slog.Int("left_out", n)
}
