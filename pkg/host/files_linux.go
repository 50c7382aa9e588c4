package host

import (
	"os"

	"golang.org/x/sys/unix"
)

// RaiseFileLimit raises the limit of open files to the hard limit and returns it; 0 if it is
// unknown. Go raises it by itself, but does not say to what.
func RaiseFileLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	if limit.Cur < limit.Max {
		raised := unix.Rlimit{Cur: limit.Max, Max: limit.Max}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &raised); err == nil {
			return raised.Cur
		}
	}
	return limit.Cur
}

// OpenFiles returns how many file descriptors this process has open; 0 if it is unknown.
func OpenFiles() int {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0
	}
	return len(names) - 1 // without dir
}
