//go:build linux

package e2e

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

// promised wants each duration that try measures to be at most the one that the product promises.
//
// A promise is about a machine that has time for the product, so a try on a busy machine may fail for
// that reason alone. One try that keeps the promise is enough. The second try that breaks it while
// the machine was at rest fails the test. Where no try was at rest, and the machine's own delays
// explain at least one of the tries, the promise counts as unmeasured.
func promised(t *testing.T, most time.Duration, try func() map[string]time.Duration) {
	t.Helper()
	const tries, misses = 6, 2
	missed, excused := 0, 0
	var measured []string
	for range tries {
		stood := testutil.WatchMachine()
		took := try()
		still := stood()
		longest := slices.Max(slices.Collect(maps.Values(took)))
		t.Logf("longest: %v; %v is the most; the machine itself stood still for %v at a time", took, most, still)
		if longest <= most {
			return
		}
		measured = append(measured, fmt.Sprintf("%v on a machine that stood still for %v", longest, still))
		switch {
		case still < testutil.AtRest:
			missed++
		case longest <= most+still:
			excused++
		}
		if missed == misses {
			break
		}
	}
	if missed == misses || excused == 0 {
		t.Errorf("%v is the most, and no try kept to it: %q", most, measured)
		return
	}
	testutil.Unmeasured(t, "%v is the most: %q", most, measured)
}

// stalled is the delay of a timer from which on the machine may be why something failed that takes a
// second or two: other processes wait then for longer than the timer.
const stalled = 300 * time.Millisecond
