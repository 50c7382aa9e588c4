package account

import (
	"sync"
	"time"
)

const (
	// firstWindow and lastWindow bound the time in which repetitions are summed
	// up; each window is windowGrowth times as long as the one before it. A night of
	// eight hours is then eight reports.
	firstWindow  = time.Minute
	lastWindow   = 2 * time.Hour
	windowGrowth = 4
	// maxKeys bounds the events that are remembered at once. Beyond it, all
	// new ones count as the same one: what strangers can make up must not grow.
	maxKeys = 1024
)

// Repeats tells the first of equal events from its repetitions, and sums those
// up: one report for each window, whether the events come by the second or by
// the hour. What has not happened for lastWindow after the end of its window is
// forgotten. The zero value is ready. Its methods may be called from any goroutine.
type Repeats struct {
	mu     sync.Mutex
	events map[any]*event
	closed bool
}

type event struct {
	more   int
	again  func(more int, in time.Duration)
	since  time.Time
	window time.Duration
	quiet  bool        // its window has ended, and nothing has come since
	timer  *time.Timer // the end of the window or, if quiet, of the memory
}

type anyOther struct{}

// Event reports whether this event is to be told now, since no equal one came
// lately. Otherwise it is counted, and the last again is called when the window
// ends, with how many there were and in what time. again is called from a
// goroutine of its own, or by Close.
func (r *Repeats) Event(key any, again func(more int, in time.Duration)) (first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return true
	}
	e := r.events[key]
	if e == nil && len(r.events) >= maxKeys {
		key = anyOther{}
		e = r.events[key]
	}
	if e != nil && e.quiet {
		e.nextLocked()
		return true
	}
	if e != nil {
		e.more++
		e.again = again
		return false
	}
	if r.events == nil {
		r.events = make(map[any]*event)
	}
	e = &event{since: time.Now(), window: firstWindow}
	e.timer = time.AfterFunc(e.window, func() { r.windowEnds(key, e) })
	r.events[key] = e
	return true
}

// nextLocked begins the next window, with a report.
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

// Close calls what is still to be told. Events that come later are all first ones.
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
