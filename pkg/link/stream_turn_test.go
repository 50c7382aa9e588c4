package link_test

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// many opens streams over a link of a network, and returns their ends here and there.
func many(t *testing.T, network *linktest.Network, count int) (l *link.Link, here, there []*link.Stream) {
	t.Helper()
	dialled, accepted := network.Pair()
	for range count {
		here, there = append(here, open(t, dialled, "")), append(there, accept(t, accepted))
	}
	time.Sleep(time.Second)
	return dialled, here, there
}

func resetAll(streams ...[]*link.Stream) {
	for _, some := range streams {
		for _, s := range some {
			s.Reset(wire.CodeLost)
		}
	}
}

// TestLargeWritesTakeTurns has many streams write much at once. The data of one stream arrives
// before others have begun, and small writes don't wait.
func TestLargeWritesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const count, size = 40, 64 << 10
		network := linktest.New(t, time.Millisecond)
		_, here, there := many(t, network, count+1)
		var all sync.WaitGroup
		var begun [count + 1]atomic.Bool
		for i, s := range there {
			all.Go(func() {
				_, _ = s.Read(make([]byte, 1))
				begun[i].Store(true)
				_, _ = io.ReadFull(s, make([]byte, size-1))
			})
		}
		done := make(chan int, count)
		for i := range count {
			all.Go(func() {
				if n, err := here[i].Write(make([]byte, size)); n != size || err != nil {
					t.Errorf("stream %d: %d bytes, %v", i, n, err)
				}
				done <- i
			})
		}
		synctest.Wait()
		if _, err := here[count].Write(make([]byte, 4<<10)); err != nil {
			t.Error(err)
		}
		<-done
		time.Sleep(time.Millisecond) // on the way
		waiting := 0
		for i := range count {
			if !begun[i].Load() {
				waiting++
			}
		}
		if waiting < count/2 {
			t.Errorf("when the first of %d writes had ended, only %d had not begun", count, waiting)
		}
		if !begun[count].Load() {
			t.Error("a small write waits for large ones")
		}
		if _, err := here[count].Write(make([]byte, size-4<<10)); err != nil {
			t.Error(err)
		}
		all.Wait()
		resetAll(here, there)
	})
}

// TestWhoIsNotReadHoldsUpNobody has some streams write to peers that don't read. Their turns end
// all the same.
func TestWhoIsNotReadHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const stalled = 20
		network := linktest.New(t, time.Millisecond)
		network.Limits.StreamWindow = 32 << 10 // so that they don't fill the connection's
		_, here, there := many(t, network, stalled+1)
		var writes sync.WaitGroup
		for _, s := range here[:stalled] {
			writes.Go(func() { _, _ = s.Write(make([]byte, 8<<20)) })
		}
		time.Sleep(100 * time.Millisecond)
		for range 3 {
			start := time.Now()
			writes.Go(func() { _, _ = here[stalled].Write(make([]byte, 64<<10)) })
			if _, err := io.ReadFull(there[stalled], make([]byte, 64<<10)); err != nil {
				t.Error(err)
			}
			if took := time.Since(start); took > 50*time.Millisecond {
				t.Errorf("64 KiB took %v beside streams that stand still", took)
			}
			time.Sleep(time.Second)
		}
		resetAll(here, there)
		writes.Wait()
	})
}

// TestWaitingForATurnEnds ends writes that wait for their turn, in all ways that there are.
func TestWaitingForATurnEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(l *link.Link, s *link.Stream)
		want error
	}{
		{"deadline", func(_ *link.Link, s *link.Stream) { _ = s.SetWriteDeadline(time.Now()) }, os.ErrDeadlineExceeded},
		{"cancelled", func(_ *link.Link, s *link.Stream) { s.CancelWrite(wire.CodeClosing) }, &wire.ResetError{Code: wire.CodeClosing}},
		{"reset", func(_ *link.Link, s *link.Stream) { s.Reset(wire.CodeClosing) }, &wire.ResetError{Code: wire.CodeClosing}},
		{"link closed", func(l *link.Link, _ *link.Stream) { l.Close(wire.CloseClosing, "") }, &wire.ResetError{Code: wire.CodeLost}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := linktest.New(t, time.Second) // so that nobody's turn ends for a while
				l, here, there := many(t, network, 12)
				var writes sync.WaitGroup
				last := len(here) - 1
				for _, s := range here[:last] {
					writes.Go(func() { _, _ = s.Write(make([]byte, 8<<20)) })
				}
				synctest.Wait()
				start := time.Now()
				ended := make(chan error)
				go func() {
					_, err := here[last].Write(make([]byte, 64<<10))
					ended <- err
				}()
				synctest.Wait()
				c.end(l, here[last])
				err := <-ended
				if took := time.Since(start); took != 0 {
					t.Errorf("it took %v", took)
				}
				var reset *wire.ResetError
				if wanted, ok := errors.AsType[*wire.ResetError](c.want); ok {
					if !errors.As(err, &reset) || reset.Code != wanted.Code {
						t.Errorf("got %v, want %v", err, c.want)
					}
				} else {
					want(t, "Write", err, c.want)
					// A write after the deadline doesn't wait either.
					if _, err := here[last].Write(make([]byte, 64<<10)); !errors.Is(err, c.want) || time.Since(start) != 0 {
						t.Errorf("again: %v after %v", err, time.Since(start))
					}
				}
				resetAll(here, there)
				writes.Wait()
			})
		})
	}
}
