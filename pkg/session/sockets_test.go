package session_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"ptthqd/pkg/session"
)

// socketPair is a connection over real TCP: what an end of a session has to do
// with sockets that the runtime's poller knows.
func socketPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		t.Fatal(err)
	}
	b, err = l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

// forwardSockets is forward with real sockets for P1 and P5.
func (n *network) forwardSockets() (p1, p5 *net.TCPConn, done <-chan session.Summary) {
	p1, p2 := socketPair(n.t)
	p4, p5 := socketPair(n.t)
	n.dialBy(func(context.Context) (session.Conn, error) { return p4, nil })
	ended := make(chan session.Summary, 1)
	go func() {
		ended <- *n.client.Forward(context.Background(), p2, &session.Request{
			Mapping: "m", Server: "nas", Target: ":22", Source: "127.0.0.1:5000", ResumeTimeout: time.Minute,
		})
	}()
	return p1, p5, ended
}

// within fails the test, with the stacks of all goroutines, if c says nothing
// in time. Outside of a bubble a deadlock would hang until the whole run times out.
func within[T any](t testing.TB, d time.Duration, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(d):
		go panic("nothing happened for " + d.String()) // beside the test, whose cleanup would hang
		select {}
	}
	return v
}

// TestResetWhileReading closes sockets at the very moment that they are read: a
// Close waits for the reader, who needs the session's lock.
func TestResetWhileReading(t *testing.T) {
	n := start(t, session.Limits{})
	for i := range 300 {
		p1, p5, done := n.forwardSockets()
		var flood sync.WaitGroup
		for _, c := range []*net.TCPConn{p1, p5} {
			flood.Go(func() {
				p := make([]byte, 3000)
				for {
					if _, err := c.Write(p); err != nil {
						return
					}
				}
			})
			flood.Go(func() { _, _ = io.Copy(io.Discard, c) })
		}
		time.Sleep(time.Duration(i%10) * 100 * time.Microsecond)
		who := p1
		if i%2 == 0 {
			who = p5
		}
		_ = who.SetLinger(0)
		_ = who.Close()
		within(t, 10*time.Second, done)
		_ = p5.Close() // P4 has dialled it only if it had heard of the session
		flood.Wait()
	}
}

func TestSockets(t *testing.T) {
	n := start(t, session.Limits{})
	p1, p5, done := n.forwardSockets()
	result := make(chan error, 2)
	for i, pair := range [][2]*net.TCPConn{{p1, p5}, {p5, p1}} {
		go func() {
			want := pattern(uint64(i), 20<<20)
			go func() {
				_, _ = pair[0].Write(want)
				_ = pair[0].CloseWrite()
			}()
			got, err := io.ReadAll(pair[1])
			if err == nil && string(got) != string(want) {
				err = errors.New("the bytes differ")
			}
			result <- err
		}()
	}
	for range 2 {
		if err := within(t, time.Minute, result); err != nil {
			t.Error(err)
		}
	}
	if sum := within(t, 10*time.Second, done); sum.Outcome != session.OutcomeClosed {
		t.Errorf("summary %+v", sum)
	}
}
