// Package pace keeps a log readable, and its disk free, when somebody makes lines as fast as he can: what each causer adds
// is bounded, and nobody's lines push out another's.
package pace

import (
	"cmp"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// A Pace lets the lines of each causer through up to a rate. The zero value is ready. Its methods may be called from any
// goroutine.
type Pace struct {
	// Every is how often a line goes through in the long run. Default 10 ms: a third of what journald takes by default.
	Every time.Duration
	// AtOnce is how many go through at once. Default 2,000.
	AtOnce int

	mu      sync.Mutex
	causers map[string]*causer
}

type causer struct {
	limiter *rate.Limiter
	leftOut int
}

// maxCausers bounds what is remembered; beyond it all begin anew.
const maxCausers = 16384

// Level is the level at which a causer's next line is to be logged: as it is, or LevelDebug if there are too many.
// leftOut is how many were too many since the last one that was not.
func (p *Pace) Level(name string, level slog.Level) (_ slog.Level, leftOut int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.causers[name]
	if c == nil {
		if p.causers == nil || len(p.causers) >= maxCausers {
			p.causers = make(map[string]*causer)
		}
		c = &causer{limiter: rate.NewLimiter(rate.Every(cmp.Or(p.Every, 10*time.Millisecond)), cmp.Or(p.AtOnce, 2000))}
		p.causers[name] = c
	}
	if !c.limiter.Allow() {
		c.leftOut++
		return slog.LevelDebug, 0
	}
	leftOut, c.leftOut = c.leftOut, 0
	return level, leftOut
}

// LeftOut is the attribute of a line that tells how many lines are missing before it; an empty one, which handlers leave
// out, if none are.
func LeftOut(n int) slog.Attr {
	if n == 0 {
		return slog.Attr{}
	}
	return slog.Int("left_out", n)
}
