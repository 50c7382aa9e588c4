package bind

import (
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"ptthqd/pkg/config"
)

// An error that only a sandbox causes has no hint about privileged ports.
func TestSandboxIsNamed(t *testing.T) {
	for _, test := range []struct {
		kind  config.Kind
		place string
		call  string
		errno syscall.Errno
		hint  string
	}{
		{config.UDP, "[::]:30380", "bind", syscall.EPERM, "a sandbox around this process (seccomp, SELinux) refuses"},
		{config.UDP, "[::]:30380", "bind", syscall.EACCES, "a sandbox around this process (seccomp, SELinux) refuses"},
		{config.TCP, "127.0.0.1:2200", "socket", syscall.EACCES, "a sandbox around this process (seccomp, SELinux) refuses"},
		{config.TCP, "127.0.0.1:2200", "socket", syscall.ENOSYS, "a sandbox around this process (seccomp, SELinux) refuses"},
		{config.TCP, "127.0.0.1:22", "bind", syscall.EACCES, "ports below 1024 need a right"},
		{config.UDP, "[::]:443", "bind", syscall.EACCES, "ports below 1024 need a right"},
	} {
		err := newError(test.kind, test.place, &net.OpError{Op: "listen", Err: os.NewSyscallError(test.call, test.errno)})
		if !strings.HasPrefix(err.Hint, test.hint) || !errors.Is(err, test.errno) {
			t.Errorf("%v: %v", test, err)
		}
	}
}
