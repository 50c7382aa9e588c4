//go:build linux

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// A played node is one that the test itself plays, with the key of a node of the world, to say what no ptthqd says: it is
// of another version, or hostile. It keeps its links up until the test ends.
type played struct {
	t     *testing.T
	links chan *link.Link
}

// play begins to play a node. What comes over its links is answered by answer, a goroutine for each stream; nil: nothing is.
func (w *world) play(t *testing.T, node string, answer func(st *link.Stream, tip wire.Message)) *played {
	t.Helper()
	p := &played{t, make(chan *link.Link, 100)}
	run := (&link.Dialer{
		Address: fmt.Sprintf("127.0.0.1:%d", w.ports["relay"]), Keys: []ident.PublicKey{w.keys["relay"].Public()}, Identity: w.keys[node],
		Serve: p.serve(answer),
	}).Run
	if node == "relay" {
		run = w.playedListener(t, p.serve(answer)).Run
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return p
}

func (w *world) playedListener(t *testing.T, serve func(context.Context, *link.Link)) *link.Listener {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: w.ports["relay"]})
	if err != nil {
		t.Fatal(err)
	}
	socket, err := carrier.New(conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	return &link.Listener{Socket: socket, Identity: w.keys["relay"], Serve: serve, Admit: func(key ident.PublicKey) (string, error) {
		for node, of := range w.keys {
			if of.Public() == key {
				return node, nil
			}
		}
		return "", fmt.Errorf("nobody has the key %v", key)
	}}
}

func (p *played) serve(answer func(st *link.Stream, tip wire.Message)) func(context.Context, *link.Link) {
	return func(ctx context.Context, l *link.Link) {
		p.links <- l
		var streams sync.WaitGroup
		defer streams.Wait()
		for {
			st, tip, err := l.Accept(ctx)
			if err != nil {
				return
			}
			streams.Go(func() {
				if answer != nil {
					answer(st, tip)
				}
			})
		}
	}
}

// link waits for a link with a peer; for one who dials, that is the relay.
func (p *played) link(peer string) *link.Link {
	p.t.Helper()
	for {
		select {
		case l := <-p.links:
			if l.Peer() == peer || peer == "relay" {
				return l
			}
		case <-time.After(20 * time.Second):
			p.t.Fatalf("no link with %s", peer)
		}
	}
}

// replying answers every request with a reply, and reads on until the other end has had it.
func replying(reply wire.Reply) func(*link.Stream, wire.Message) {
	return func(st *link.Stream, _ wire.Message) {
		_, _ = st.Write(wire.Append(nil, &reply))
		_ = st.CloseWrite()
		_ = st.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.Copy(io.Discard, st)
		st.Reset(wire.CodeLost)
	}
}

// grant is the reply by which a server opens a connection.
var grant = wire.Append(nil, &wire.Reply{
	Status: wire.StatusOpen, Node: "nas",
	Inner: wire.Append(nil, &wire.Granted{Version: wire.Version, Limit: wire.InitialWindow, ResumeTimeout: time.Second}),
})

// beyond is a frame that no end of a connection may send: it acknowledges what was never sent.
var beyond = wire.Frame{Kind: wire.FrameNone, Acked: 1 << 30}.Append(nil)

// aClient plays the client: it has what it says put into an opening of the world's target. It returns the link, the stream
// and the connection's ID.
func aClient(t *testing.T, w *world, say func(*wire.Open)) (*link.Link, *link.Stream, *wire.Open) {
	t.Helper()
	l := w.play(t, "laptop", nil).link("relay")
	open := w.opening()
	say(open)
	serverConnected(t, w)
	return l, asks(t, l, wire.Append(nil, open)), open
}

// opening is what a client asks who wants a connection to the world's target.
func (w *world) opening() *wire.Open {
	return &wire.Open{
		Version: wire.Version, Token: session.NewToken(), Attempt: 1, Source: "192.0.2.1:50000",
		Target: fmt.Sprintf(":%d", w.ports["target"]), Limit: wire.InitialWindow, ResumeTimeout: time.Second,
	}
}

// serverConnected waits until the relay has the server's link at hand.
func serverConnected(t *testing.T, w *world) {
	t.Helper()
	eventually(t, 10*time.Second, "the server is connected", func() error {
		for _, p := range w.status("relay").Peers {
			if p.ID == "nas" && !p.Connected {
				return fmt.Errorf("%+v", p)
			}
		}
		return nil
	})
}

// asks opens a stream to the server with an inner tip.
func asks(t *testing.T, l *link.Link, inner []byte) *link.Stream {
	t.Helper()
	st, err := l.Open(wire.Append(nil, &wire.Connect{Server: "nas", Inner: inner}))
	if err != nil {
		t.Fatal(err)
	}
	_ = st.SetReadDeadline(time.Now().Add(10 * time.Second))
	return st
}

// wantStatus reads the reply.
func wantStatus(t *testing.T, st *link.Stream, want wire.Status) {
	t.Helper()
	m, err := wire.Read(st)
	if reply, ok := m.(*wire.Reply); !ok || reply.Status != want || reply.Text == "" && want != wire.StatusOpen {
		t.Fatalf("%+v, %v; want %v", m, err, want)
	}
}

// otherClient is a way in which a client that isn't like ours is refused.
func otherClient(want wire.Status, say func(*wire.Open)) way {
	return way{plays: "laptop", happen: func(t *testing.T, w *world, _ *recorder) string {
		_, st, open := aClient(t, w, say)
		wantStatus(t, st, want)
		st.Reset(wire.CodeLost)
		return open.Token.ConnectionID()
	}}
}

// otherNode is a way in which a server or relay that isn't like ours refuses.
func otherNode(node string, reply wire.Reply) way {
	return way{plays: node, happen: func(t *testing.T, w *world, _ *recorder) string {
		p := w.play(t, node, replying(reply))
		if node == "relay" {
			p.link("laptop")
			linked(t, w, "laptop")
		} else {
			serverConnected(t, w)
		}
		return refusedConnection(t, w.ports["mapping"])
	}}
}

// linked waits until nodes have their links.
func linked(t *testing.T, w *world, nodes ...string) {
	t.Helper()
	eventually(t, 20*time.Second, "they are linked", func() error {
		for _, node := range nodes {
			if s := w.status(node); s.Links[0].State != "connected" {
				return fmt.Errorf("%s: %+v", node, s.Links)
			}
		}
		return nil
	})
}

// An open connection of a played client; the server's end of it is granted.
func openedByOther(prepare func(*testing.T, *world), end func(t *testing.T, w *world, l *link.Link, st *link.Stream, open *wire.Open)) way {
	return way{plays: "laptop", prepare: prepare, happen: func(t *testing.T, w *world, _ *recorder) string {
		l, st, open := aClient(t, w, func(open *wire.Open) { open.Attempt = 5 })
		wantStatus(t, st, wire.StatusOpen)
		end(t, w, l, st, open)
		return open.Token.ConnectionID()
	}}
}

// later is of a version to come.
const later = wire.Version + 1

// otherWays are the ways in which a node that the test plays has a part.
var otherWays = map[string]way{
	"the client asks for what the relay can't understand":  otherClient(wire.StatusMalformed, func(open *wire.Open) { open.Target = "" }),
	"the client asks for what the server can't understand": otherClient(wire.StatusMalformed, func(open *wire.Open) { open.Limit = 1 << 60 }),
	"the client speaks a later version":                    otherClient(wire.StatusVersion, func(open *wire.Open) { open.Version = later }),
	"the client speaks a later version, in other words": otherClient(wire.StatusVersion, func(open *wire.Open) {
		open.Version, open.Attempt, open.Target = later, 0, ""
	}),
	"the server does not speak this version": otherNode("nas", wire.Reply{Status: wire.StatusVersion, Node: "nas", Text: "what is this"}),
	"the server can't understand the client": otherNode("nas", wire.Reply{Status: wire.StatusMalformed, Node: "nas", Text: "what is this"}),
	"the relay does not speak this version":  otherNode("relay", wire.Reply{Status: wire.StatusVersion, Node: "relay", Text: "what is this"}),
	"the relay can't understand the client":  otherNode("relay", wire.Reply{Status: wire.StatusMalformed, Node: "relay", Text: "what is this"}),
	"an attempt to resume is older than another": openedByOther(nil, func(t *testing.T, _ *world, l *link.Link, _ *link.Stream, open *wire.Open) {
		st := asks(t, l, wire.Append(nil, &wire.Resume{
			Version: wire.Version, Token: open.Token, Attempt: 3, Source: open.Source, Target: open.Target, Limit: wire.InitialWindow,
		}))
		wantStatus(t, st, wire.StatusNotNewest)
		st.Reset(wire.CodeLost)
	}),
	"the client breaks the protocol": openedByOther(nil, func(_ *testing.T, _ *world, _ *link.Link, st *link.Stream, _ *wire.Open) {
		_, _ = st.Write(beyond)
		_, _ = io.Copy(io.Discard, st)
		st.Reset(wire.CodeProtocol)
	}),
	"the client breaks the protocol of its link": openedByOther(set("resume_timeout = \"1s\"\n", "nas"), func(t *testing.T, w *world, l *link.Link, _ *link.Stream, _ *wire.Open) {
		if _, err := l.Open(wire.Append(nil, &wire.Control{})); err != nil {
			t.Fatal(err)
		}
		w.procs["relay"].says(t, `"level":"WARN","msg":"link down","peer":"laptop","reason":"closed by this end: protocol: a second control stream"`)
	}),
	"the client leaves its stream with a code that nobody knows": openedByOther(set("resume_timeout = \"1s\"\n", "nas"), func(_ *testing.T, _ *world, _ *link.Link, st *link.Stream, _ *wire.Open) {
		st.Reset(1000)
	}),
	"the server breaks the protocol": {plays: "nas", happen: func(t *testing.T, w *world, _ *recorder) string {
		w.play(t, "nas", func(st *link.Stream, _ wire.Message) {
			_, _ = st.Write(append(grant, beyond...))
			_, _ = io.Copy(io.Discard, st)
			st.Reset(wire.CodeProtocol)
		})
		serverConnected(t, w)
		return refusedConnection(t, w.ports["mapping"])
	}},
	"the relay breaks the protocol of the link, and no other takes over in time": {
		plays: "relay", prepare: set("resume_timeout = \"1s\"\n", "laptop"),
		happen: func(t *testing.T, w *world, _ *recorder) string {
			p := w.play(t, "relay", func(st *link.Stream, tip wire.Message) {
				if connect, ok := tip.(*wire.Connect); ok {
					if inner, _ := wire.ParseInner(connect.Inner); inner != nil {
						if _, opening := inner.(*wire.Open); opening {
							_, _ = st.Write(grant)
						}
					}
				}
				_, _ = io.Copy(io.Discard, st)
			})
			l := p.link("laptop")
			linked(t, w, "laptop")
			p1 := w.mustDial()
			eventually(t, 10*time.Second, "the connection is open", func() error {
				if now := w.status("laptop").Connections; len(now) != 1 || now[0].State != string(session.Attached) {
					return fmt.Errorf("%+v", now)
				}
				return nil
			})
			l.Close(wire.CloseProtocol, "so there")
			w.procs["laptop"].says(t, `"level":"WARN","msg":"link down",.*"reason":"closed by the other end: protocol: so there"`)
			wantReset(t, "P1", p1, 10*time.Second)
			return p1.LocalAddr().String()
		},
	},
}
