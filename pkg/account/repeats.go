package account

import (
	"sync"
	"time"
)

const (
	// firstWindow and lastWindow bound the time in which repetitions are summed
	// up; each window is twice as long as the one before it while the event goes
	// on. A night of eight hours is then a dozen reports.
	firstWindow = time.Minute
	lastWindow  = time.Hour
	// maxKeys bounds the events that are remembered at once. Beyond it, all
	// new ones count as the same one: what strangers can make up must not grow.
	maxKeys = 1024
)

// Repeats tells the first of equal events from its repetitions, and sums those
// up. The zero value is ready. Its methods may be called from any goroutine.
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
	timer  *time.Timer
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

func (r *Repeats) windowEnds(key any, e *event) {
	r.mu.Lock()
	if r.closed || e.more == 0 {
		delete(r.events, key)
		r.mu.Unlock()
		return
	}
	more, again, in := e.more, e.again, time.Since(e.since)
	e.more, e.since = 0, time.Now()
	e.window = min(2*e.window, lastWindow)
	e.timer.Reset(e.window)
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
