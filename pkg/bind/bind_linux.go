package bind

import (
	"io/fs"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// deepen lets backlog connections wait to be accepted. A failure does no harm.
func deepen(l net.Listener) {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.Listen(int(fd), backlog) })
}

// bornWithMode sets the mode of a Unix socket before it is bound: its file never has a wider mode,
// not even for a moment.
func bornWithMode(mode fs.FileMode) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		chmod := func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }
		if e := raw.Control(chmod); e != nil {
			return e
		}
		return err
	}
}
