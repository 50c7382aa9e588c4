package daemon_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The daemon binds an address that no interface has yet when the address comes, and keeps it over a
// restart like the others.
func TestAddressThatComesLater(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s, m := newSite(t), newManager(t)
	s.key("client")
	s.write("client.toml", clientConfig("10.77.0.1:2200"))
	var v *service
	elsewhere(t, func() { v = m.start(s, "client", nil) })
	const problem = "m: failed: listen on 10.77.0.1:2200: bind: cannot assign requested address, retrying"
	if ready := m.until("READY=1"); !strings.Contains(ready, problem) {
		t.Errorf("ready: %q", ready)
	}
	if names := m.names(); len(names) != 0 {
		t.Errorf("the manager keeps %q", names)
	}
	m.forget()
	in(t, v.Process.Pid, func() error { return give(netip.MustParseAddr("10.77.0.1")) })
	if status := m.until("STATUS="); strings.Contains(status, "failed") {
		t.Errorf("told: %q", status)
	}
	now, err := v.Status(t.Context())
	if err != nil || now.Mappings[0].Problem != "" {
		t.Errorf("%+v, %v", now.Mappings, err)
	}
	if names := m.names(); len(names) != 1 {
		t.Errorf("the manager keeps %q", names)
	}
	in(t, v.Process.Pid, func() error {
		conn, err := net.Dial("tcp", "10.77.0.1:2200")
		if err == nil || errors.Is(err, syscall.ECONNRESET) { // there is no relay
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		return err
	})
	v.stop(t)
}

// elsewhere calls f in a network namespace of its own, where the loopback is up. Processes that f
// starts stay there.
func elsewhere(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(unix.Setns(here, unix.CLONE_NEWNET), unix.Close(here)); err == nil {
			runtime.UnlockOSThread() // else the thread ends with the test
		}
	}()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("a network namespace takes root: %v", err)
	}
	if err := give(netip.MustParseAddr("127.0.0.1")); err != nil {
		t.Fatal(err)
	}
	f()
}

// in calls f on a thread that is in the network of a process.
func in(t *testing.T, pid int, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// give brings the loopback up and gives it an address, as a VPN would.
func give(address netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	name := "lo"
	if !address.IsLoopback() {
		name = "lo:1"
	}
	up, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	up.SetUint16(unix.IFF_UP)
	more, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	return errors.Join(
		unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, up),
		more.SetInet4Addr(address.AsSlice()),
		unix.IoctlIfreq(fd, unix.SIOCSIFADDR, more))
}
