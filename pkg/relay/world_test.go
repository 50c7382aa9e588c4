package relay_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// A world is a relay on a simulated network, and nodes that speak wire to it.
// Packets take hop from one host to another.
type world struct {
	t       *testing.T
	network *linktest.Network
	relay   *relay.Relay
	key     ident.PrivateKey
	keys    map[string]ident.PrivateKey
	log     testutil.Log
	stop    func() // the relay, and all links with it
}

const hop = 10 * time.Millisecond

// newWorld makes a relay. Peers are "laptop may nas db:5432", or "nas" for a server.
func newWorld(t *testing.T, limits relay.Limits, peers ...string) *world {
	t.Helper()
	w := &world{t: t, network: linktest.New(t, hop), key: linktest.Key(t), keys: make(map[string]ident.PrivateKey)}
	w.relay = relay.New(relay.Config{
		Policy: w.policy(peers...),
		Limits: limits,
		Logger: slog.New(slog.NewJSONHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	})
	listener := w.network.Listener(linktest.RelayAddress, w.key, nil, w.relay.Serve)
	listener.Admit = w.relay.Admit
	w.stop = w.network.Run(listener.Run)
	return w
}

// policy makes a policy of peers; a peer keeps its key from one policy to the next.
func (w *world) policy(peers ...string) *policy.Relay {
	w.t.Helper()
	var all []policy.Peer
	for i, text := range peers {
		id, rules, isClient := strings.Cut(text, " may")
		if _, known := w.keys[id]; !known {
			w.keys[id] = linktest.Key(w.t)
		}
		p := policy.Peer{
			ID: id, Role: policy.RoleServer,
			Keys:   []ident.PublicKey{w.keys[id].Public()},
			Source: policy.Source{File: "relay.toml", Line: 10 * (i + 1)},
		}
		if isClient {
			p.Role = policy.RoleClient
			for j, text := range strings.Fields(rules) {
				rule, err := policy.ParseRule(text)
				if err != nil {
					w.t.Fatal(err)
				}
				rule.Source = policy.Source{File: "relay.toml", Line: 10*(i+1) + j + 1}
				p.Allowed = append(p.Allowed, rule)
			}
		}
		all = append(all, p)
	}
	made, err := policy.NewRelay(all)
	if err != nil {
		w.t.Fatal(err)
	}
	return made
}

// A node is a peer's end of its link to the relay.
type node struct {
	w      *world
	id     string
	dialer *link.Dialer
	stop   func()

	mu      sync.Mutex
	link    *link.Link
	up      chan struct{} // closed when link is set
	revoked []wire.Revoked
}

// node makes a peer at a host; serve takes the streams that the relay opens.
func (w *world) node(id, host string, serve func(*link.Stream, *wire.Incoming)) *node {
	w.t.Helper()
	n := &node{w: w, id: id, up: make(chan struct{})}
	d := w.network.Dialer(host, linktest.RelayAddress, w.key.Public(), w.keys[id], func(ctx context.Context, l *link.Link) {
		n.mu.Lock()
		if n.link == nil {
			close(n.up)
		}
		n.link = l
		n.mu.Unlock()
		var work sync.WaitGroup
		defer work.Wait()
		for {
			s, tip, err := l.Accept(ctx)
			if err != nil {
				return
			}
			incoming, ok := tip.(*wire.Incoming)
			if !ok {
				w.t.Errorf("the relay opened a stream with %#v", tip)
				s.Reset(wire.CodeLost)
				continue
			}
			work.Go(func() { serve(s, incoming) })
		}
	})
	d.OnRevoked = func(_ *link.Link, r *wire.Revoked) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.revoked = append(n.revoked, *r)
	}
	d.Logger = slog.New(slog.DiscardHandler)
	n.dialer = d
	return n
}

// dial begins to dial and waits for the link.
func (n *node) dial() {
	n.stop = n.w.network.Run(n.dialer.Run)
	<-n.up
}

// client makes a client and waits for its link.
func (w *world) client(id string) *node {
	w.t.Helper()
	n := w.node(id, "10.0.0."+hostNumber(id), func(s *link.Stream, _ *wire.Incoming) {
		w.t.Errorf("a stream was opened to client %s", id)
		s.Reset(wire.CodeLost)
	})
	n.dial()
	return n
}

// server makes a server and waits for its link.
func (w *world) server(id string, serve func(*link.Stream, *wire.Incoming)) *node {
	w.t.Helper()
	n := w.node(id, host(id), serve)
	n.dial()
	return n
}

// host is a server's.
func host(id string) string { return "10.0.1." + hostNumber(id) }

func hostNumber(id string) string {
	sum := 1
	for _, c := range []byte(id) {
		sum = (sum*31 + int(c)) % 250
	}
	return netip.AddrFrom4([4]byte{0, 0, 0, byte(sum + 1)}).String()[len("0.0.0."):]
}

func (n *node) told() []wire.Revoked {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]wire.Revoked(nil), n.revoked...)
}

func (n *node) live() *link.Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.link
}

// session returns a token by a number.
func session(n byte) wire.Token { return wire.Token{0: 1, 15: n} }

func open(n byte, target string) []byte {
	return wire.Append(nil, &wire.Open{Version: wire.Version, Token: session(n), Attempt: 1, Source: "127.0.0.1:50000", Target: target})
}

func resume(n byte, attempt uint64, target string) []byte {
	return wire.Append(nil, &wire.Resume{Version: wire.Version, Token: session(n), Attempt: attempt, Source: "127.0.0.1:50000", Target: target})
}

// connect opens a stream to the relay with an inner tip and data behind it.
func (n *node) connect(server string, inner []byte, data string) *link.Stream {
	n.w.t.Helper()
	s, err := n.live().Open(append(wire.Append(nil, &wire.Connect{Server: server, Inner: inner}), data...))
	if err != nil {
		n.w.t.Fatalf("%s opens a stream: %v", n.id, err)
	}
	return s
}

// reply reads the first message on the way back.
func (w *world) reply(s *link.Stream) *wire.Reply {
	w.t.Helper()
	m, err := wire.Read(s)
	if err != nil {
		w.t.Fatalf("no reply: %v", err)
	}
	reply, ok := m.(*wire.Reply)
	if !ok {
		w.t.Fatalf("the reply is %#v", m)
	}
	return reply
}

// joined makes a connection and waits for its 200.
func (n *node) joined(server string, inner []byte) *link.Stream {
	n.w.t.Helper()
	s := n.connect(server, inner, "")
	if got := n.w.reply(s); got.Status != wire.StatusOpen {
		n.w.t.Fatalf("%s connects to %s: %v %s", n.id, server, got.Status, got.Text)
	}
	return s
}

var granted = wire.Append(nil, &wire.Reply{
	Status: wire.StatusOpen, Node: "nas",
	Inner: wire.Append(nil, &wire.Granted{Version: wire.Version, Limit: wire.InitialWindow}),
})

// echo is a server that grants everything and sends back what it gets.
func echo(s *link.Stream, _ *wire.Incoming) {
	if _, err := s.Write(granted); err == nil {
		_, err = io.Copy(s, s)
		if err == nil {
			_ = s.CloseWrite()
			return
		}
	}
	s.Reset(wire.CodeLost)
}

// mute is a server that grants everything and then neither reads nor writes.
func mute(s *link.Stream, _ *wire.Incoming) {
	_, _ = s.Write(granted)
	<-s.Context().Done()
	s.Reset(wire.CodeLost)
}

// refuse is a server that answers with a status.
func refuse(status wire.Status, text string) func(*link.Stream, *wire.Incoming) {
	return func(s *link.Stream, _ *wire.Incoming) {
		_, _ = s.Write(wire.Append(nil, &wire.Reply{Status: status, Text: text, Node: "nas"}))
		_ = s.CloseWrite()
		_, _ = io.Copy(io.Discard, s)
		s.CancelRead(wire.CodeLost)
	}
}

func (w *world) wantReset(what string, err error, want wire.StreamCode) {
	w.t.Helper()
	if reset, ok := errors.AsType[*wire.ResetError](err); !ok || reset.Code != want {
		w.t.Errorf("%s: got %v, want a reset with %v", what, err, want)
	}
}

// read is one Read of a few bytes.
func read(s *link.Stream) (string, error) {
	b := make([]byte, 100)
	n, err := s.Read(b)
	return string(b[:n]), err
}

// wantEmpty fails if the relay's table holds anything, or says that a link carries something.
func (w *world) wantEmpty() {
	w.t.Helper()
	snapshot := w.relay.Snapshot()
	if len(snapshot.Connections) > 0 {
		w.t.Errorf("the table still holds %+v", snapshot.Connections)
	}
	for _, p := range snapshot.Peers {
		if p.Link != nil && p.Link.Connections > 0 {
			w.t.Errorf("the link of %s still counts %d connections", p.ID, p.Link.Connections)
		}
	}
}

// wantLine fails unless there is exactly one line with a message, with these attributes.
func (w *world) wantLine(message string, want map[string]any) {
	w.t.Helper()
	lines := w.log.Lines(w.t, message)
	if len(lines) != 1 {
		w.t.Fatalf("%d log lines say %q, want one: %v", len(lines), message, lines)
	}
	for k, v := range want {
		if lines[0][k] != v {
			w.t.Errorf("log line %q has %s=%v, want %v", message, k, lines[0][k], v)
		}
	}
}
