package session_test

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/session"
)

// TestGoneSockets is the kernel's part of TestGoneAfterItsEnd: it says that P1 is gone.
func TestGoneSockets(t *testing.T) {
	n := start(t, session.Limits{})
	p1, p5, done := n.forwardSockets()
	_, _ = p1.Write([]byte("job"))
	_ = p1.CloseWrite()
	readsEnd(t, "P5", p5, "job")
	_ = p1.SetLinger(0) // as a host does that has forgotten the connection, when keepalive asks
	_ = p1.Close()
	if sum := within(t, 20*time.Second, done); sum.Outcome != session.OutcomeResetByP1 {
		t.Errorf("%+v", sum)
	}
	readsEnd(t, "P5", p5, "")
}

// TestAwaitGone waits in the poller for what nobody reads.
func TestAwaitGone(t *testing.T) {
	await := func(c session.Conn) <-chan error {
		why := make(chan error, 1)
		go func() { why <- session.AwaitGone(c) }()
		return why
	}
	ours, theirs := socketPair(t)
	_ = theirs.CloseWrite()
	readsEnd(t, "this end", ours, "")
	why := await(ours)
	_ = theirs.SetLinger(0)
	_ = theirs.Close()
	if err := within(t, 20*time.Second, why); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
	ours, theirs = socketPair(t)
	_ = theirs.CloseWrite()
	why = await(ours)
	_ = ours.Close()
	if err := within(t, 20*time.Second, why); err != nil {
		t.Error(err)
	}
}

// deafen makes a socket's host seem dead: it drops all packets that come for it.
func deafen(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drop := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	_ = raw.Control(func(fd uintptr) {
		err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop[0]})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeadHost lets a host die while data is on its way to it: keepalive asks nothing then.
func TestDeadHost(t *testing.T) {
	session.SetUnheardTime(t, time.Second)
	for _, end := range []session.Outcome{session.OutcomeResetByP1, session.OutcomeResetByP5} {
		n := start(t, session.Limits{})
		dead, left, done := n.forwardSockets()
		if end == session.OutcomeResetByP5 {
			dead, left = left, dead
		}
		_, _ = dead.Write([]byte("hello"))
		if _, err := io.ReadFull(left, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		deafen(t, dead)
		_, _ = left.Write([]byte("data"))
		if sum := within(t, time.Minute, done); sum.Outcome != end {
			t.Errorf("%+v", sum)
		}
		if _, err := io.ReadAll(left); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("who is left reads %v", err)
		}
	}
}

// TestClosedWindow lets P1 be alive and not read for longer than a dead host is waited for.
func TestClosedWindow(t *testing.T) {
	session.SetUnheardTime(t, time.Second)
	n := start(t, session.Limits{})
	p1, p5, done := n.forwardSockets()
	want := pattern(1, 20<<20)
	go func() {
		_, _ = p5.Write(want)
		_ = p5.CloseWrite()
	}()
	select {
	case sum := <-done:
		t.Fatalf("ended: %+v", sum)
	case <-time.After(6 * time.Second):
	}
	readsEnd(t, "P1", p1, string(want))
	_ = p1.Close()
	within(t, 20*time.Second, done)
}

// TestUrgentByte sends a byte with MSG_OOB among others, which is to keep its place.
func TestUrgentByte(t *testing.T) {
	n := start(t, session.Limits{})
	p1, p5, done := n.forwardSockets()
	for _, way := range [][2]*net.TCPConn{{p1, p5}, {p5, p1}} {
		raw, err := way[0].SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = way[0].Write([]byte("before"))
		_ = raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte("!"), unix.MSG_OOB, nil) })
		if err != nil {
			t.Fatal(err)
		}
		_, _ = way[0].Write([]byte("behind"))
		_ = way[0].CloseWrite()
		readsEnd(t, "the other end", way[1], "before!behind")
	}
	within(t, 20*time.Second, done)
}
