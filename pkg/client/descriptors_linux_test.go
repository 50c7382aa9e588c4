package client_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/client"
)

func TestDescriptorsAreSpared(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 128, Max: was.Max}); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()
	port := freePort(t)
	c := settings(mapping("m", "tcp 127.0.0.1:"+port))
	c.Limits.SpareDescriptors = 60
	c.Limits.HoldTimeout = time.Minute
	n := start(t, client.Config{Settings: c})
	var conns []net.Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}()
	for len(conns) < 45 { // both ends of each are this process's
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		if n.Snapshot().LimitsHit["spare_descriptors"] > 0 {
			break
		}
	}
	until(t, func() bool { return n.Snapshot().LimitsHit["spare_descriptors"] > 0 })
	if held := n.Snapshot().Held; held > 40 {
		t.Errorf("it has accepted %d connections", held)
	}
	if err := n.Alive(t.Context()); err != nil {
		t.Error(err)
	}
	if n.log.Count("raise LimitNOFILE") == 0 {
		t.Error("the log doesn't say what to do")
	}
	before := n.Snapshot().Held
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 256, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	conns = append(conns, conn)
	until(t, func() bool { return n.Snapshot().Held > before })
}

// until waits for something of a real network.
func until(t *testing.T, is func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for !is() {
		select {
		case <-look.C:
		case <-deadline:
			t.Fatal("it doesn't come about")
		}
	}
}
