package quiet

import (
	"cmp"
	"log/slog"
	"sync"
	"time"
)

const (
	// firstWindow and lastWindow bound the time over which repetitions are summed up. Each window
	// is windowGrowth times the one before: a night of eight hours makes about eight lines.
	firstWindow  = time.Minute
	lastWindow   = 2 * time.Hour
	windowGrowth = 4
	// maxKeys is the default of Repeats.Max.
	maxKeys = 1024
)

// Repeats tells the first of equal events from its repetitions, and sums up the repetitions: one
// report for each window in which there were any. An event that has not come for lastWindow after
// the end of its window is forgotten.
type Repeats struct {
	// Max bounds the keys that are remembered at once. Default 1024.
	Max int
	// Merge returns the key under which a new event beyond Max counts; it has few values. Nil: all
	// such events count as equal.
	Merge func(key any) any

	mu     sync.Mutex
	events map[any]*event
	closed bool
}

type event struct {
	more   int // repetitions in this window
	again  func(more int, in time.Duration)
	since  time.Time // the begin of the window
	window time.Duration
	quiet  bool        // the window has ended without a repetition
	timer  *time.Timer // ends the window; if quiet, the event is forgotten
}

type anyOther struct{}

// Event reports whether the caller should tell of this event now, as the first with its key.
// Otherwise the event is counted. At the end of the window Repeats calls the newest again, in a
// goroutine of its own or from Close, with the number of repetitions and their time.
func (r *Repeats) Event(key any, again func(more int, in time.Duration)) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return true
	}
	e := r.events[key]
	if e == nil && len(r.events) >= cmp.Or(r.Max, maxKeys) {
		key = r.merge(key)
		e = r.events[key]
	}
	switch {
	case e == nil:
		if r.events == nil {
			r.events = make(map[any]*event)
		}
		e = &event{since: time.Now(), window: firstWindow}
		e.timer = time.AfterFunc(e.window, func() { r.windowEnds(key, e) })
		r.events[key] = e
		return true
	case e.quiet:
		e.nextLocked()
		return true
	}
	e.more++
	e.again = again
	return false
}

// Warn logs an event at level warn: the first with its key at once, repetitions as one line per
// window with the attributes "more" and "in".
func (r *Repeats) Warn(log *slog.Logger, key any, message string, attributes ...any) {
	if r.Event(key, func(more int, in time.Duration) {
		log.Warn(message, append(attributes, slog.Int("more", more), slog.Duration("in", in))...)
	}) {
		log.Warn(message, attributes...)
	}
}

func (r *Repeats) merge(key any) any {
	if r.Merge == nil {
		return anyOther{}
	}
	return r.Merge(key)
}

// nextLocked begins the next window.
func (e *event) nextLocked() {
	e.more, e.since, e.quiet = 0, time.Now(), false
	e.window = min(windowGrowth*e.window, lastWindow)
	e.timer.Reset(e.window)
}

func (r *Repeats) windowEnds(key any, e *event) {
	r.mu.Lock()
	switch {
	case r.closed, e.quiet:
		delete(r.events, key)
		r.mu.Unlock()
		return
	case e.more == 0:
		e.quiet = true
		e.timer.Reset(lastWindow)
		r.mu.Unlock()
		return
	}
	more, again, in := e.more, e.again, time.Since(e.since)
	e.nextLocked()
	r.mu.Unlock()
	again(more, in.Round(time.Second))
}

// Close reports the repetitions that are still counted. Later events are all first ones.
func (r *Repeats) Close() {
	r.mu.Lock()
	events := r.events
	r.events, r.closed = nil, true
	r.mu.Unlock()
	for _, e := range events {
		e.timer.Stop()
		if e.more > 0 {
			e.again(e.more, time.Since(e.since).Round(time.Second))
		}
	}
}
