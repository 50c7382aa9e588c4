package awake

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestLate has a process stand still. No test can make Go's timers late, so this one calls the beat itself.
func TestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Clock
		begun := time.Now()
		c.Hold()
		defer c.Release()
		c.AfterFunc(time.Second, func() {})
		at := func(d time.Duration) time.Time { return begun.Add(d) }
		now := func(d time.Duration) time.Duration {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.nowLocked(at(d))
		}
		for i := range time.Duration(5) {
			c.beat(at((i + 1) * interval))
		}
		if got := now(5 * interval); got != 5*interval {
			t.Errorf("%v have passed of 500 ms in which nothing was late", got)
		}
		// For 8 s it stands still: nobody has seen that before the beat, and the beat changes nothing.
		before := now(8*time.Second + 5*interval)
		if due := c.beat(at(8*time.Second + 5*interval)); len(due) != 0 {
			t.Error("a timer has counted time in which the process did not run")
		}
		after := now(8*time.Second + 5*interval)
		if most := 6*interval + grace; before != most || after != most {
			t.Errorf("%v before the beat and %v after it, instead of %v", before, after, most)
		}
		if due := c.beat(at(8*time.Second + 6*interval)); len(due) != 0 {
			t.Error("too early")
		}
		for i := range time.Duration(10) {
			if due := c.beat(at(8*time.Second + (7+i)*interval)); len(due) == 1 {
				if i != 2 {
					t.Errorf("at beat %d", i)
				}
				return
			}
		}
		t.Error("the timer never fires")
	})
}
