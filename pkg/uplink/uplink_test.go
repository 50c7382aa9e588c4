package uplink_test

import (
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/uplink"
)

// A drain ends by the first of four things.
func TestDrain(t *testing.T) {
	const never = time.Hour
	for name, test := range map[string]struct {
		quietAfter, endedAfter, forcedAfter, want time.Duration
	}{
		"nothing moves":    {2 * time.Second, never, never, 2 * time.Second},
		"all have ended":   {never, 3 * time.Second, never, 3 * time.Second},
		"it is forced":     {never, never, 4 * time.Second, 4 * time.Second},
		"the time is over": {never, never, never, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				relays := uplink.New(uplink.Config{ID: "laptop"})
				begun := time.Now()
				ended := make(chan struct{})
				defer time.AfterFunc(test.endedAfter, func() { close(ended) }).Stop()
				defer time.AfterFunc(test.forcedAfter, relays.Force).Stop()
				moving := func() bool { return time.Since(begun) < test.quietAfter }
				relays.Drain(time.Minute, moving, ended)
				if took := time.Since(begun); took != test.want {
					t.Errorf("the drain took %v, want %v", took, test.want)
				}
			})
		})
	}
}
