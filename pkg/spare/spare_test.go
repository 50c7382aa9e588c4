//go:build linux || darwin

package spare_test

import (
	"net"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/spare"
)

func TestSpare(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 128, Max: was.Max}); err != nil {
		t.Skip(err)
	}
	socket := func() (net.PacketConn, syscall.RawConn) {
		t.Helper()
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		return conn, raw
	}
	var all []net.PacketConn
	defer func() {
		for _, conn := range all {
			_ = conn.Close()
		}
	}()
	for {
		conn, raw := socket()
		all = append(all, conn)
		if spare.Reached(raw, 30) {
			break
		}
		if len(all) > 98 {
			t.Fatal("the end is not seen")
		}
	}
	if len(all) < 80 {
		t.Errorf("%d sockets reach the last 30 of 128", len(all))
	}
	if spare.Room(30) || !spare.Room(10) {
		t.Error("there is room for more than there are, or for none")
	}
	_ = all[0].Close()
	if !spare.Room(30) {
		t.Error("what was given back is not there")
	}
	if _, raw := socket(); spare.Reached(raw, 1<<20) {
		t.Error("more than half is kept")
	}
}
