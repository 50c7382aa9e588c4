// Package awake counts the time in which this process runs. A host that gives its processor to others, a control group whose
// quota is used up, a suspended machine: for as long as the process does not run, or its goroutines wait for a processor,
// it can neither read what has arrived nor send. That time must not count against a peer, so time-outs are in the time of a
// [Clock] and not in that of the wall.
//
// There is no way to ask the system for it, so a Clock has a beat. A beat that comes late shows for how long nothing ran. It
// beats only while somebody waits, so that an idle process has nothing to do.
package awake

import (
	"container/heap"
	"sync"
	"time"
)

const (
	// interval is how often a clock looks how late it is. Its timers have no finer grain.
	interval = 100 * time.Millisecond
	// grace is how late a beat may be before it counts as one that came late.
	grace = 20 * time.Millisecond
	// memory is how long Late remembers.
	memory = 5 * time.Second
)

// A Clock tells the time in which this process has run. The zero value is ready. Its methods may be called from any goroutine.
type Clock struct {
	mu      sync.Mutex
	began   time.Time // zero before the first use
	lost    time.Duration
	recent  time.Duration // of that, what was lost of late
	last    time.Time     // the last beat; of use only while it beats
	holders int           // who need the beat
	ticker  *time.Timer
	timers  timers
}

// Now is the time since some moment, without that in which the process did not run while the clock was held.
func (c *Clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nowLocked(time.Now())
}

// Late is how much time was lost of late, most of it in the last few seconds, while the clock was held. On a host that has too little
// for this process, its peers may be on the same host, or what makes this one late may be what they all have to do.
func (c *Clock) Late() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.recent + c.lateLocked(time.Now())
}

func (c *Clock) nowLocked(wall time.Time) time.Duration {
	if c.began.IsZero() {
		c.began = wall
	}
	return wall.Sub(c.began) - c.lost - c.lateLocked(wall)
}

// lateLocked is by how much the next beat is late already.
func (c *Clock) lateLocked(wall time.Time) time.Duration {
	if c.holders == 0 {
		return 0
	}
	return max(0, wall.Sub(c.last)-interval-grace)
}

// Hold makes the clock beat until Release is called as often as Hold.
func (c *Clock) Hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holdLocked()
}

func (c *Clock) holdLocked() {
	if c.holders++; c.holders > 1 {
		return
	}
	if now := time.Now(); now.Sub(c.last) > memory {
		c.recent = 0
	}
	c.last = time.Now()
	if c.began.IsZero() {
		c.began = c.last
	}
	if c.ticker == nil {
		c.ticker = time.AfterFunc(interval, c.tick)
	} else {
		c.ticker.Reset(interval)
	}
}

// Release is the opposite of Hold.
func (c *Clock) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.releaseLocked()
}

func (c *Clock) releaseLocked() {
	if c.holders == 1 {
		c.lost += c.lateLocked(time.Now())
		c.ticker.Stop()
	}
	c.holders--
}

func (c *Clock) tick() {
	for _, t := range c.beat(time.Now()) {
		t.f()
	}
}

// beat looks how late it is, and returns the timers that are due.
func (c *Clock) beat(wall time.Time) (due []*Timer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holders == 0 { // since the timer has fired
		return nil
	}
	late := c.lateLocked(wall)
	c.lost += late
	c.recent += late - time.Duration(float64(c.recent)*min(1, float64(wall.Sub(c.last))/float64(memory)))
	c.last = wall
	now := c.nowLocked(wall)
	for len(c.timers) > 0 && c.timers[0].at <= now {
		t := heap.Pop(&c.timers).(*Timer)
		due = append(due, t)
		c.releaseLocked()
	}
	if c.holders > 0 {
		c.ticker.Reset(interval)
	}
	return due
}

// A Timer is what AfterFunc has set.
type Timer struct {
	clock *Clock
	at    time.Duration
	f     func()
	index int // in the heap; -1: it has fired or was stopped
}

// AfterFunc calls f, which must not block, when the process has run for d; at the next beat from then on.
func (c *Clock) AfterFunc(d time.Duration, f func()) *Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holdLocked()
	t := &Timer{clock: c, at: c.nowLocked(time.Now()) + d, f: f}
	heap.Push(&c.timers, t)
	return t
}

// Stop keeps the timer from firing, and reports whether it does.
func (t *Timer) Stop() bool {
	c := t.clock
	c.mu.Lock()
	defer c.mu.Unlock()
	if t.index < 0 {
		return false
	}
	heap.Remove(&c.timers, t.index)
	c.releaseLocked()
	return true
}

// timers is a heap, the next one first.
type timers []*Timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push is container/heap's.
func (h *timers) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}

// Pop is container/heap's.
func (h *timers) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
