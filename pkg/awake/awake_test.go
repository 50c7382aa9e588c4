package awake_test

import (
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/awake"
)

// TestTimers has timers of a process that runs fire on time, to the beat.
func TestTimers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c awake.Clock
		begun, fired := time.Now(), make(chan time.Duration, 3)
		for _, d := range []time.Duration{2 * time.Second, time.Second, 1500 * time.Millisecond} {
			c.AfterFunc(d, func() { fired <- time.Since(begun) })
		}
		stopped := c.AfterFunc(time.Second, func() { t.Error("a timer has fired that was stopped") })
		if !stopped.Stop() || stopped.Stop() {
			t.Error("a timer is stopped once")
		}
		for _, want := range []time.Duration{time.Second, 1500 * time.Millisecond, 2 * time.Second} {
			if got := <-fired; got < want || got > want+100*time.Millisecond {
				t.Errorf("fired after %v instead of %v", got, want)
			}
		}
	})
}

// TestNobodyWaits lets a clock that nobody holds count all time: it has nothing to know better by.
func TestNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c awake.Clock
		before := c.Now()
		time.Sleep(time.Hour)
		if got := c.Now() - before; got != time.Hour {
			t.Errorf("%v have passed", got)
		}
		c.Hold()
		time.Sleep(time.Minute)
		c.Release()
		if got := c.Now() - before; got != time.Hour+time.Minute {
			t.Errorf("%v have passed", got)
		}
	})
}
