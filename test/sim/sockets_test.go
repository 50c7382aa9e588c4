package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

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

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A realChain is a chain over the sockets of this host, in one process.
type realChain struct {
	tcp, unix string // where P1 connects; both lead to the P5 that serve plays
	client    *client.Client
}

// overSockets starts a chain to a P5 on TCP, and one on a Unix socket.
func overSockets(t *testing.T, serve func(net.Conn)) *realChain {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	onTCP := testutil.Listening(t, "tcp", "127.0.0.1:0", serve).Addr().String()
	onUnix := testutil.Listening(t, "unix", filepath.Join(dir, "p5.sock"), serve).Addr().String()
	targets := []string{onTCP, "unix:" + onUnix}

	clientKey, serverKey := linktest.Key(t), linktest.Key(t)
	r, relays := realRelay(t, log, clientKey.Public(), serverKey.Public())
	p4, err := server.New(server.Config{Settings: realServer(t, relays, targets), Identity: serverKey, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	runNode(t, p4.Run)

	chain := &realChain{tcp: fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t)), unix: filepath.Join(dir, "p1.sock")}
	mapping := func(name string, at config.Listen, target string) config.Mapping {
		parsed, err := policy.ParseTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		return config.Mapping{
			Name: name, Listen: at, ListenMode: config.DefaultListenMode, Server: nas, Target: parsed,
			Enabled: true, OnRemove: config.OnRemoveKeep, ResumeTimeout: time.Minute,
		}
	}
	chain.client, err = client.New(client.Config{
		Settings: &config.Config{
			Role: config.RoleClient, ID: laptop, Relays: relays, Limits: config.DefaultLimits(), DrainTimeout: time.Second,
			Mappings: []config.Mapping{
				mapping("tcp", config.Listen{Kind: config.TCP, Addr: chain.tcp}, targets[0]),
				mapping("unix", config.Listen{Kind: config.Unix, Addr: "p1.sock"}, targets[1]),
			},
		},
		Identity: clientKey, Logger: log, RuntimeDirectory: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	runNode(t, chain.client.Run)
	<-chain.client.Ready()
	for range time.Tick(time.Millisecond) { // outside a bubble nothing tells when all is quiet
		if connected(r) {
			break
		}
	}
	return chain
}

// runNode runs a node until the test ends.
func runNode(t *testing.T, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

// realRelay starts a relay that lets the client reach all servers. It returns the [[relays]] of the
// others' configs, too.
func realRelay(t *testing.T, log *slog.Logger, clientKey, serverKey ident.PublicKey) (*relay.Relay, []config.Relay) {
	t.Helper()
	anything, err := policy.ParseRule("*")
	if err != nil {
		t.Fatal(err)
	}
	rules, err := policy.NewRelay([]policy.Peer{
		{ID: laptop, Role: policy.RoleClient, Keys: []ident.PublicKey{clientKey}, Allowed: []policy.Rule{anything}},
		{ID: nas, Role: policy.RoleServer, Keys: []ident.PublicKey{serverKey}},
	})
	if err != nil {
		t.Fatal(err)
	}
	pc, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	socket, err := carrier.New(pc, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	key := linktest.Key(t)
	r := relay.New(relay.Config{Policy: rules, Logger: log})
	runNode(t, (&link.Listener{Socket: socket, Identity: key, Admit: r.Admit, Serve: r.Serve, Logger: log}).Run)
	return r, []config.Relay{{Address: pc.LocalAddr().String(), Keys: []ident.PublicKey{key.Public()}}}
}

// realServer is the config of a server that lets everybody reach the targets.
func realServer(t *testing.T, relays []config.Relay, targets []string) *config.Config {
	t.Helper()
	everybody, err := policy.ParsePattern("*")
	if err != nil {
		t.Fatal(err)
	}
	settings := &config.Config{Role: config.RoleServer, ID: nas, Relays: relays, Limits: config.DefaultLimits(), DrainTimeout: time.Second}
	for _, target := range targets {
		offered, err := policy.ParseServiceTarget(target)
		if err != nil {
			t.Fatal(err)
		}
		settings.Services = append(settings.Services, policy.Service{Target: offered, Clients: []policy.Pattern{everybody}})
	}
	return settings
}

// connected reports whether both ends have a link to the relay.
func connected(r *relay.Relay) bool {
	for _, peer := range r.Snapshot().Peers {
		if peer.Link == nil {
			return false
		}
	}
	return true
}

// A halfCloser is a *net.TCPConn or a *net.UnixConn.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func (c *realChain) dial(t *testing.T, network string) halfCloser {
	t.Helper()
	address := c.tcp
	if network == "unix" {
		address = c.unix
	}
	conn, err := new(net.Dialer).DialContext(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn.(halfCloser)
}

// echoAll is a P5 that sends everything back once it has come to its end.
func echoAll(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	all, err := io.ReadAll(conn)
	if err == nil {
		_, _ = conn.Write(all)
	}
}

func TestSocketsCarryBothWays(t *testing.T) {
	chain := overSockets(t, func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		_, _ = io.Copy(conn, conn)
	})
	for _, network := range []string{"tcp", "unix"} {
		conn := chain.dial(t, network)
		sent := make([]byte, 8<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(sent)
		var up sync.WaitGroup
		up.Go(func() {
			if _, err := conn.Write(sent); err != nil {
				t.Errorf("%s: P1 writes: %v", network, err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Errorf("%s: P1 ends: %v", network, err)
			}
		})
		got, err := io.ReadAll(conn)
		up.Wait()
		if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
			t.Errorf("%s: %d bytes came back of %d, %v", network, len(got), len(sent), err)
		}
	}
}

func TestSocketsHalfClose(t *testing.T) {
	chain := overSockets(t, echoAll)
	for _, network := range []string{"tcp", "unix"} {
		conn := chain.dial(t, network)
		if _, err := conn.Write([]byte("the whole request")); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); err != nil || string(got) != "the whole request" {
			t.Errorf("%s: P1 reads %q, %v", network, got, err)
		}
	}
}

func TestSocketsResetFromP5(t *testing.T) {
	chain := overSockets(t, func(conn net.Conn) {
		_, _ = conn.Read(make([]byte, 1))
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	})
	conn := chain.dial(t, "tcp")
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("P5 has reset its connection, and P1 reads %v", err)
	}
}

func TestSocketsResetFromP1(t *testing.T) {
	ends := make(chan error, 1)
	chain := overSockets(t, func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		_, _ = conn.Write([]byte("hello"))
		_, err := io.Copy(io.Discard, conn)
		ends <- err
	})
	conn := chain.dial(t, "tcp")
	if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if err := <-ends; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("P1 has reset its connection, and P5 reads %v", err)
	}
}

func TestSocketsManyAtOnce(t *testing.T) {
	chain := overSockets(t, func(conn net.Conn) {
		defer func() { _ = conn.Close() }()
		_, _ = io.Copy(conn, conn)
	})
	const many = 300
	conns := make([]halfCloser, many)
	for i := range conns {
		conns[i] = chain.dial(t, "tcp")
	}
	var work sync.WaitGroup
	for i, conn := range conns {
		work.Go(func() {
			text := bytes.Repeat([]byte{byte(i)}, 1000+i)
			if _, err := conn.Write(text); err != nil {
				t.Errorf("P1 %d writes: %v", i, err)
				return
			}
			got := make([]byte, len(text))
			if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, text) {
				t.Errorf("P1 %d reads %v", i, err)
			}
		})
	}
	work.Wait()
	if n := len(chain.client.Snapshot().Sessions); n != many {
		t.Errorf("the client has %d sessions, want %d", n, many)
	}
	for _, conn := range conns {
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
	}
}
