package session_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// both runs a transfer each way at once.
func both(t *testing.T, p1, p5 *memConn, up, down int) {
	t.Helper()
	result := make(chan error, 2)
	go func() { result <- exchange(p1, p5, pattern(1, up)) }()
	go func() { result <- exchange(p5, p1, pattern(2, down)) }()
	for range 2 {
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
}

func TestBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, accepted, done := n.forward()
		both(t, p1, <-accepted, 5<<20, 3<<20)
		sum := <-done
		if sum.Outcome != session.OutcomeClosed || sum.Up != 5<<20 || sum.Down != 3<<20 {
			t.Errorf("summary %+v", sum)
		}
		synctest.Wait()
		if len(n.ended) != 1 || n.ended[0].Outcome != session.OutcomeClosed || n.ended[0].ID != sum.ID {
			t.Errorf("at the server: %+v", n.ended)
		}
	})
}

func TestCutOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for cut := 1; cut < 3000; cut += 7 {
			n := start(t, session.Limits{})
			n.cutAfter(cut)
			p1, accepted, done := n.forward()
			both(t, p1, <-accepted, 1000, 700)
			if sum := <-done; sum.Outcome != session.OutcomeClosed {
				t.Fatalf("cut after %d bytes: %+v", cut, sum)
			}
		}
	})
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		dial func(context.Context) (session.Conn, error)
		want wire.Status
	}{
		{"refused", func(context.Context) (session.Conn, error) { return nil, errors.New("connection refused") }, wire.StatusRefused},
		{"in time", func(ctx context.Context) (session.Conn, error) { <-ctx.Done(); return nil, ctx.Err() }, wire.StatusTimeout},
		{"limit", func(context.Context) (session.Conn, error) {
			return nil, &session.Refusal{Status: wire.StatusTooMany, Text: "busy"}
		}, wire.StatusTooMany},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				p1, done := n.forwardTo(c.dial)
				_, _ = p1.Write([]byte("hello"))
				sum := <-done
				if sum.Outcome != session.OutcomeRefused || sum.Status != c.want || sum.Node != "nas" {
					t.Errorf("summary %+v", sum)
				}
				if _, err := p1.Read(make([]byte, 1)); !errors.Is(err, errReset) {
					t.Errorf("P1 saw %v", err)
				}
			})
		})
	}
}

func TestResets(t *testing.T) {
	for _, side := range []string{"P1", "P5"} {
		t.Run(side, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				p1, accepted, done := n.forward()
				p5 := <-accepted
				_, _ = p1.Write([]byte("hello"))
				_, _ = io.ReadFull(p5, make([]byte, 5))
				other := p5
				if side == "P1" {
					p1.reset()
				} else {
					p5.reset()
					other = p1
				}
				if _, err := other.Read(make([]byte, 1)); !errors.Is(err, errReset) {
					t.Errorf("the other side saw %v", err)
				}
				if sum := <-done; sum.Outcome != session.Outcome("reset by "+side) {
					t.Errorf("summary %+v", sum)
				}
				synctest.Wait()
				if len(n.ended) != 1 || n.ended[0].Outcome != session.Outcome("reset by "+side) {
					t.Errorf("at the server: %+v", n.ended)
				}
			})
		})
	}
}

func TestDetachedForTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, accepted, done := n.forward()
		p5 := <-accepted
		_, _ = p1.Write([]byte("hello"))
		_, _ = io.ReadFull(p5, make([]byte, 5))
		synctest.Wait() // the reply has come
		n.setLinks()
		n.cut()
		begun := time.Now()
		for _, c := range []*memConn{p1, p5} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, errReset) {
				t.Errorf("saw %v", err)
			}
			if d := time.Since(begun); d.Round(time.Second) != time.Minute {
				t.Errorf("after %v", d)
			}
		}
		if sum := <-done; sum.Outcome != session.OutcomeExpired {
			t.Errorf("summary %+v", sum)
		}
	})
}

func TestNoReadersNoDeadlock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, accepted, done := n.forward()
		p5 := <-accepted
		// P5 sends and doesn't read, though P1 sends for all it is worth.
		go func() { _, _ = p1.Write(pattern(3, 4<<20)); _ = p1.CloseWrite() }()
		if err := exchange(p5, p1, pattern(4, 4<<20)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(p5); err != nil || len(got) != 4<<20 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if sum := <-done; sum.Outcome != session.OutcomeClosed {
			t.Errorf("summary %+v", sum)
		}
	})
}
