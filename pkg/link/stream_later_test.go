package link_test

import (
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// comesAfter reads one piece and fails if it is another one or comes at another time after start.
func comesAfter(t *testing.T, s *link.Stream, start time.Time, want string, after time.Duration) {
	t.Helper()
	b := make([]byte, 100)
	n, err := s.Read(b)
	if took := time.Since(start); string(b[:n]) != want || err != nil && !errors.Is(err, io.EOF) || took != after {
		t.Errorf("%q, %v after %v; want %q after %v", b[:n], err, took, want, after)
	}
}

func TestLaterGoesAloneInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, peer := streams(t)
		time.Sleep(time.Second)
		start := time.Now()
		s.WriteLater([]byte("x"))
		comesAfter(t, peer, start, "x", 2*time.Millisecond) // one of them on the way
		start = time.Now()
		if err := s.Finish([]byte("end")); err != nil {
			t.Error(err)
		}
		comesAfter(t, peer, start, "end", 2*time.Millisecond)
		s.Reset(wire.CodeLost)
		peer.Reset(wire.CodeLost)
	})
}

func TestLaterGoesAlongWithOthers(t *testing.T) {
	// A daemon usually has one processor. With more, QUIC may run beside the writer, and send
	// between one write and the next.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, time.Millisecond)
		dialled, accepted := network.Pair()
		a, b := open(t, dialled, ""), open(t, dialled, "")
		peerA, peerB := accept(t, accepted), accept(t, accepted)
		time.Sleep(time.Second)
		for name, write := range map[string]func(){
			"Write":    func() { _, _ = b.Write([]byte("now")) },
			"TryWrite": func() { _, _ = b.TryWrite([]byte("now")) },
		} {
			time.Sleep(time.Second / 4)
			sent := dialled.Stats().PacketsSent
			start := time.Now()
			a.WriteLater([]byte("later"))
			write()
			comesAfter(t, peerB, start, "now", time.Millisecond)
			comesAfter(t, peerA, start, "later", time.Millisecond)
			if more := dialled.Stats().PacketsSent - sent; more != 1 {
				t.Errorf("%s: %d packets were sent", name, more)
			}
		}
		start := time.Now()
		_ = a.Finish([]byte("end"))
		c := open(t, dialled, "")
		comesAfter(t, peerA, start, "end", time.Millisecond)
		for _, s := range []*link.Stream{a, b, c, peerA, peerB} {
			s.Reset(wire.CodeLost)
		}
	})
}

func TestLaterKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, peer := streams(t)
		s.WriteLater([]byte("a"))
		s.WriteLater([]byte("b"))
		if _, err := s.Write([]byte("c")); err != nil {
			t.Error(err)
		}
		s.WriteLater([]byte("d"))
		if ok, err := s.TryWrite([]byte("e")); !ok || err != nil {
			t.Error(ok, err)
		}
		s.WriteLater(make([]byte, 1000))
		s.WriteLater([]byte("f"))
		if err := s.Finish([]byte("g")); err != nil {
			t.Error(err)
		}
		want := "abcde" + string(make([]byte, 1000)) + "fg"
		if got, err := io.ReadAll(peer); string(got) != want || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		s.Reset(wire.CodeLost)
		peer.Reset(wire.CodeLost)
	})
}

func TestLaterWaitsForAFullWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, time.Millisecond)
		network.Limits = link.Limits{ConnectionWindow: 64 << 10}
		dialled, accepted := network.Pair()
		bulk, s := open(t, dialled, ""), open(t, dialled, "")
		peerBulk, peer := accept(t, accepted), accept(t, accepted)
		_ = bulk.SetWriteDeadline(time.Now().Add(time.Second))
		n, _ := bulk.Write(make([]byte, 1<<20)) // nobody reads it
		s.WriteLater([]byte("later"))
		time.Sleep(time.Second)
		if ok, err := s.TryWrite([]byte("no")); ok || err != nil {
			t.Errorf("TryWrite: %v, %v", ok, err)
		}
		if err := s.Finish([]byte(", the end")); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadFull(peerBulk, make([]byte, n)); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(peer); string(got) != "later, the end" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		for _, s := range []*link.Stream{bulk, s, peerBulk, peer} {
			s.Reset(wire.CodeLost)
		}
	})
}

func TestResetDropsWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, peer := streams(t)
		s.WriteLater([]byte("x"))
		s.Reset(wire.CodeClosing)
		_, err := peer.Read(make([]byte, 1))
		want(t, "Read", err, &wire.ResetError{Code: wire.CodeClosing, Remote: true})
		want(t, "Finish of a half that was reset", s.Finish(nil), &wire.ResetError{Code: wire.CodeClosing})
		peer.Reset(wire.CodeLost)
	})
}

// TestLaterCountsAsTraffic lets a server answer streams by Finish and WriteLater alone. Its
// heartbeats are then as frequent as the relay's, which would otherwise miss the answers to its own
// and give the link up.
func TestLaterCountsAsTraffic(t *testing.T) {
	for name, answer := range map[string]func(*link.Stream){
		"Finish":     func(s *link.Stream) { _ = s.Finish([]byte("no")) },
		"WriteLater": func(s *link.Stream) { s.WriteLater([]byte("no")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := linktest.New(t, 10*time.Millisecond)
				server, relay := network.Pair()
				for range 5 {
					time.Sleep(20 * time.Minute) // both ends are idle
					asked := open(t, relay, "")
					answer(accept(t, server))
					if _, err := io.ReadFull(asked, make([]byte, 2)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Minute)
					if err := errors.Join(server.Err(), relay.Err()); err != nil {
						t.Fatal(err)
					}
				}
			})
		})
	}
}
