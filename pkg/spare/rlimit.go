//go:build linux || darwin

package spare

import "golang.org/x/sys/unix"

// Room reports whether a descriptor is free besides the last n. It opens one for a moment.
func Room(n int) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return false
	}
	defer func() { _ = unix.Close(fd) }()
	return !last(uintptr(fd), n)
}

// last reports whether a descriptor is one of the last n.
func last(fd uintptr, n int) bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return false
	}
	most := limit.Cur
	return uint64(fd) >= most-min(uint64(max(n, 0)), most/2)
}
