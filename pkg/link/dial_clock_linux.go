package link

import (
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot returns a clock that goes on while the host is suspended, unlike time.Since.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
