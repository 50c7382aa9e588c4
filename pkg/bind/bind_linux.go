package bind

import (
	"io/fs"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// deepen lets more connections wait to be accepted. It may fail harmlessly.
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

// bornWithMode gives a Unix socket its mode before it is bound: the file never has a
// wider one, not even for a moment.
func bornWithMode(mode fs.FileMode) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }); e != nil {
			return e
		}
		return err
	}
}
