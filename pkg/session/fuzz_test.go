package session_test

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// seeds are streams of frames that begin well.
func seeds() [][]byte {
	join := func(frames ...any) (b []byte) {
		for _, f := range frames {
			switch f := f.(type) {
			case wire.Frame:
				b = f.Append(b)
			case string:
				b = append(b, f...)
			}
		}
		return b
	}
	return [][]byte{
		nil,
		join(wire.Frame{Kind: wire.FrameData, Value: 5}, "hello", wire.Frame{Kind: wire.FrameFin}),
		join(wire.Frame{Kind: wire.FrameNone, Acked: 10, Limit: 10}, wire.Frame{Kind: wire.FramePing}, wire.Frame{Kind: wire.FramePong}),
		join(wire.Frame{Kind: wire.FrameData, Acked: 4, Limit: 4, Value: 5}, "hello", wire.Frame{Kind: wire.FrameYield, Value: 3}),
		join(wire.Frame{Kind: wire.FrameReset, Value: 1}),
		join(wire.Frame{Kind: wire.FrameFin, Acked: 10}, wire.Frame{Kind: wire.FrameNone, Acked: 1}),
		join(wire.Frame{Kind: wire.FrameYield, Value: 65536}, wire.Frame{Kind: wire.FrameData, Value: 1}, "x"),
		join(wire.Frame{Kind: wire.FrameData, Value: 1 << 20}, "not all of it"),
	}
}

// greet runs a short honest session: whatever has been said on another stream,
// it isn't noticed here.
func greet(t *testing.T, n *network) {
	p1, accepted, done := n.forward()
	p5 := <-accepted
	both(t, p1, p5, 3000, 3000)
	if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed {
		t.Errorf("an honest session: %+v", sum)
	}
}

// FuzzServerStream says anything at all behind a granted opening, in two writes: no byte
// of it stops the server, or shows in another session.
func FuzzServerStream(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b, uint16(3), true)
		f.Add(b, uint16(0), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, split uint16, early bool) {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{})
			ours, p5 := connPair(100)
			n.dialBy(func(context.Context) (session.Conn, error) {
				if early {
					time.Sleep(time.Second) // the frames come before P5 is there
				}
				return ours, nil
			})
			p := n.play("mallory", hello(1))
			if !early {
				_ = p.status()
			}
			_, _ = p5.Write([]byte("0123456789"))
			at := min(int(split), len(b))
			p.say(b[:at])
			synctest.Wait()
			p.say(b[at:])
			go func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{p5}) }()
			time.Sleep(2 * time.Second)
			_ = p.st.CloseWrite()
			time.Sleep(10 * time.Second)
			p.st.Reset(wire.CodeRevoked)
			p5.reset()
			greet(t, n)
			time.Sleep(10 * time.Second)
			if left := n.server.Sessions(); len(left) > 0 {
				t.Errorf("left: %+v", left)
			}
		})
	})
}

// FuzzClientStream answers a client's opening with anything at all, and so the
// attempts that follow.
func FuzzClientStream(f *testing.F) {
	reply := func(status wire.Status, g wire.Granted) []byte {
		return wire.Append(nil, &wire.Reply{Status: status, Node: "evil", Inner: wire.Append(nil, &g)})
	}
	for _, b := range seeds() {
		f.Add(append(reply(wire.StatusOpen, opened()), b...), uint16(40))
	}
	f.Add(reply(wire.StatusComplete, opened()), uint16(0))
	f.Add(reply(wire.StatusNoSession, wire.Granted{}), uint16(0))
	f.Add(wire.Append(nil, &wire.Reply{Status: wire.StatusNotConnected, Node: "relay"}), uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, split uint16) {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{})
			p1, done := n.forwardVia("evil")
			_, _ = p1.Write([]byte("0123456789"))
			go func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{p1}) }()
			over := make(chan struct{})
			var playing sync.WaitGroup
			playing.Go(func() {
				for {
					select {
					case p := <-n.strangers:
						at := min(int(split), len(b))
						p.say(b[:at])
						time.Sleep(time.Millisecond)
						p.say(b[at:])
						time.Sleep(time.Second)
						_ = p.st.CloseWrite()
						time.Sleep(time.Second)
						p.st.Reset(wire.CodeLost)
					case <-over:
						return
					}
				}
			})
			time.Sleep(10 * time.Second)
			p1.reset()
			soon(t, 10*time.Minute, done)
			close(over)
			playing.Wait()
			greet(t, n)
		})
	})
}

// FuzzStorm is TestStorm with seeds that nobody has tried.
func FuzzStorm(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { runStorm(t, seed) })
	})
}
