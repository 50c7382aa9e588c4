// Package sim tests whole chains, P1 to P5, in virtual time: a client,
// relays and servers on one simulated network in one bubble. TCP's ends are in memory.
package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/client"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/server"
	"ptthqd/test/testutil"
)

// hop is what a packet takes from one host to another.
const hop = 10 * time.Millisecond

// The nodes of most tests.
const (
	laptop     = "laptop"
	nas        = "nas"
	laptopHost = "10.0.0.1"
	nasHost    = "10.0.1.1"
	relayHost  = "192.0.2.1"
	relay2Host = "192.0.2.2"
)

// A world is a network, and what runs on it.
type world struct {
	t       *testing.T
	network *linktest.Network
	keys    map[string]ident.PrivateKey   // by host
	targets map[string]*testutil.Listener // P5s, by address
	mu      sync.Mutex
	inbox   map[string]*testutil.Listener // the clients' listeners, by name; guarded by mu while they start
	books   map[string]*testutil.Log      // logs, by node
	quiet   bool                          // nobody logs
	names   map[string][]string           // of those that a relay calls otherwise
}

// inBubble runs a test in a world of its own.
func inBubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		test(t, &world{
			t: t, network: linktest.New(t, hop),
			keys:    make(map[string]ident.PrivateKey),
			targets: make(map[string]*testutil.Listener),
			inbox:   make(map[string]*testutil.Listener),
			books:   make(map[string]*testutil.Log),
		})
	})
}

func (w *world) key(host string) ident.PrivateKey {
	if _, ok := w.keys[host]; !ok {
		w.keys[host] = linktest.Key(w.t)
	}
	return w.keys[host]
}

// A process is a node that runs.
type process struct {
	t    *testing.T
	end  context.CancelFunc
	done chan error
}

func (w *world) start(run func(context.Context) error) *process {
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{w.t, cancel, make(chan error, 1)}
	go func() {
		p.done <- run(ctx)
		close(p.done)
	}()
	w.t.Cleanup(p.stop)
	return p
}

// stop ends the node in good order.
func (p *process) stop() {
	p.end()
	<-p.done
}

func (w *world) logger(node string) *slog.Logger {
	if w.quiet {
		return slog.New(slog.DiscardHandler)
	}
	if w.books[node] == nil {
		w.books[node] = new(testutil.Log)
	}
	out := io.MultiWriter(w.books[node], prefixed{w.t.Output(), node})
	return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

type prefixed struct {
	to   io.Writer
	node string
}

func (p prefixed) Write(line []byte) (int, error) {
	_, _ = fmt.Fprintf(p.to, "%s: %s", p.node, line)
	return len(line), nil
}

// A relayNode is a relay that runs.
type relayNode struct {
	*relay.Relay
	*process
	socket *carrier.Socket
}

// stop ends the relay and its socket.
func (r *relayNode) stop() {
	r.process.stop()
	_ = r.socket.Close()
}

// policy is a relay's that knows the laptop with its rules, and the nas.
func (w *world) policy(allowed ...string) *policy.Relay {
	w.t.Helper()
	var rules []policy.Rule
	for _, text := range allowed {
		rule, err := policy.ParseRule(text)
		if err != nil {
			w.t.Fatal(err)
		}
		rules = append(rules, rule)
	}
	peers := []policy.Peer{
		{ID: laptop, Role: policy.RoleClient, Keys: []ident.PublicKey{w.key(laptopHost).Public()}, Allowed: rules},
		{ID: nas, Role: policy.RoleServer, Keys: []ident.PublicKey{w.key(nasHost).Public()}},
	}
	for i := range peers {
		if names := w.names[peers[i].ID]; names != nil {
			peers[i].ID, peers[i].Others = names[0], names[1:]
		}
	}
	made, err := policy.NewRelay(peers)
	if err != nil {
		w.t.Fatal(err)
	}
	return made
}

// relay starts a relay that lets the laptop reach allowed.
func (w *world) relay(host string, allowed ...string) *relayNode {
	w.t.Helper()
	log := w.logger("relay " + host)
	r := relay.New(relay.Config{Policy: w.policy(allowed...), Logger: log})
	socket, err := carrier.New(w.network.Listen(host+":30380"), log)
	if err != nil {
		w.t.Fatal(err)
	}
	l := &link.Listener{Socket: socket, Identity: w.key(host), Admit: r.Admit, Serve: r.Serve, Rival: r.Rival, Logger: log}
	node := &relayNode{r, w.start(l.Run), socket}
	w.t.Cleanup(func() { _ = socket.Close() })
	return node
}

// relays are the [[relays]] of a config.
func (w *world) relays(hosts ...string) []config.Relay {
	var relays []config.Relay
	for _, host := range hosts {
		relays = append(relays, config.Relay{Address: host + ":30380", Keys: []ident.PublicKey{w.key(host).Public()}})
	}
	return relays
}

// on has links dialled from a host of the simulated network.
func (w *world) on(host string) func(*link.Dialer) {
	begun := time.Now()
	return func(d *link.Dialer) {
		d.SinceBoot = func() time.Duration { return time.Since(begun) } // the bubble's time, not the host's
		d.ListenPacket = w.network.ListenPacket(host)
		d.Route = func(netip.AddrPort) (netip.Addr, error) { return netip.ParseAddr(host) }
	}
}

// serverConfig is one of the nas: services are "TARGET client client…".
func (w *world) serverConfig(relays []config.Relay, services ...string) *config.Config {
	w.t.Helper()
	c := &config.Config{
		Role: config.RoleServer, ID: nas, Limits: config.DefaultLimits(), Relays: relays,
		ResumeTimeout: config.DefaultResumeTimeout, DrainTimeout: config.DefaultDrainTimeout,
	}
	for i, text := range services {
		words := strings.Fields(text)
		target, err := policy.ParseServiceTarget(words[0])
		if err != nil {
			w.t.Fatal(err)
		}
		s := policy.Service{Target: target, Source: policy.Source{File: "server.toml", Line: 10 * (i + 1)}}
		for _, client := range words[1:] {
			pattern, err := policy.ParsePattern(client)
			if err != nil {
				w.t.Fatal(err)
			}
			s.Clients = append(s.Clients, pattern)
		}
		c.Services = append(c.Services, s)
	}
	return c
}

type serverNode struct {
	*server.Server
	*process
}

func (w *world) server(settings *config.Config) *serverNode {
	w.t.Helper()
	s, err := server.New(server.Config{
		Settings: settings, Identity: w.key(nasHost), Logger: w.logger(nas),
		Dial: w.dial, AdjustDialer: w.on(nasHost),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &serverNode{s, w.start(s.Run)}
}

// dial is how the server reaches P5s. Whom nobody listens for refuses; 10.9.9.9 never answers.
func (w *world) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if strings.HasPrefix(address, "10.9.9.9:") {
		<-ctx.Done()
		return nil, &net.OpError{Op: "dial", Net: network, Err: context.Cause(ctx)}
	}
	if l := w.targets[address]; l != nil {
		return l.Dial(ctx)
	}
	return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

// target makes a P5 at an address; serve gets each connection that it accepts.
func (w *world) target(address string, serve func(*testutil.Conn)) {
	l := testutil.Listen(address)
	w.targets[address] = l
	testutil.Accept(w.t, l, func(conn net.Conn) { serve(conn.(*testutil.Conn)) })
}

// echo is a P5 that sends back what it gets, to the end.
func echo(conn *testutil.Conn) {
	defer func() { _ = conn.Close() }()
	buf := make([]byte, 16<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// mapping is one of the laptop's: "NAME SERVER TARGET".
func (w *world) mapping(text string) config.Mapping {
	w.t.Helper()
	words := strings.Fields(text)
	target, err := policy.ParseTarget(words[2])
	if err != nil {
		w.t.Fatal(err)
	}
	return config.Mapping{
		Name: words[0], Listen: config.Listen{Kind: config.Systemd, Addr: words[0]},
		Server: words[1], Target: target, Enabled: true, OnRemove: config.OnRemoveKeep, ResumeTimeout: config.DefaultResumeTimeout,
	}
}

func (w *world) clientConfig(relays []config.Relay, mappings ...string) *config.Config {
	w.t.Helper()
	c := &config.Config{
		Role: config.RoleClient, ID: laptop, Limits: config.DefaultLimits(), Relays: relays,
		ResumeTimeout: config.DefaultResumeTimeout, DrainTimeout: config.DefaultDrainTimeout,
	}
	for _, text := range mappings {
		c.Mappings = append(c.Mappings, w.mapping(text))
	}
	return c
}

type clientNode struct {
	*client.Client
	*process
}

func (w *world) client(settings *config.Config) *clientNode {
	w.t.Helper()
	c, err := client.New(client.Config{
		Settings: settings, Identity: w.key(laptopHost), Logger: w.logger(laptop),
		Inherit: w.inherit, AdjustDialer: w.on(laptopHost),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &clientNode{c, w.start(c.Run)}
}

func (w *world) inherit(name string) []net.Listener {
	l := testutil.Listen(name)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.inbox[name] = l
	return []net.Listener{l}
}

// connect is P1: it connects to a mapping's listener.
func (w *world) connect(mapping string) *testutil.Conn {
	w.t.Helper()
	synctest.Wait() // until it listens
	conn, err := w.inbox["systemd:"+mapping].Dial(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// settle waits until the links are up.
func settle() { time.Sleep(time.Second) }

// chain starts a relay, a server with an echo at port 7, and a client with the mapping "echo" to it.
func (w *world) chain() (*relayNode, *serverNode, *clientNode) {
	w.t.Helper()
	w.target("127.0.0.1:7", echo)
	r := w.relay(relayHost, nas)
	s := w.server(w.serverConfig(w.relays(relayHost), "7 laptop"))
	c := w.client(w.clientConfig(w.relays(relayHost), "echo nas 7"))
	settle()
	return r, s, c
}

// exchange sends text and expects it back.
func exchange(t *testing.T, conn *testutil.Conn, text string) {
	t.Helper()
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatalf("P1 writes: %v", err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("P1 reads %q, %v; want %q", got, err, text)
	}
}

// wantReset expects that the connection is reset.
func wantReset(t *testing.T, conn *testutil.Conn) {
	t.Helper()
	n, err := conn.Read(make([]byte, 1))
	if n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("P1 reads %d bytes, %v; want a reset", n, err)
	}
}

// one is the only line with one of the messages in a node's log.
func (w *world) one(node string, messages ...string) map[string]any {
	w.t.Helper()
	synctest.Wait()
	all := w.books[node].Lines(w.t, messages...)
	if len(all) != 1 {
		w.t.Fatalf("%s has logged %d lines %q, want one: %v", node, len(all), messages, all)
	}
	return all[0]
}

func contains(value any, part string) bool {
	text, ok := value.(string)
	return ok && strings.Contains(text, part)
}

// farFromSecond delays what goes to and from the second relay.
func (w *world) farFromSecond(p linktest.Packet) time.Duration {
	if far := netip.MustParseAddr(relay2Host); p.From.Addr() == far || p.To.Addr() == far {
		return hop / 2
	}
	return 0
}

// between drops the packets between two hosts.
func between(a, b string) func(linktest.Packet) bool {
	x, y := netip.MustParseAddr(a), netip.MustParseAddr(b)
	return func(p linktest.Packet) bool {
		from, to := p.From.Addr(), p.To.Addr()
		return from == x && to == y || from == y && to == x
	}
}
