package session_test

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/session"
)

// unixPair is a connection over a Unix socket.
func unixPair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if a, err = net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr)); err != nil {
		t.Fatal(err)
	}
	if b, err = l.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// forwardUnix is forward with Unix sockets for P1 and P5.
func (n *network) forwardUnix() (p1, p5 *net.UnixConn, done <-chan session.Summary) {
	p1, p2 := unixPair(n.t)
	p4, p5 := unixPair(n.t)
	n.dialBy(func(context.Context) (session.Conn, error) { return p4, nil })
	ended := make(chan session.Summary, 1)
	go func() {
		ended <- *n.client.Forward(context.Background(), p2, &session.Request{Server: "nas", Target: ":22", ResumeTimeout: time.Minute})
	}()
	return p1, p5, ended
}

// says has one end say something that the other one hears.
func says(t *testing.T, from, to net.Conn, what string) {
	t.Helper()
	if _, err := io.WriteString(from, what); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(what))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != what {
		t.Fatalf("%q, %v; said was %q", got, err, what)
	}
}

// TestUnixCut cuts a connection of Unix sockets off: no reader may take that for an end.
func TestUnixCut(t *testing.T) {
	n := start(t, session.Limits{})
	p1, p5, done := n.forwardUnix()
	for range 3 {
		says(t, p1, p5, "query")
		says(t, p5, p1, "a part of the ans")
	}
	n.server.End(func(session.Info) bool { return true }, session.OutcomeRevoked)
	within(t, 20*time.Second, done)
	for who, c := range map[string]net.Conn{"P1": p1, "P5": p5} {
		if n, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s reads %d bytes, %v", who, n, err)
		}
	}
}

// TestUnixEnds lets both programs end in order, whoever is first, and whatever they have said.
func TestUnixEnds(t *testing.T) {
	n := start(t, session.Limits{})
	for _, size := range []int{0, 1, 100, 1 << 10, 1<<10 + 1, 3 << 10, 1 << 20} {
		p1, p5, done := n.forwardUnix()
		says(t, p1, p5, "query")
		says(t, p5, p1, "answer")
		want := string(pattern(1, size))
		for _, way := range [][2]*net.UnixConn{{p1, p5}, {p5, p1}} {
			go func() {
				_, _ = io.WriteString(way[0], want)
				_ = way[0].CloseWrite()
			}()
			readsEnd(t, "the other end", way[1], want)
		}
		if sum := within(t, 20*time.Second, done); sum.Outcome != session.OutcomeClosed {
			t.Errorf("%d bytes: %+v", size, sum)
		}
		for _, c := range []net.Conn{p1, p5} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%d bytes: behind the end: %v", size, err)
			}
		}
	}
}

// TestUnixSmallBuffer has P1 send into the smallest buffer that there is, and wait for room by
// poll, as the runtime does.
func TestUnixSmallBuffer(t *testing.T) {
	n := start(t, session.Limits{})
	p1, p5, done := n.forwardUnix()
	if err := p1.SetWriteBuffer(8 << 10); err != nil {
		t.Fatal(err)
	}
	want := string(pattern(1, 1<<20))
	go func() {
		for i := 0; i < len(want); i += 700 {
			_, _ = io.WriteString(p1, want[i:min(i+700, len(want))])
		}
		_ = p1.CloseWrite()
	}()
	readsEnd(t, "P5", p5, want)
	_ = p5.Close()
	within(t, 20*time.Second, done)
}
