package session_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// violations are what no peer may say on a stream that carries a session. The
// TCP connection behind the session, far, takes little and has sent ten bytes,
// which the peer has read and not acknowledged.
var violations = []struct {
	name string
	say  func(p *peer, far *memConn)
}{
	{"acknowledges what wasn't sent", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameNone, Acked: 11})
	}},
	{"acknowledges twice", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameNone, Acked: 10})
		p.frame(wire.Frame{Kind: wire.FrameNone, Acked: 10})
	}},
	{"acknowledges everything there is", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameNone, Acked: 1<<62 - 1})
	}},
	{"allows more than any window", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameNone, Limit: 1<<62 - 1})
	}},
	{"allows more than any window, bit by bit", func(p *peer, _ *memConn) {
		for range 100 {
			p.frame(wire.Frame{Kind: wire.FrameNone, Limit: 1 << 20})
		}
	}},
	{"sends beyond the window", func(p *peer, _ *memConn) {
		for range 5 {
			p.data(make([]byte, 20000))
		}
	}},
	{"sends beyond the window at once", func(p *peer, _ *memConn) {
		p.data(make([]byte, 1<<20))
	}},
	{"sends more than was allowed", func(p *peer, far *memConn) {
		// A quarter of the window is delivered, but what that allows isn't said before the peer has
		// been told. What was delivered may be allowed again by then, but no more.
		p.data(make([]byte, wire.InitialWindow))
		p.data(make([]byte, wire.InitialWindow))
	}},
	{"sends data behind the end", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameFin})
		p.data([]byte("x"))
	}},
	{"ends twice", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameFin})
		p.frame(wire.Frame{Kind: wire.FrameFin})
	}},
	{"ends beyond the window", func(p *peer, _ *memConn) {
		p.frames(
			wire.Frame{Kind: wire.FrameYield, Value: wire.InitialWindow - 1000},
			wire.Frame{Kind: wire.FrameData, Value: 1000},
			wire.Frame{Kind: wire.FrameFin},
		)
	}},
	{"gives back more than there is", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameYield, Value: wire.InitialWindow + 1})
	}},
	{"gives back more than there is left", func(p *peer, _ *memConn) {
		p.frames(
			wire.Frame{Kind: wire.FrameData, Value: 1000},
			wire.Frame{Kind: wire.FrameYield, Value: wire.InitialWindow - 999},
		)
	}},
	{"gives back and sends", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameYield, Value: wire.InitialWindow})
		p.data([]byte("x"))
	}},
	{"gives back everything there is", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameYield, Value: 1<<62 - 1})
	}},
	{"says what nobody understands", func(p *peer, _ *memConn) { p.say([]byte{7}) }},
	{"says what nobody understands, with an acknowledgement", func(p *peer, _ *memConn) { p.say([]byte{0xff, 0, 0, 0}) }},
	{"sends a frame of no data", func(p *peer, _ *memConn) { p.say([]byte{1, 0}) }},
	{"sends a frame that is too long", func(p *peer, _ *memConn) {
		p.frame(wire.Frame{Kind: wire.FrameData, Value: wire.MaxFrameData + 1})
	}},
}

// A bystander is an honest session beside a hostile one: it has sent half of its
// bytes before, and sends the other half after.
type bystander struct {
	p1, p5   *memConn
	done     <-chan session.Summary
	up, down []byte
}

func newBystander(n *network) *bystander {
	p1, accepted, done := n.forward()
	b := &bystander{p1, <-accepted, done, pattern(8, 400<<10), pattern(9, 400<<10)}
	b.half(n.t, 0)
	return b
}

func (b *bystander) half(t testing.TB, which int) {
	for _, d := range []struct {
		from, to *memConn
		data     []byte
	}{{b.p1, b.p5, b.up}, {b.p5, b.p1, b.down}} {
		want := d.data[which*len(d.data)/2:][:len(d.data)/2]
		go func() { _, _ = d.from.Write(want) }()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(d.to, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("a bystander: %v", err)
		}
	}
}

func (b *bystander) check(t testing.TB) {
	b.half(t, 1)
	_ = b.p1.CloseWrite()
	_ = b.p5.CloseWrite()
	if sum := soon(t, time.Minute, b.done); sum.Outcome != session.OutcomeClosed {
		t.Errorf("a bystander: %+v", sum)
	}
}

// howEnded tells how c ended, in the direction that ended last.
func howEnded(c *memConn) error {
	_, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if err == nil {
		_, err = c.Write([]byte("x"))
	}
	return err
}

// TestHostileClient has a client say what it may not: its session is reset with
// a reason, P5 sees a reset, and nobody else notices.
func TestHostileClient(t *testing.T) {
	for _, c := range violations {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				b := newBystander(n)
				ours, p5 := connPair(2000)
				n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
				p := n.play("mallory", hello(1))
				if status := p.status(); status != wire.StatusOpen {
					t.Fatal(status)
				}
				_, _ = p5.Write([]byte("0123456789"))
				if _, data, err := p.until(wire.FrameData); err != nil || string(data) != "0123456789" {
					t.Fatal(err)
				}
				synctest.Wait() // nothing is said any more that could go along with what is delivered
				c.say(p, p5)
				if err := p.end(); resetWith(err) != wire.CodeProtocol {
					t.Errorf("the stream ended with %v", err)
				}
				synctest.Wait()
				if err := howEnded(p5); !errors.Is(err, errReset) {
					t.Errorf("P5 saw %v", err)
				}
				synctest.Wait()
				if ends := n.endings(); !slices.Equal(ends, []session.Outcome{session.OutcomeProtocol}) {
					t.Errorf("ends: %v", ends)
				}
				b.check(t)
			})
		})
	}
}

// TestHostileServer has a server say what it may not: its session is reset with
// a reason, P1 sees a reset, and nobody else notices.
func TestHostileServer(t *testing.T) {
	for _, c := range violations {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				b := newBystander(n)
				n.conns = 2000
				p1, done := n.forwardVia("evil")
				p := <-n.strangers
				p.grant(opened())
				_, _ = p1.Write([]byte("0123456789"))
				if _, data, err := p.until(wire.FrameData); err != nil || string(data) != "0123456789" {
					t.Fatal(err)
				}
				synctest.Wait() // nothing is said any more that could go along with what is delivered
				c.say(p, p1)
				if err := p.end(); resetWith(err) != wire.CodeProtocol {
					t.Errorf("the stream ended with %v", err)
				}
				synctest.Wait()
				if err := howEnded(p1); !errors.Is(err, errReset) {
					t.Errorf("P1 saw %v", err)
				}
				if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeProtocol || sum.Node != "" || !strings.HasPrefix(sum.Text, "evil broke the protocol: ") {
					t.Errorf("summary %+v", sum)
				}
				b.check(t)
			})
		})
	}
}
