package nowait

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Read reads into p what is there, as read(2) does. It returns a unix.Errno: EAGAIN if nothing is
// there.
func Read(fd uintptr, p []byte) (int, error) { return transfer(unix.SYS_READ, fd, p) }

// Write writes what fits of p, as write(2) does. It returns a unix.Errno: EAGAIN if nothing fits.
func Write(fd uintptr, p []byte) (int, error) { return transfer(unix.SYS_WRITE, fd, p) }

// Peek reads as Read does and leaves the data in the socket, as recv(2) with MSG_PEEK does.
func Peek(fd uintptr, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)),
		unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func transfer(call, fd uintptr, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, fd,
		uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
