package session_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// farRTT is that of farPath.
const farRTT = 30 * time.Millisecond

// farPath is a network with a round trip of 30 ms, whose streams take what they are given.
func farPath(t *testing.T, limits session.Limits) *network {
	n := start(t, limits)
	n.capacity, n.conns = 64<<20, 1<<20
	n.replaceLinks(&memLink{name: "far", latency: farRTT / 2})
	return n
}

// hoard opens a session as a client that reads all that P5 sends, answers pings, and acknowledges
// nothing.
func (n *network) hoard(client string, token byte) (p *peer, p5 *memConn) {
	ours, p5 := connPair(1 << 20)
	n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
	tip := hello(token)
	tip.Limit = 2 * wire.MaxWindow
	p = n.play(client, tip)
	if status := p.status(); status != wire.StatusOpen {
		n.t.Fatalf("status %v", status)
	}
	go func() { _, _ = p5.Write(make([]byte, 2*wire.MaxWindow)) }()
	go p.keep()
	return p, p5
}

// keep reads what comes and answers pings, no more.
func (p *peer) keep() {
	for {
		f, _, err := p.next()
		if err != nil {
			return
		}
		if f.Kind == wire.FramePing {
			p.frame(wire.Frame{Kind: wire.FramePong})
		}
	}
}

// download measures how long a download of so many bytes takes, from its opening on.
func (n *network) download(t *testing.T, size int) time.Duration {
	t.Helper()
	p1, accepted, done := n.forward()
	begun := time.Now()
	if err := exchange(<-accepted, p1, pattern(1, size)); err != nil {
		t.Error(err)
	}
	took := time.Since(begun)
	_ = p1.CloseWrite()
	soon(t, time.Minute, done)
	t.Logf("%.2f MiB/s", float64(size)/took.Seconds()/(1<<20))
	return took
}

// TestGreedyClient has a client with 16 sessions acknowledge nothing of what it reads. Another
// client's download keeps at least half of its rate, while the greedy client is there and after it
// has left its sessions behind.
func TestGreedyClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 16 << 20
		n := farPath(t, session.Limits{MaxWindow: 2 << 20, RetainedBudget: 16 << 20})
		alone := n.download(t, size)
		var peers []*peer
		var p5s []*memConn
		for i := range 16 {
			p, p5 := n.hoard("mallory", byte(i))
			peers, p5s = append(peers, p), append(p5s, p5)
		}
		time.Sleep(time.Second)
		n.nowShort(t, "retained_memory", "mallory")
		if took := n.download(t, size); took > 2*alone {
			t.Errorf("beside the greedy client a download took %v, alone %v", took, alone)
		}
		for _, p := range peers {
			p.st.Reset(wire.CodeLost)
		}
		time.Sleep(time.Second)
		if took := n.download(t, size); took > 2*alone {
			t.Errorf("after the greedy client had left, a download took %v, alone %v", took, alone)
		}
		for _, p5 := range p5s {
			p5.reset()
		}
		synctest.Wait()
	})
}

// nowShort checks that a client with 16 sessions, and no other client, has used up its share of a
// budget, which is half of it. This must have been told once, and each session counted once.
func (n *network) nowShort(t *testing.T, budget, client string) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if hits := n.hits[budget]; hits == 0 || hits > 16 || len(n.hits) != 1 {
		t.Errorf("limits were hit: %v", n.hits)
	}
	if len(n.short) != 1 || n.short[0].Budget != budget || n.short[0].Peer != client {
		t.Errorf("told of %+v", n.short)
	}
	m := n.server.Memory()
	if len(m.Short) != 1 || m.Short[0].Budget != budget || m.Short[0].Peer != client {
		t.Fatalf("short are %+v", m.Short)
	}
	if s := m.Short[0]; s.Held > s.Free || s.Held < s.Free-1<<20 {
		t.Errorf("%s holds %d bytes, %d are free", client, s.Held, s.Free)
	}
}

// upload opens a session as client, whose P5 reads all, and says what is allowed to be sent.
func (n *network) upload(client string, token byte) *uploader {
	ours, p5 := connPair(1 << 20)
	n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
	go func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{p5}) }()
	tip := hello(token)
	tip.Limit = 2 * wire.MaxWindow
	p := n.play(client, tip)
	_, granted, err := p.answer()
	if err != nil || granted == nil {
		n.t.Fatalf("not open: %v", err)
	}
	u := &uploader{peer: p, limit: granted.Limit, p5: p5, allowed: make(chan struct{}, 1)}
	return u
}

// An uploader is a client that uploads as the test wants, and answers pings when the test wants.
type uploader struct {
	*peer
	p5 *memConn

	mu          sync.Mutex // also held while a frame is written
	sent, limit uint64
	allowed     chan struct{} // capacity 1
	pongs       sync.WaitGroup
}

// listen takes what the server says, and answers each ping as late as pong says.
func (u *uploader) listen(pong time.Duration) {
	for {
		f, _, err := u.next()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.limit += f.Limit
		u.mu.Unlock()
		select {
		case u.allowed <- struct{}{}:
		default:
		}
		if f.Kind == wire.FramePing {
			u.pongs.Go(func() {
				time.Sleep(pong)
				u.mu.Lock()
				defer u.mu.Unlock()
				u.frame(wire.Frame{Kind: wire.FramePong})
			})
		}
	}
}

// send sends up to n bytes, as far as they are allowed.
func (u *uploader) send(n uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for n = min(n, u.limit-u.sent); n > 0; {
		m := min(n, 32<<10)
		u.data(make([]byte, m))
		u.sent += m
		n -= m
	}
}

// leave ends the session, and waits for the last pong.
func (u *uploader) leave() {
	u.p5.reset()
	u.st.Reset(wire.CodeRevoked)
	u.pongs.Wait()
}

// TestLatePong has a client upload 100 KiB a second, and keep each pong back for ten seconds, as if
// the path were so long that it needs a large window. The client gets none, however it places its
// data between the pongs.
func TestLatePong(t *testing.T) {
	for _, c := range []struct {
		name string
		each time.Duration
		size uint64
	}{
		{"evenly", 100 * time.Millisecond, 10 << 10},
		{"in bursts", 10 * time.Second, wire.MaxWindow},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := farPath(t, session.Limits{})
				u := n.upload("mallory", 1)
				go u.listen(10 * time.Second)
				for begun := time.Now(); time.Since(begun) < 5*time.Minute; {
					u.send(c.size)
					time.Sleep(c.each)
				}
				m := n.server.Memory()
				t.Logf("%d bytes were sent, %d are promised", u.sent, m.Promised)
				if m.Promised > 128<<10 {
					t.Errorf("%d bytes are promised", m.Promised)
				}
				u.leave()
			})
		})
	}
}

// TestGreedyUploads has a client with 16 sessions get all the windows that it can, by uploads over
// a path of a second, and not yield them. Another client's upload keeps at least half of its rate.
func TestGreedyUploads(t *testing.T) {
	testutil.SkipRaced(t)
	synctest.Test(t, func(t *testing.T) {
		const size = 16 << 20
		n := farPath(t, session.Limits{MaxWindow: 2 << 20, WindowBudget: 16 << 20})
		upload := func() time.Duration {
			p1, accepted, done := n.forward()
			begun := time.Now()
			p5 := <-accepted
			if err := exchange(p1, p5, pattern(1, size)); err != nil {
				t.Error(err)
			}
			took := time.Since(begun)
			_ = p5.CloseWrite()
			soon(t, time.Minute, done)
			t.Logf("%.2f MiB/s", float64(size)/took.Seconds()/(1<<20))
			return took
		}
		alone := upload()
		var greedy []*uploader
		for i := range 16 {
			u := n.upload("mallory", byte(i))
			greedy = append(greedy, u)
			go u.listen(time.Second)
		}
		for range 30 {
			for _, u := range greedy {
				u.send(2 << 20)
			}
			time.Sleep(time.Second)
		}
		n.nowShort(t, "session_memory", "mallory")
		if took := upload(); took > 2*alone {
			t.Errorf("beside the greedy client an upload took %v, alone %v", took, alone)
		}
		for _, u := range greedy {
			u.leave()
		}
	})
}

// TestDetachedHoldsLittle has a client allow much, and leave. Then no more than the floor waits for
// the client, and what the client was allowed is free. If it comes back soon it has its window
// again, later it has the first one.
func TestDetachedHoldsLittle(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 40 * time.Second} {
		t.Run(away.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := farPath(t, session.Limits{})
				u := n.upload("laptop", 1)
				go u.listen(farRTT)
				for n.server.Memory().Promised < 1<<20 {
					u.send(wire.MaxWindow)
					<-u.allowed
				}
				time.Sleep(time.Second)
				promised := n.server.Memory().Promised
				u.st.Reset(wire.CodeLost)
				synctest.Wait()
				go func() { _, _ = u.p5.Write(make([]byte, 8<<20)) }()
				time.Sleep(away)
				m := n.server.Memory()
				if m.Promised != 0 || m.Retained != 0 {
					t.Errorf("while it is detached, %d bytes are promised, %d retained", m.Promised, m.Retained)
				}
				back := again(1, 2)
				back.Limit = 2 * wire.MaxWindow
				p := n.play("laptop", back)
				_, granted, err := p.answer()
				if err != nil || granted == nil {
					t.Fatalf("not resumed: %v", err)
				}
				if away > 30*time.Second {
					promised = 0
				}
				if window := granted.Limit - granted.Acked; window != uint64(promised)+wire.InitialWindow {
					t.Errorf("the limit allows %d bytes; %d were promised above the floor", window, promised)
				}
				if now := n.server.Memory().Promised; now != promised {
					t.Errorf("%d bytes are promised, not %d", now, promised)
				}
				u.p5.reset()
				p.st.Reset(wire.CodeRevoked)
			})
		})
	}
}

// TestOwnWindowBounds has a client allow far more than the server's session_window. No more than
// session_window is kept for it.
func TestOwnWindowBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const window = 1 << 20
		n := farPath(t, session.Limits{MaxWindow: window})
		p, p5 := n.hoard("laptop", 1)
		time.Sleep(5 * time.Second)
		if down := n.server.Sessions()[0].Down; down < window/2 || down > window {
			t.Errorf("%d bytes were taken", down)
		}
		p5.reset()
		p.st.Reset(wire.CodeRevoked)
	})
}

// TestLowerLimitAtResume resumes a session at a limit below what was already read from P5. No more
// is sent than the limit allows, and all the rest when the limit rises.
func TestLowerLimitAtResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const read, lower, size = 300 << 10, 64 << 10, 1 << 20
		n := farPath(t, session.Limits{})
		ours, p5 := connPair(size)
		n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
		tip := hello(1)
		tip.Limit = read
		p := n.play("laptop", tip)
		_ = p.status()
		want := pattern(1, size)
		go func() { _, _ = p5.Write(want) }()
		time.Sleep(time.Second)
		p.st.Reset(wire.CodeLost)
		synctest.Wait()
		back := again(1, 2)
		back.Limit = lower
		p = n.play("laptop", back)
		if status := p.status(); status != wire.StatusOpen {
			t.Fatalf("status %v", status)
		}
		var got []byte
		take := func() {
			_ = p.st.SetReadDeadline(time.Now().Add(time.Second))
			for {
				f, data, err := p.next()
				if err != nil {
					return
				}
				got = append(got, data...)
				if f.Kind == wire.FramePing {
					p.frame(wire.Frame{Kind: wire.FramePong})
				}
			}
		}
		if take(); len(got) > lower {
			t.Errorf("%d bytes were sent", len(got))
		}
		p.frame(wire.Frame{Acked: uint64(len(got)), Limit: size - lower})
		if take(); !bytes.Equal(got, want) {
			t.Errorf("%d bytes came, of %d", len(got), size)
		}
		p5.reset()
		p.st.Reset(wire.CodeRevoked)
	})
}

// TestFloorOfRetained has 20 connections that nobody reads use up what may be retained. One more,
// whose window has grown before, has at least 64 KiB a round trip, in both directions.
func TestFloorOfRetained(t *testing.T) {
	testutil.SkipRaced(t)
	const size = 2 << 20
	for _, up := range []bool{false, true} {
		for _, room := range []int{20 << 10, 1 << 20} { // in the TCP connections of the reader
			t.Run(fmt.Sprintf("up %v, room %d", up, room), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := farPath(t, session.Limits{MaxWindow: 2 << 20, RetainedBudget: 4 << 20})
					connect := func() (from, to *memConn) {
						p1, accepted, _ := n.forward()
						if from, to = <-accepted, p1; up {
							from, to = to, from
						}
						return from, to
					}
					write := func(from *memConn, n int) { go func() { _, _ = from.Write(make([]byte, n)) }() }
					read := func(to *memConn, n int64) {
						if _, err := io.CopyN(io.Discard, struct{ io.Reader }{to}, n); err != nil {
							t.Fatal(err)
						}
					}
					n.conns = room
					from, to := connect()
					all := []*memConn{from, to}
					write(from, 8<<20)
					read(to, 8<<20)
					n.conns = 1 << 20
					for range 20 {
						sender, unread := connect()
						write(sender, 16<<20)
						read(unread, 2<<20)
						all = append(all, sender, unread)
					}
					time.Sleep(time.Second)
					write(from, size)
					begun := time.Now()
					read(to, size)
					took := time.Since(begun)
					t.Logf("%.2f MiB/s", float64(size)/took.Seconds()/(1<<20))
					if most := size / wire.InitialWindow * farRTT; took > most {
						t.Errorf("%d bytes took %v; at 64 KiB a round trip they take %v", size, took, most)
					}
					for _, c := range all {
						c.reset()
					}
					synctest.Wait()
				})
			})
		}
	}
}
