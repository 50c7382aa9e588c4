package link_test

import (
	"context"
	"errors"
	"io"
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

func wantReset(t *testing.T, what string, err error, want wire.ResetError) {
	t.Helper()
	reset, ok := errors.AsType[*wire.ResetError](err)
	if !ok || *reset != want {
		t.Errorf("%s: got %v, want %v", what, err, &want)
	}
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
