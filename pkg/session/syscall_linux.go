package session

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Go's runtime isn't told of these system calls. They never wait, as it polls the sockets, but often last for longer than 20 µs,
// after which it takes a call that it knows of for one that waits, and gives the processor to another of its threads: the
// rawUDP of pkg/link says what that costs.

func readSocket(fd uintptr, p []byte) (int, error) { return transfer(unix.SYS_READ, fd, p) }

func writeSocket(fd uintptr, p []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, p) }

func transfer(call, fd uintptr, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
