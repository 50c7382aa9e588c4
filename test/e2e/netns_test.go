//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A lab is a network of namespaces: the client's host and the server's, each
// joined to the relays' host alone.
//
//	laptop 10.91.1.2 ── 10.91.1.1  hub  10.91.2.1 ── 10.91.2.2 nas
//	                    relays at 10.91.0.1, 10.91.0.2, …
type lab struct {
	t      *testing.T
	prefix string
}

var labs atomic.Int64

// newLab makes the namespaces; they are removed when the test ends.
func newLab(t *testing.T) *lab {
	t.Helper()
	requires(t, os.Geteuid() == 0, "network namespaces need root")
	requires(t, has("ip"), "apt-get install iproute2")
	requires(t, has("nft"), "apt-get install nftables")
	l := &lab{t: t, prefix: fmt.Sprintf("ptthq-%d-%d-", os.Getpid(), labs.Add(1))}
	for _, host := range []string{"hub", "laptop", "nas"} {
		l.run("ip", "netns", "add", l.prefix+host)
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", l.prefix+host).Run() })
		l.in(host, "ip", "link", "set", "lo", "up")
	}
	for i, host := range []string{"laptop", "nas"} {
		l.in("hub", "ip", "link", "add", "to-"+host, "type", "veth", "peer", "name", "eth0", "netns", l.prefix+host)
		l.in("hub", "ip", "addr", "add", fmt.Sprintf("10.91.%d.1/24", i+1), "dev", "to-"+host)
		l.in("hub", "ip", "link", "set", "to-"+host, "up")
		l.in(host, "ip", "link", "set", "eth0", "up")
		l.address(host, fmt.Sprintf("10.91.%d.2", i+1))
	}
	for i := range 2 {
		l.in("hub", "ip", "addr", "add", fmt.Sprintf("10.91.0.%d/32", i+1), "dev", "lo")
	}
	l.in("hub", "nft", "add table inet f; add chain inet f in { type filter hook input priority 0; }; "+
		"add chain inet f out { type filter hook output priority 0; }")
	return l
}

// requires skips a test that can't run here and says what is missing. Where the
// tests are to be complete (CI is set) it fails.
func requires(t *testing.T, met bool, what string) {
	t.Helper()
	switch {
	case met:
	case os.Getenv("CI") != "":
		t.Fatal(what)
	default:
		t.Skip(what)
	}
}

func has(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

func (l *lab) run(args ...string) {
	l.t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// in runs a command in a host.
func (l *lab) in(host string, args ...string) {
	l.t.Helper()
	l.run(append([]string{"ip", "netns", "exec", l.prefix + host}, args...)...)
}

// address gives a host its only address, in the place of any other.
func (l *lab) address(host, address string) {
	l.t.Helper()
	l.in(host, "ip", "addr", "flush", "dev", "eth0")
	l.in(host, "ip", "addr", "add", address+"/24", "dev", "eth0")
	hub := address[:strings.LastIndexByte(address, '.')] + ".1"
	l.in(host, "ip", "route", "replace", "default", "via", hub)
}

// blackHole drops everything between a host and a relay's address, and tells
// nobody.
func (l *lab) blackHole(host, relay string) {
	l.t.Helper()
	l.in("hub", "nft", fmt.Sprintf("add rule inet f in iifname to-%[1]s ip daddr %[2]s drop; "+
		"add rule inet f out oifname to-%[1]s ip saddr %[2]s drop", host, relay))
}

// clear ends all black holes.
func (l *lab) clear() {
	l.t.Helper()
	l.in("hub", "nft", "flush table inet f")
}

// do calls f on a thread that is in a host's network: sockets that f makes are
// there for good.
func (l *lab) do(host string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread is not unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+l.prefix+host, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// newLabWorld prepares a chain whose nodes are in a lab.
func newLabWorld(t *testing.T, serve func(net.Conn), relays ...string) (*world, *lab) {
	t.Helper()
	l := newLab(t)
	w := newWorld(t, nil, relays...)
	w.lab = l
	for i, name := range relays {
		w.hosts[name] = fmt.Sprintf("10.91.0.%d", i+1)
		w.prefix[name] = []string{"ip", "netns", "exec", l.prefix + "hub"}
	}
	for _, name := range []string{"laptop", "nas"} {
		w.prefix[name] = []string{"ip", "netns", "exec", l.prefix + name}
	}
	err := l.do("nas", func() error {
		w.target = listen(t, serve)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	w.ports["target"] = w.target.Addr().(*net.TCPAddr).Port
	w.writeConfigs()
	return w, l
}
