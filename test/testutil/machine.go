package testutil

import (
	"testing"
	"time"
)

// AtRest is the longest delay of a timer on a machine that has nothing else to do.
const AtRest = 20 * time.Millisecond

// WatchMachine measures from now on how late a timer fires at most. stop returns that: for how long
// the machine itself stood still at a time.
func WatchMachine() (stop func() time.Duration) {
	const beat = 5 * time.Millisecond
	asked, told := make(chan struct{}), make(chan time.Duration)
	go func() {
		var longest time.Duration
		for {
			begun := time.Now()
			select {
			case <-time.After(beat):
				longest = max(longest, time.Since(begun)-beat)
			case <-asked:
				told <- longest
				return
			}
		}
	}()
	return func() time.Duration {
		close(asked)
		return <-told
	}
}

// Broken fails the test for something that takes a busy machine to happen. Where the machine itself
// stood still for excuse or longer at a time, that says nothing of the product, and is unmeasured.
func Broken(t *testing.T, still, excuse time.Duration, format string, args ...any) {
	t.Helper()
	if still < excuse {
		t.Errorf(format, args...)
		return
	}
	Unmeasured(t, "the machine stood still for %v at a time; "+format, append([]any{still}, args...)...)
}

// Unmeasured says in a subtest that is skipped what could not be measured on this machine, and what
// was measured instead. The rest of the test goes on.
func Unmeasured(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Run("NOT MEASURED", func(t *testing.T) { t.Skipf("this machine is too busy: "+format, args...) })
}
