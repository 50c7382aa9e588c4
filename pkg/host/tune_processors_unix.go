//go:build unix

package host

import (
	"time"

	"golang.org/x/sys/unix"
)

// processorTime returns the processor time of this process, in user mode and in the kernel.
func processorTime() (used time.Duration, known bool) {
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) != nil {
		return 0, false
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), true
}
