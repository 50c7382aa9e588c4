//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// grants answers an opening as a server would, but for what change does.
func grants(s *link.Stream, change ...func(*wire.Granted)) {
	g := &wire.Granted{Version: wire.Version, Limit: wire.InitialWindow, ResumeTimeout: time.Minute}
	for _, f := range change {
		f(g)
	}
	_, _ = s.Write(wire.Append(nil, &wire.Reply{Status: wire.StatusOpen, Node: "evil", Inner: wire.Append(nil, g)}))
}

// drain reads a stream to its end.
func drain(s *link.Stream) {
	_, _ = io.Copy(io.Discard, struct{ io.Reader }{s})
	s.Reset(wire.CodeLost)
}

// pourFrames writes a frame again and again until the stream ends.
func pourFrames(s *link.Stream, frame []byte) {
	for {
		if _, err := s.Write(frame); err != nil {
			s.Reset(wire.CodeLost)
			return
		}
	}
}

// An act is one thing that a hostile server does.
type act struct {
	name   string
	writes int // bytes that each program sends
	serve  func(*link.Stream, wire.Message)
	beside func(t *testing.T) // instead of programs that connect: what the server does by itself
}

// hostileActs are the acts of a hostile server. It sends acks acknowledgements, and opens streams
// itself.
func (r *rogue) hostileActs(acks, streams int) []act {
	return []act{
		{"never answers", 1 << 10, func(s *link.Stream, _ wire.Message) { drain(s) }, nil},
		{"never reads", 1 << 20, func(s *link.Stream, _ wire.Message) { waitOut(s) }, nil},
		{"answers with garbage", 1 << 10, func(s *link.Stream, _ wire.Message) {
			_, _ = s.Write(random(1000))
			drain(s)
		}, nil},
		{"refuses in odd words", 1 << 10, func(s *link.Stream, _ wire.Message) {
			b := wire.Append(nil, &wire.Reply{Status: 502, Text: strings.Repeat("z", 400), Node: "evil"})
			copy(b[strings.IndexByte(string(b), 'z'):], "\x1b[2J\n2026 forged=line\x00\xff\r\u202e")
			_, _ = s.Write(b)
			drain(s)
		}, nil},
		{"resets each stream", 1 << 10, func(s *link.Stream, _ wire.Message) { s.Reset(wire.CodeLost) }, nil},
		{"grants and resets each stream", 1 << 10, func(s *link.Stream, _ wire.Message) {
			grants(s)
			s.Reset(wire.CodeLost)
		}, nil},
		{"grants and never reads", 8 << 20, func(s *link.Stream, _ wire.Message) {
			grants(s, func(g *wire.Granted) { g.Limit = 2 * wire.MaxWindow })
			waitOut(s)
		}, nil},
		{"acknowledges what it doesn't read", 64 << 20, func(s *link.Stream, _ wire.Message) {
			grants(s, func(g *wire.Granted) { g.Limit = 2 * wire.MaxWindow })
			acknowledgeUnread(s, acks)
			waitOut(s)
		}, nil},
		{"sends more than it may", 1 << 10, func(s *link.Stream, _ wire.Message) {
			grants(s)
			go drain(s)
			pourFrames(s, data(make([]byte, 1<<20)))
		}, nil},
		{"sends what costs nothing", 1 << 10, func(s *link.Stream, _ wire.Message) {
			grants(s)
			go drain(s)
			pourFrames(s, wire.Frame{Kind: wire.FramePing}.Append(nil))
		}, nil},
		{"opens streams itself", 0, forget, func(t *testing.T) { r.opensAsServer(t, streams) }},
	}
}

// waitOut leaves a stream unread until its other end or its link ends it.
func waitOut(s *link.Stream) {
	<-s.Context().Done()
	s.Reset(wire.CodeLost)
}

// forget answers that there is no such session, so that the client ends at once what an act has
// left behind.
func forget(s *link.Stream, _ wire.Message) {
	_, _ = s.Write(wire.Append(nil, &wire.Reply{Status: wire.StatusNoSession, Node: "evil"}))
	_ = s.CloseWrite()
	drain(s)
}

// acknowledgeUnread acknowledges 8 KiB each 10 ms without reading: a little less than the server
// can be sure of, until the unread bytes fill all windows on the way.
func acknowledgeUnread(s *link.Stream, times int) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range times {
		<-tick.C
		if _, err := s.Write(wire.Frame{Acked: 8 << 10}.Append(nil)); err != nil {
			return
		}
	}
}

// opensAsServer opens streams as only a client may, or with heads that are no tip.
func (r *rogue) opensAsServer(t *testing.T, streams int) {
	many(streams, 32, func(i int) {
		head := ask("nas", ":22")
		switch i % 4 {
		case 0:
			head = random(1 + i%50)
		case 1:
			head = []byte{1}
		case 2:
			head = wire.Append(nil, &wire.Incoming{Client: "laptop", Inner: []byte{1}})
		}
		l, err := r.live()
		if err != nil {
			t.Error(err)
			return
		}
		s, err := l.Open(head)
		if err != nil {
			return
		}
		_ = s.SetReadDeadline(time.Now().Add(6 * time.Second))
		if i%4 == 3 {
			if status := r.answer(s); status != wire.StatusMalformed && !linkEnded(s) {
				t.Errorf("a server that connects is answered with %v", status)
			}
		}
		s.Reset(wire.CodeLost)
	})
}

// programs starts n programs that connect to a port and send some bytes each. stop resets their
// connections.
func programs(port, n, bytes int) (stop func()) {
	conns := make(chan net.Conn, n)
	done := make(chan struct{})
	go func() {
		defer close(done)
		many(n, 50, func(int) {
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return // reset already
			}
			conns <- c
			go func() {
				_ = send(c, 1, uint64(bytes))
				_, _ = io.Copy(io.Discard, struct{ io.Reader }{c})
			}()
		})
	}()
	return func() {
		<-done
		close(conns)
		for c := range conns {
			resetConn(c)
		}
	}
}

// forgets waits until the client has no connection to a server left.
func (w *world) forgets(t *testing.T, server, after string) {
	t.Helper()
	eventually(t, 40*time.Second, "the client has no connection to "+server+" after "+after, func() error {
		n := 0
		for _, c := range w.status("laptop").Connections {
			if c.Server == server {
				n++
			}
		}
		if n > 0 {
			return fmt.Errorf("it has %d", n)
		}
		return nil
	})
}

// TestHostileServer lets a server that the relay knows do what it likes to a client that asks for
// it. The client's connections to this server end within their time. Its connections to another
// server, over the same link, go on.
func TestHostileServer(t *testing.T) {
	hold, connections, acks := time.Second, 100, 40
	if *full {
		hold, connections, acks = 60*time.Second, 2000, 70
	}
	w := newWorld(t, endServer)
	key := newKey(t)
	w.allowed = `"nas", "evil"`
	w.extra["relay"] += fmt.Sprintf("[[peers]]\nid = \"evil\"\nrole = \"server\"\npublic_key = %q\n", key.Public())
	port := testutil.FreePort(t)
	w.mapping("evil", fmt.Sprintf("127.0.0.1:%d", port), "evil", "22")
	w.withMetrics("relay", "laptop")
	w.all()
	begun := time.Now()
	honest := pings(t, w.mustDial())

	var serve atomic.Pointer[func(*link.Stream, wire.Message)]
	between := forget
	serve.Store(&between)
	r := newRogue(t, w, key, func(s *link.Stream, tip wire.Message) { (*serve.Load())(s, tip) })
	was := map[string]footprint{"relay": w.footprint(t, "relay"), "laptop": w.footprint(t, "laptop")}

	for _, act := range r.hostileActs(acks, 10*connections) {
		r.alive()
		serve.Store(&act.serve)
		n := connections
		if act.writes > 1<<10 {
			n = 4
		}
		w.unharmed(t, act.name, honest, []string{"relay", "laptop"}, func() {
			if act.beside != nil {
				act.beside(t)
				return
			}
			stop := programs(port, n, act.writes)
			<-time.After(hold)
			stop()
		})
		serve.Store(&between)
		if *full {
			w.forgets(t, "evil", act.name)
		}
	}
	w.forgets(t, "evil", "all that")
	t.Logf("limits hit: relay %v, client %v", w.limitsHit("relay"), w.limitsHit("laptop"))
	for node, was := range was {
		w.settles(t, node, was, 30*time.Second)
		w.fewLines(t, node, 3000+linesPerSecond*int(time.Since(begun).Seconds()))
	}
	honest.end(t)
}
