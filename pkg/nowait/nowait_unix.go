//go:build unix && !linux

package nowait

import "golang.org/x/sys/unix"

// Read reads what is there into p, as read(2) does. The error is a unix.Errno, EAGAIN where nothing
// is there.
func Read(fd uintptr, p []byte) (int, error) { return unix.Read(int(fd), p) }

// Write writes what fits of p, as write(2) does. The error is a unix.Errno, EAGAIN where nothing
// fits.
func Write(fd uintptr, p []byte) (int, error) { return unix.Write(int(fd), p) }
