package link_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// tip is a tip like P2's.
var tip = wire.Append(nil, &wire.Connect{Server: "nas", Inner: []byte("inner")})

// open opens a stream with the tip and data behind it, and fails the test if it can't.
func open(t *testing.T, l *link.Link, data string) *link.Stream {
	t.Helper()
	s, err := l.Open(append(append([]byte(nil), tip...), data...))
	if err != nil {
		t.Fatal("open:", err)
	}
	return s
}

// accept takes the next stream.
func accept(t *testing.T, l *link.Link) *link.Stream {
	t.Helper()
	s, tip, err := l.Accept(t.Context())
	if err != nil {
		t.Fatal("accept:", err)
	}
	if c, ok := tip.(*wire.Connect); !ok || c.Server != "nas" {
		t.Fatalf("tip %#v", tip)
	}
	return s
}

func TestOpeningTakesOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialled, accepted := linktest.New(t, 20*time.Millisecond).Pair()
		time.Sleep(time.Second)
		start := time.Now()
		s := open(t, dialled, "ping")
		if d := time.Since(start); d != 0 {
			t.Errorf("Open took %v", d)
		}
		peer := accept(t, accepted)
		if d := time.Since(start); d != 20*time.Millisecond {
			t.Errorf("the stream arrived after %v", d)
		}
		b := make([]byte, 4)
		if _, err := io.ReadFull(peer, b); err != nil || string(b) != "ping" {
			t.Errorf("read %q, %v", b, err)
		}
		if _, err := peer.Write([]byte("pong")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(s, b); err != nil || string(b) != "pong" {
			t.Errorf("read %q, %v", b, err)
		}
		if d := time.Since(start); d != 40*time.Millisecond {
			t.Errorf("the first byte back came after %v", d)
		}
		s.Reset(wire.CodeLost)
		peer.Reset(wire.CodeLost)
	})
}

func TestHalfClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialled, accepted := linktest.New(t, time.Millisecond).Pair()
		s := open(t, dialled, "question")
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
		if cause := context.Cause(s.Context()); !errors.Is(cause, context.Canceled) {
			t.Errorf("after CloseWrite the context's cause is %v", cause)
		}
		if _, err := s.Write([]byte("more")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("write after CloseWrite: %v", err)
		}
		peer := accept(t, accepted)
		if b, err := io.ReadAll(peer); string(b) != "question" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		if ok, err := peer.TryWrite([]byte("answer")); !ok || err != nil {
			t.Error(ok, err)
		}
		if err := peer.CloseWrite(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(s); string(b) != "answer" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
	})
}

func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		dialled, accepted := network.Pair()
		var seen atomic.Int64
		network.Drop(func(p linktest.Packet) bool {
			if p.From.Addr().String() == linktest.DiallerHost {
				seen.Add(1)
			}
			return false
		})
		s := open(t, dialled, "")
		peer := accept(t, accepted)

		// While a stream carries data now and then: a heartbeat every half second, and at most as
		// many bare acknowledgements.
		for range 10 {
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Second)
		}
		if n := seen.Load(); n < 100 || n > 250 {
			t.Errorf("%d packets in 50 s of traffic", n)
		}

		// Ten seconds after the last data: every ten seconds.
		time.Sleep(10 * time.Second)
		seen.Store(0)
		time.Sleep(10 * time.Minute)
		if n := seen.Load(); n < 60 || n > 150 {
			t.Errorf("%d packets in 10 minutes of silence", n)
		}

		if rtt := dialled.Stats().AppRTT; rtt < 20*time.Millisecond || rtt > 21*time.Millisecond {
			t.Errorf("the application's round trip is %v", rtt)
		}

		// An idle link is woken by the first byte.
		network.Drop(nil)
		network.Cut(linktest.RelayHost)
		start := time.Now()
		if _, err := s.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		<-dialled.Done()
		if d := time.Since(start); d < 1500*time.Millisecond || d > 1600*time.Millisecond {
			t.Errorf("the end of the path was noticed after %v", d)
		}
	})
}

func TestHourOfIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 50*time.Millisecond)
		dialled, accepted := network.Pair()
		s := open(t, dialled, "")
		peer := accept(t, accepted)
		before := network.Packets()
		time.Sleep(time.Hour)
		if n := network.Packets() - before; n > 1500 {
			t.Errorf("%d packets in an idle hour", n)
		}
		if dialled.Err() != nil || accepted.Err() != nil {
			t.Fatal(dialled.Err(), accepted.Err())
		}
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
			t.Error(err)
		}
	})
}

func TestSuspicion(t *testing.T) {
	for _, c := range []struct {
		name      string
		latency   time.Duration
		traffic   bool
		drop      func(p linktest.Packet) bool
		atDialler [2]time.Duration // when the dialler gives up, from the last packet on
		atRelay   [2]time.Duration
	}{
		{
			name:      "all packets are lost, with traffic",
			latency:   10 * time.Millisecond,
			traffic:   true,
			drop:      func(linktest.Packet) bool { return true },
			atDialler: [2]time.Duration{1400 * time.Millisecond, 2100 * time.Millisecond},
			atRelay:   [2]time.Duration{1400 * time.Millisecond, 2200 * time.Millisecond},
		},
		{
			name:      "all packets are lost, idle",
			latency:   10 * time.Millisecond,
			drop:      func(linktest.Packet) bool { return true },
			atDialler: [2]time.Duration{1400 * time.Millisecond, 11600 * time.Millisecond},
			atRelay:   [2]time.Duration{1400 * time.Millisecond, 13700 * time.Millisecond},
		},
		{
			name:      "the dialler's packets are lost",
			latency:   10 * time.Millisecond,
			traffic:   true,
			drop:      func(p linktest.Packet) bool { return p.From.Addr().String() == linktest.DiallerHost },
			atDialler: [2]time.Duration{1400 * time.Millisecond, 2200 * time.Millisecond}, // the relay tells it
			atRelay:   [2]time.Duration{1400 * time.Millisecond, 2200 * time.Millisecond},
		},
		{
			name:      "a path of two seconds gets its time",
			latency:   time.Second,
			traffic:   true,
			drop:      func(linktest.Packet) bool { return true },
			atDialler: [2]time.Duration{8 * time.Second, 20 * time.Second},
			atRelay:   [2]time.Duration{8 * time.Second, 20 * time.Second},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := linktest.New(t, c.latency)
				dialled, accepted := network.Pair()
				time.Sleep(30 * time.Second)
				s := open(t, dialled, "")
				peer := accept(t, accepted)
				var wg sync.WaitGroup
				if c.traffic {
					wg.Go(func() { _, _ = io.Copy(peer, peer) })
					wg.Go(func() {
						for s.Context().Err() == nil {
							_, _ = s.Write([]byte("x"))
							time.Sleep(100 * time.Millisecond)
						}
					})
				}
				time.Sleep(time.Minute)
				if err := errors.Join(dialled.Err(), accepted.Err()); err != nil {
					t.Fatal("before the cut:", err)
				}
				network.Drop(c.drop)
				cut := time.Now()
				for l, limits := range map[*link.Link][2]time.Duration{dialled: c.atDialler, accepted: c.atRelay} {
					wg.Go(func() {
						<-l.Done()
						if d := time.Since(cut); d < limits[0] || d > limits[1] {
							t.Errorf("%s gave up after %v: %v", l.Peer(), d, l.Err())
						}
					})
				}
				wg.Wait()
				if reason := accepted.Reason(); reason != link.EndSilent && reason != link.EndStuck {
					t.Errorf("the relay's end is over as %s: %v", reason, accepted.Err())
				}
				want(t, "Read", func() error { _, err := s.Read(make([]byte, 1)); return err }(), &wire.ResetError{Code: wire.CodeLost})
			})
		})
	}
}

func TestSilenceWithoutExpectationIsNotSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		dialled, accepted := network.Pair()
		time.Sleep(time.Minute + 5*time.Second)
		network.Cut(linktest.RelayHost) // between two heartbeats, when nothing is on its way
		time.Sleep(4 * time.Second)
		network.Heal(linktest.RelayHost)
		time.Sleep(time.Minute)
		if err := errors.Join(dialled.Err(), accepted.Err()); err != nil {
			t.Error(err)
		}
	})
}

func TestFullConnectionWindowIsNotSuspect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		network.Limits = link.Limits{ConnectionWindow: 64 << 10}
		dialled, accepted := network.Pair()
		s := open(t, dialled, "")
		peer := accept(t, accepted)
		var wg sync.WaitGroup
		for _, s := range []*link.Stream{s, peer} {
			wg.Go(func() { _, _ = s.Write(make([]byte, 1<<20)) }) // nobody reads: no heartbeat fits either
		}
		time.Sleep(10 * time.Minute)
		if err := errors.Join(dialled.Err(), accepted.Err()); err != nil {
			t.Error(err)
		}
		s.Reset(wire.CodeLost)
		peer.Reset(wire.CodeLost)
		wg.Wait()
	})
}

func TestRebinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		dialled, accepted := network.Pair()
		s := open(t, dialled, "")
		peer := accept(t, accepted)
		time.Sleep(time.Second)
		before := accepted.RemoteAddr()
		network.Rebind(linktest.DiallerHost)
		for range 100 {
			if _, err := s.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(peer, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if _, err := peer.Write([]byte("y")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if after := accepted.RemoteAddr(); after == before {
			t.Errorf("the relay still sends to %v", after)
		}
	})
}

func TestTips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 10*time.Millisecond)
		network.Limits = link.Limits{PendingTips: 2}
		dialled, accepted := network.Pair()
		go func() {
			for {
				if _, _, err := accepted.Accept(t.Context()); err != nil {
					return
				}
			}
		}()

		// A malformed tip is answered with 400.
		s, err := dialled.Open([]byte{1, 2, 9, 9})
		if err != nil {
			t.Fatal(err)
		}
		reply, err := wire.Read(s)
		if r, ok := reply.(*wire.Reply); err != nil || !ok || r.Status != wire.StatusMalformed {
			t.Errorf("reply %#v, %v", reply, err)
		}

		// Two streams send incomplete tips and take all places for as long as a tip may take. The
		// third stream waits for them.
		start := time.Now()
		silent, err := dialled.Open(tip[:3])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dialled.Open(tip[:1]); err != nil {
			t.Fatal(err)
		}
		good := open(t, dialled, "")
		_, err = silent.Read(make([]byte, 1))
		want(t, "the silent stream", err, &wire.ResetError{Code: wire.CodeLost, Remote: true})
		if d := time.Since(start); d < 5*time.Second || d > 5100*time.Millisecond {
			t.Errorf("the silent stream was reset after %v", d)
		}
		time.Sleep(time.Second)
		if err := context.Cause(good.Context()); err != nil {
			t.Error("the good stream:", err)
		}

		// A second control stream breaks the protocol.
		if _, err := dialled.Open(wire.Append(nil, &wire.Control{})); err != nil {
			t.Fatal(err)
		}
		<-dialled.Done()
		closed, ok := errors.AsType[*link.ClosedError](dialled.Err())
		if !ok || closed.Code != wire.CloseProtocol || !closed.Remote {
			t.Error(dialled.Err())
		}
	})
}

func TestTipsInOddShapes(t *testing.T) {
	long := wire.Append(nil, &wire.Connect{Server: "nas", Inner: bytes.Repeat([]byte("inner"), 600)})
	for _, c := range []struct {
		name string
		tip  []byte
	}{
		{"short", tip},
		{"of 3,000 bytes", long},
		{"type as two bytes", append([]byte{0x40, tip[0]}, tip[1:]...)},
		{"length as four bytes", append([]byte{tip[0], 0x80, 0, 0, tip[1]}, tip[2:]...)},
	} {
		for _, piece := range []int{1 << 20, 1000, 3, 2, 1} {
			t.Run(fmt.Sprintf("%s, in pieces of %d", c.name, piece), func(t *testing.T) {
				if len(c.tip) > 1000*piece {
					t.Skip("takes longer than a tip may")
				}
				synctest.Test(t, func(t *testing.T) {
					dialled, accepted := linktest.New(t, ms).Pair()
					// Two at once, so that the second does not wait for the first.
					for range 2 {
						go func() {
							rest := append(append([]byte(nil), c.tip...), "data"...)
							n := min(piece, len(rest))
							s, err := dialled.Open(rest[:n])
							if err != nil {
								t.Error(err)
								return
							}
							for rest = rest[n:]; len(rest) > 0; rest = rest[n:] {
								time.Sleep(5 * ms)
								n = min(piece, len(rest))
								if _, err := s.Write(rest[:n]); err != nil {
									t.Error(err)
								}
							}
							_ = s.CloseWrite()
						}()
					}
					for range 2 {
						peer := accept(t, accepted)
						if b, err := io.ReadAll(peer); string(b) != "data" || err != nil {
							t.Errorf("behind the tip: %q, %v", b, err)
						}
						_ = peer.CloseWrite()
					}
				})
			})
		}
	}
}

func TestAcceptEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dialled, accepted := linktest.New(t, ms).Pair()
		// With a late tip and without one.
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), sec)
			if _, _, err := accepted.Accept(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
			if _, err := dialled.Open(tip[:1]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * ms)
		}
		dialled.Close(wire.CloseClosing, "bye")
		if _, _, err := accepted.Accept(t.Context()); err == nil || !strings.Contains(err.Error(), "bye") {
			t.Error(err)
		}
		if _, err := accepted.Open(tip); err == nil {
			t.Error("a dead link opens streams")
		}
	})
}

// TestLostLargePackets has a path begin to lose large packets while a link is up. Small packets
// pass: heartbeats, acknowledgements and short messages. The link is given up. It is not given up
// where the path has always lost such packets.
func TestLostLargePackets(t *testing.T) {
	const large = 1000
	for _, from := range []string{linktest.DiallerHost, linktest.RelayHost} {
		for _, bulk := range []bool{true, false} { // false: a request of some packets now and then
			t.Run(fmt.Sprintf("from %s, bulk %v", from, bulk), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					network := linktest.New(t, 10*time.Millisecond)
					random := rand.New(rand.NewPCG(1, 2))
					network.Delay(func(linktest.Packet) time.Duration { return time.Duration(random.Int64N(int64(time.Millisecond))) })
					dialled, accepted := network.Pair()
					s := open(t, dialled, "")
					peer := accept(t, accepted)
					if from == linktest.RelayHost {
						s, peer = peer, s
					}
					var wg sync.WaitGroup
					wg.Go(func() { _, _ = io.Copy(io.Discard, peer) })
					wg.Go(func() {
						for s.Context().Err() == nil {
							_, _ = s.Write(make([]byte, 5000))
							if !bulk {
								time.Sleep(300 * time.Millisecond)
							} else {
								time.Sleep(10 * time.Millisecond)
							}
						}
					})
					time.Sleep(20 * time.Second)
					if err := errors.Join(dialled.Err(), accepted.Err()); err != nil {
						t.Fatal("before:", err)
					}
					shrunk := time.Now()
					network.Drop(func(p linktest.Packet) bool { return p.From.Addr().String() == from && len(p.Data) > large })
					<-dialled.Done()
					<-accepted.Done()
					t.Logf("%v, %v after %v", dialled.Err(), accepted.Err(), time.Since(shrunk))
					most := 8 * time.Second
					if !bulk { // heartbeats that happen to be small are acknowledged
						most = 20 * time.Second
					}
					if d := time.Since(shrunk); d > most {
						t.Errorf("the link was given up after %v", d)
					}
					by := dialled
					if from == linktest.RelayHost {
						by = accepted
					}
					if by.Reason() != link.EndStuck {
						t.Errorf("it was given up as %s: %v", by.Reason(), by.Err())
					}
					wg.Wait()
				})
			})
		}
	}
}
