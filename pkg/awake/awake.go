// Package awake counts the time in which this process runs.
//
// A process may not run for seconds: its host is suspended, gives the processor to others, or its
// control group has used up its quota. Meanwhile it can neither read what has arrived nor send.
// Such time must not count against a peer, so time-outs use a [Clock] instead of the wall clock.
//
// The one idea: the system does not tell when a process has not run, so a Clock has a beat. A beat
// that is late shows how long nothing ran. The beat runs only while somebody waits, so an idle
// process has nothing to do.
//
//	var clock awake.Clock
//	timer := clock.AfterFunc(time.Second, giveUp) // after a second in which this process has run
//	timer.Stop()
//
// A caller that compares two values of Now calls Hold before and Release after. All methods may be
// called from any goroutine.
package awake

import (
	"container/heap"
	"sync"
	"time"
)

const (
	// interval is the time between two beats. Timers have no finer grain.
	interval = 100 * time.Millisecond
	// grace is how late a beat may be before it counts as late.
	grace = 20 * time.Millisecond
	// memory is the time over which Late forgets.
	memory = 5 * time.Second
)

// A Clock returns the time in which this process has run. The zero value is ready.
type Clock struct {
	mu      sync.Mutex
	began   time.Time     // zero before the first use
	lost    time.Duration // time in which the process did not run
	recent  time.Duration // the part of lost that Late remembers
	last    time.Time     // the last beat; valid only while the clock beats
	holders int           // calls of Hold, and timers, that need the beat
	ticker  *time.Timer
	timers  timers
}

// Now returns the time since some moment, less the time in which the process did not run while the
// clock was held.
func (c *Clock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nowLocked(time.Now())
}

// Late returns how much time was lost lately while the clock was held, most of it within the last
// seconds. The peers of a process that is late are likely to be late too: they may be on the same
// host, or all have the same work to do.
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

// lateLocked returns how late the next beat is already.
func (c *Clock) lateLocked(wall time.Time) time.Duration {
	if c.holders == 0 {
		return 0
	}
	return max(0, wall.Sub(c.last)-interval-grace)
}

// Hold makes the clock beat until Release was called as often as Hold.
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

// Release ends one Hold.
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

// beat adds up how late it is, and returns the timers that are due.
func (c *Clock) beat(wall time.Time) (due []*Timer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holders == 0 { // since the timer has fired
		return nil
	}
	late := c.lateLocked(wall)
	c.lost += late
	c.recent += late - time.Duration(float64(c.recent)*min(1,
		float64(wall.Sub(c.last))/float64(memory)))
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

// A Timer calls a function; see AfterFunc.
type Timer struct {
	clock *Clock
	at    time.Duration
	f     func()
	index int // in the heap; -1 if the timer has fired or was stopped
}

// AfterFunc calls f at the first beat after the process has run for d. f must not block.
func (c *Clock) AfterFunc(d time.Duration, f func()) *Timer {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.holdLocked()
	t := &Timer{clock: c, at: c.nowLocked(time.Now()) + d, f: f}
	heap.Push(&c.timers, t)
	return t
}

// Stop keeps the timer from firing, and reports whether it has.
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

// timers is a heap by at.
type timers []*Timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at < h[j].at }
func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *timers) Push(x any) {
	t := x.(*Timer)
	t.index = len(*h)
	*h = append(*h, t)
}

// Pop implements heap.Interface.
func (h *timers) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = -1
	return t
}
