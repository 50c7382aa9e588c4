package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/budget"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// streams returns both ends of an open stream, over both ends of a link.
func streams(t *testing.T) (network *linktest.Network, dialled, accepted *link.Stream) {
	t.Helper()
	network = linktest.New(t, time.Millisecond)
	d, a := network.Pair()
	return network, open(t, d, ""), accept(t, a)
}

func TestResetCodesArriveBothWays(t *testing.T) {
	for _, c := range []struct {
		name   string
		end    func(s *link.Stream)
		read   error // what the peer's Read says
		write  error // what its Write says
		cause  error // what its Context says
		cause0 error // what this end's Context says
	}{
		{
			name:   "CancelWrite",
			end:    func(s *link.Stream) { s.CancelWrite(wire.CodeClosing) },
			read:   &wire.ResetError{Code: wire.CodeClosing, Remote: true},
			cause0: &wire.ResetError{Code: wire.CodeClosing},
		},
		{
			name:   "CancelRead",
			end:    func(s *link.Stream) { s.CancelRead(wire.CodeRevoked) },
			write:  &wire.ResetError{Code: wire.CodeRevoked, Remote: true},
			cause:  &wire.ResetError{Code: wire.CodeRevoked, Remote: true},
			read:   os.ErrDeadlineExceeded,
			cause0: nil,
		},
		{
			name:   "Reset",
			end:    func(s *link.Stream) { s.Reset(wire.CodeLost) },
			read:   &wire.ResetError{Code: wire.CodeLost, Remote: true},
			write:  &wire.ResetError{Code: wire.CodeLost, Remote: true},
			cause:  &wire.ResetError{Code: wire.CodeLost, Remote: true},
			cause0: &wire.ResetError{Code: wire.CodeLost},
		},
		{
			name:   "Close with a revoked right",
			end:    func(s *link.Stream) { s.Link().Close(wire.CloseRevoked, "test") },
			read:   &wire.ResetError{Code: wire.CodeRevoked, Remote: true},
			write:  &wire.ResetError{Code: wire.CodeRevoked, Remote: true},
			cause:  &wire.ResetError{Code: wire.CodeRevoked, Remote: true},
			cause0: &wire.ResetError{Code: wire.CodeRevoked},
		},
		{
			name:   "Close",
			end:    func(s *link.Stream) { s.Link().Close(wire.CloseClosing, "test") },
			read:   &wire.ResetError{Code: wire.CodeLost},
			write:  &wire.ResetError{Code: wire.CodeLost},
			cause:  &wire.ResetError{Code: wire.CodeLost},
			cause0: &wire.ResetError{Code: wire.CodeLost},
		},
	} {
		for _, dialler := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/dialler=%v", c.name, dialler), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					_, this, peer := streams(t)
					if !dialler {
						this, peer = peer, this
					}
					woken := false
					context.AfterFunc(peer.Context(), func() { woken = true })
					c.end(this)
					time.Sleep(10 * time.Millisecond)
					synctest.Wait()
					if woken != (c.cause != nil) {
						t.Errorf("AfterFunc of the context was called: %v", woken)
					}

					_ = peer.SetReadDeadline(time.Now().Add(time.Millisecond))
					_, err := peer.Read(make([]byte, 1))
					want(t, "Read", err, c.read)
					_, err = peer.Peek(make([]byte, 1))
					want(t, "Peek", err, c.read)
					_, err = peer.Write([]byte("x"))
					want(t, "Write", err, c.write)
					_, err = peer.TryWrite([]byte("x"))
					want(t, "TryWrite", err, c.write)
					want(t, "context.Cause", context.Cause(peer.Context()), c.cause)
					want(t, "context.Cause here", context.Cause(this.Context()), c.cause0)
					if c.write != nil && this.Link().Err() == nil {
						want(t, "CloseWrite", peer.CloseWrite(), c.write)
					}
					peer.Reset(wire.CodeLost)
					this.Reset(wire.CodeLost)
				})
			})
		}
	}
}

func want(t *testing.T, what string, got, want error) {
	t.Helper()
	if w, ok := errors.AsType[*wire.ResetError](want); ok {
		if g, ok := errors.AsType[*wire.ResetError](got); !ok || *g != *w {
			t.Errorf("%s: got %v, want %v", what, got, want)
		}
		return
	}
	if !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s, peer := streams(t)
		start := time.Now()
		_ = s.SetReadDeadline(start.Add(time.Second))
		if _, err := s.Peek(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("Peek: %v after %v", err, time.Since(start))
		}
		_ = s.SetWriteDeadline(time.Now().Add(time.Second))
		start = time.Now()
		if n, err := s.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("Write: %d, %v after %v", n, err, time.Since(start))
		}
		if ok, err := s.TryWrite(make([]byte, 64<<10)); ok || err != nil {
			t.Errorf("TryWrite into a full window: %v, %v", ok, err)
		}
		s.Reset(wire.CodeLost)
		peer.Reset(wire.CodeLost)
	})
}

func TestStreamLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, time.Millisecond)
		network.Limits = link.Limits{Streams: 3} // one is the control stream
		dialled, accepted := network.Pair()
		first := open(t, dialled, "")
		peer := accept(t, accepted)
		open(t, dialled, "")
		if _, err := dialled.Open(tip); !errors.Is(err, link.ErrStreamLimit) {
			t.Fatalf("the third stream: %v", err)
		}
		// A stream whose both halves have ended makes room.
		_ = first.CloseWrite()
		_ = peer.CloseWrite()
		if _, err := io.ReadAll(peer); err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(first); err != nil {
			t.Error(err)
		}
		time.Sleep(100 * time.Millisecond)
		open(t, dialled, "")
	})
}

func TestOpenWaitsForAFullWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, time.Millisecond)
		network.Limits = link.Limits{ConnectionWindow: 64 << 10, TipTimeout: 2 * time.Second}
		dialled, accepted := network.Pair()
		s := open(t, dialled, "")
		peer := accept(t, accepted)
		_ = s.SetWriteDeadline(time.Now().Add(time.Second))
		n, _ := s.Write(make([]byte, 1<<20)) // nobody reads it
		start := time.Now()
		if _, err := dialled.Open(make([]byte, 32<<10)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != 2*time.Second {
			t.Errorf("Open: %v after %v", err, time.Since(start))
		}
		opened := make(chan error)
		go func() {
			_, err := dialled.Open(append(tip, make([]byte, 32<<10)...))
			opened <- err
		}()
		if _, err := io.ReadFull(peer, make([]byte, n)); err != nil {
			t.Error(err)
		}
		if err := <-opened; err != nil {
			t.Error(err)
		}
	})
}

func TestWindowBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := linktest.New(t, 50*time.Millisecond)
		windows := budget.New("link_memory", 3<<20)
		network.Limits = link.Limits{Windows: windows}
		dialled, accepted := network.Pair()
		s := open(t, dialled, "")
		peer := accept(t, accepted)
		go func() { _, _ = io.Copy(io.Discard, peer) }()
		if _, err := s.Write(make([]byte, 64<<20)); err != nil {
			t.Fatal(err)
		}
		if used, _ := windows.State(); used <= 0 || used > 3<<20 {
			t.Errorf("%d bytes of the budget are used", used)
		}
		dialled.Close(wire.CloseClosing, "")
		time.Sleep(time.Second)
		if used, _ := windows.State(); used != 0 {
			t.Errorf("%d bytes of the budget are used after the link's end", used)
		}
	})
}
