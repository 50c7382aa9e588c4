//go:build unix

package daemon

import (
	"time"

	"golang.org/x/sys/unix"
)

// processorTime is what this process has used of it, in user mode and in the kernel.
func processorTime() (used time.Duration, known bool) {
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) != nil {
		return 0, false
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), true
}
