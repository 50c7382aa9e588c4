package session_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// TestDirectionsAreIndependent has one side send without reading until it has
// sent everything, while the other does both.
func TestDirectionsAreIndependent(t *testing.T) {
	for _, window := range []int{64 << 10, 1 << 20, 16 << 20} {
		for _, capacity := range []int{100, 10 << 10, 4 << 20} {
			for _, deaf := range []string{"P1", "P5"} {
				t.Run(fmt.Sprintf("window %d, streams %d, %s doesn't read", window, capacity, deaf), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := start(t, session.Limits{MaxWindow: window})
						n.capacity, n.conns = capacity, 4<<10
						p1, accepted, done := n.forward()
						talker, reader := p1, <-accepted
						if deaf == "P5" {
							talker, reader = reader, talker
						}
						size := min(1<<20, capacity*1000)
						there, back := pattern(1, size), pattern(2, size)
						go func() { _, _ = reader.Write(back); _ = reader.CloseWrite() }()
						if err := exchange(talker, reader, there); err != nil {
							t.Error(err)
						}
						if err := receiveAll(talker, back); err != nil {
							t.Error(err)
						}
						if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed {
							t.Errorf("summary %+v", sum)
						}
					})
				})
			}
		}
	}
}

// TestWhatWaitsIsBounded has P5 read nothing: what P1 can write is bounded.
func TestWhatWaitsIsBounded(t *testing.T) {
	for _, up := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{})
			n.conns = 1000
			p1, accepted, done := n.forward()
			from, to := p1, <-accepted
			if !up {
				from, to = to, from
			}
			want := pattern(1, 1<<20)
			go func() { _, _ = from.Write(want); _ = from.CloseWrite() }()
			time.Sleep(time.Hour)
			from.out.mu.Lock()
			written := from.out.written
			from.out.mu.Unlock()
			// The window, and what lies in the two connections.
			if most := 64<<10 + 3*n.conns; written < 64<<10 || written > most {
				t.Errorf("%d bytes were taken; %d is the most", written, most)
			}
			if err := receiveAll(to, want); err != nil {
				t.Error(err)
			}
			_ = to.CloseWrite()
			soon(t, time.Minute, done)
		})
	}
}

// TestHalfClose ends the directions in all orders.
func TestHalfClose(t *testing.T) {
	for _, c := range []struct {
		name   string
		p1, p5 time.Duration // when each ends its direction
		data   int
	}{
		{"P1 first", time.Second, time.Minute, 1000},
		{"P5 first", time.Minute, time.Second, 1000},
		{"P1 hours before", 0, 3 * time.Hour, 1000},
		{"P5 hours before", 3 * time.Hour, 0, 1000},
		{"at once", time.Second, time.Second, 100 << 10},
		{"at once, nothing said", 0, 0, 0},
		{"P1 first, nothing said", 0, time.Second, 0},
		{"P5 first, nothing said", time.Second, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				p1, accepted, done := n.forward()
				p5 := <-accepted
				var all sync.WaitGroup
				for _, d := range []struct {
					from, to *memConn
					after    time.Duration
				}{{p1, p5, c.p1}, {p5, p1, c.p5}} {
					want := pattern(uint64(d.after), c.data)
					all.Go(func() {
						time.Sleep(d.after)
						_, _ = d.from.Write(want)
						_ = d.from.CloseWrite()
					})
					all.Go(func() {
						begun := time.Now()
						if err := receiveAll(d.to, want); err != nil {
							t.Error(err)
						}
						if took := time.Since(begun); took > d.after+time.Second {
							t.Errorf("the end came after %v", took)
						}
					})
				}
				all.Wait()
				if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed || sum.Duration > max(c.p1, c.p5)+time.Second {
					t.Errorf("summary %+v", sum)
				}
				synctest.Wait() // both sockets are closed by now
				for _, c := range []*memConn{p1, p5} {
					if _, err := c.Write([]byte("x")); !errors.Is(err, errReset) {
						t.Errorf("a write after the end: %v", err)
					}
				}
			})
		})
	}
}

// longPath is a network of which a round trip takes 100 ms, and as much fits into
// its streams as is allowed.
func longPath(t *testing.T, limits session.Limits) *network {
	n := start(t, limits)
	n.capacity, n.conns = 64<<20, 4<<20 // whole windows come at one moment of virtual time
	n.replaceLinks(&memLink{name: "far", latency: 50 * time.Millisecond})
	return n
}

// promised is the most that a side promises while run runs.
func promised(memory func() session.Memory, run func()) (most int64) {
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
				most = max(most, memory().Promised)
			}
		}
	})
	run()
	close(over)
	watch.Wait()
	return most
}

// TestWindowGrows fills a long path: far more than a window of 64 KiB a round trip.
func TestWindowGrows(t *testing.T) {
	testutil.SkipRaced(t)
	for _, c := range []struct {
		name   string
		limits session.Limits
		least  time.Duration
		most   time.Duration
	}{
		{"free", session.Limits{}, 0, 5 * time.Second},
		{"not above the floor", session.Limits{MaxWindow: 64 << 10}, 25 * time.Second, 40 * time.Second},
		{"not above half of the budget", session.Limits{WindowBudget: 128 << 10}, 12 * time.Second, 20 * time.Second},
	} {
		for _, up := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, up %v", c.name, up), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := longPath(t, c.limits)
					p1, accepted, done := n.forward()
					from, to := p1, <-accepted
					if !up {
						from, to = to, from
					}
					begun := time.Now()
					if err := exchange(from, to, pattern(1, 20<<20)); err != nil {
						t.Error(err)
					}
					if d := time.Since(begun); d < c.least || d > c.most {
						t.Errorf("it took %v", d)
					}
					_ = to.CloseWrite()
					soon(t, time.Minute, done)
				})
			})
		}
	}
}

// TestWindowOfSlowReader doesn't grow for a reader that is the bottleneck
// itself: what it hasn't read would only wait longer.
func TestWindowOfSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := longPath(t, session.Limits{})
		n.conns = 4 << 10
		p1, accepted, done := n.forward()
		p5 := <-accepted
		want := pattern(1, 2<<20)
		most := promised(n.server.Memory, func() {
			go func() { _, _ = p1.Write(want); _ = p1.CloseWrite() }()
			if err := receiveAll(slowReader{p5}, want); err != nil { // 200 kB/s; 640 are possible
				t.Error(err)
			}
		})
		if most > 64<<10 {
			t.Errorf("%d bytes were promised", most)
		}
		_ = p5.CloseWrite()
		soon(t, time.Minute, done)
	})
}

// TestWindowOfSlowReaderInBursts has a slow reader behind a kernel that lets nothing be written
// until a third of its buffer of 4 MiB is free, and then that at once. The window doesn't rise with
// each burst.
func TestWindowOfSlowReaderInBursts(t *testing.T) {
	const piece, burst = 64 << 10, 20
	for _, up := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := longPath(t, session.Limits{})
			n.conns = 2 * piece
			p1, accepted, done := n.forward()
			from, to, memory := p1, <-accepted, n.server.Memory
			if !up {
				from, to, memory = to, from, n.client.Memory
			}
			want := pattern(1, 10*burst*piece)
			go func() { _, _ = from.Write(want); _ = from.CloseWrite() }()
			for range 9 * burst {
				if len(want)%(burst*piece) == 0 {
					time.Sleep(3 * time.Minute)
				}
				got := make([]byte, piece)
				if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, want[:piece]) {
					t.Fatalf("read: %v", err)
				}
				want = want[piece:]
			}
			if now := memory().Promised; now > 64<<10 { // as much has filled the connection at the beginning
				t.Errorf("up %v: %d bytes are promised", up, now)
			}
			if err := receiveAll(to, want); err != nil {
				t.Error(err)
			}
			_ = to.CloseWrite()
			soon(t, time.Minute, done)
		})
	}
}

// TestYield gives a grown window back when the sender is idle, and it grows again.
func TestYield(t *testing.T) {
	testutil.SkipRaced(t)
	for _, up := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			n := longPath(t, session.Limits{})
			p1, accepted, done := n.forward()
			from, to, memory := p1, <-accepted, n.server.Memory
			if !up {
				from, to, memory = to, from, n.client.Memory
			}
			for range 3 {
				want := pattern(1, 20<<20)
				begun := time.Now()
				most := promised(memory, func() {
					go func() { _, _ = from.Write(want) }()
					got := make([]byte, len(want))
					if _, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, want) {
						t.Errorf("read: %v", err)
					}
				})
				if d := time.Since(begun); d > 5*time.Second {
					t.Errorf("it took %v", d)
				}
				if most < 1<<20 {
					t.Errorf("no more than %d bytes were promised", most)
				}
				time.Sleep(20 * time.Second)
				if now := memory().Promised; now == 0 {
					t.Error("the window was given back too early")
				}
				time.Sleep(20 * time.Second)
				if now := memory().Promised; now != 0 {
					t.Errorf("%d bytes are still promised", now)
				}
			}
			_ = from.CloseWrite()
			_ = to.CloseWrite()
			soon(t, time.Minute, done)
		})
	}
}

// TestBudgets runs sessions that could use more than there is: none takes more
// than its floor from what is exhausted, and all of them come to their end.
func TestBudgets(t *testing.T) {
	for _, c := range []struct {
		name   string
		limits session.Limits
	}{
		{"windows", session.Limits{WindowBudget: 1 << 20}},
		{"retained", session.Limits{RetainedBudget: 1 << 20}},
		{"both", session.Limits{WindowBudget: 1 << 20, RetainedBudget: 1 << 20}},
		{"nothing", session.Limits{WindowBudget: 1, RetainedBudget: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := longPath(t, c.limits)
				var all sync.WaitGroup
				over := make(chan struct{})
				all.Go(func() {
					for {
						select {
						case <-over:
							return
						case <-time.After(5 * time.Millisecond):
						}
						for _, m := range []session.Memory{n.client.Memory(), n.server.Memory()} {
							if m.Promised > m.PromisedLimit || m.Retained > m.RetainedLimit {
								t.Errorf("beyond the budget: %+v", m)
								return
							}
						}
					}
				})
				var sessions sync.WaitGroup
				for i := range 10 {
					p1, accepted, done := n.forward()
					p5 := <-accepted
					sessions.Go(func() {
						up, down := pattern(uint64(i), 1<<20), pattern(uint64(i+100), 1<<20)
						sessions.Go(func() {
							if err := exchange(p5, p1, down); err != nil {
								t.Error(err)
							}
						})
						if err := exchange(p1, p5, up); err != nil {
							t.Error(err)
						}
						soon(t, time.Hour, done)
					})
				}
				sessions.Wait()
				close(over)
				all.Wait()
			})
		})
	}
}

// TestAcknowledgementsOfPath counts the acknowledgements of a session. On a short path they are
// half as many as on a long one, and still fewer if a window lasts for long.
func TestAcknowledgementsOfPath(t *testing.T) {
	for _, c := range []struct {
		name  string
		pong  time.Duration // after which the peer answers a ping
		pace  time.Duration // from one KiB to the next
		kib   int           // that are sent
		count int           // acknowledgements of the end that are looked at; 0: all
		least uint64        // that is acknowledged at a time, once the path is known
		most  uint64
	}{
		{"short", 2 * time.Millisecond, 0, 32, 0, 32 << 10, 128 << 10},
		{"short and slow", 2 * time.Millisecond, 5 * time.Millisecond, 480, 3, 64 << 10, 64 << 10},
		{"long", 40 * time.Millisecond, 0, 32, 0, 16 << 10, 31 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				n.decideBy(func(_, _ string) *session.Refusal { return nil })
				ours, p5 := connPair(1 << 20)
				n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
				p := n.play("laptop", hello(1))
				if status := p.status(); status != wire.StatusOpen {
					t.Fatalf("status %v", status)
				}
				p.data(make([]byte, 1)) // of an unknown path one wants to know
				if _, _, err := p.until(wire.FramePing); err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.pong)
				p.frame(wire.Frame{Kind: wire.FramePong})
				time.Sleep(time.Second)
				for range c.kib {
					p.data(make([]byte, 1024))
					synctest.Wait() // each is delivered by itself
					time.Sleep(c.pace)
				}
				_ = p.st.SetReadDeadline(time.Now().Add(time.Millisecond)) // before a sweep would
				var acks []uint64
				for {
					f, _, err := p.next()
					if err != nil {
						break
					}
					if f.Acked > 1 {
						acks = append(acks, f.Acked)
					}
				}
				acks = acks[len(acks)-min(len(acks), cmp.Or(c.count, len(acks))):]
				if len(acks) == 0 || slices.Min(acks) < c.least || slices.Max(acks) > c.most {
					t.Errorf("acknowledged at a time: %d, want %d to %d", acks, c.least, c.most)
				}
				_ = p.st.SetReadDeadline(time.Time{})
				p.st.Reset(wire.CodeLost)
				_ = p5.Close()
			})
		})
	}
}
