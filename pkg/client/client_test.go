package client_test

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/client"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/test/testutil"
)

// A node is a running client. It can reach no relay, so the connections that it accepts wait.
type node struct {
	*client.Client
	log  *testutil.Log
	stop func() error
}

func newClient(t *testing.T, c client.Config) (*client.Client, *testutil.Log, error) {
	t.Helper()
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	log := new(testutil.Log)
	c.Identity = key
	c.Logger = slog.New(slog.NewTextHandler(log, nil))
	c.AdjustDialer = func(d *link.Dialer) {
		d.ListenPacket = func(context.Context) (net.PacketConn, error) { return nil, errors.New("no network in this test") }
	}
	made, err := client.New(c)
	return made, log, err
}

// start runs a client until the test ends.
func start(t *testing.T, c client.Config) *node {
	t.Helper()
	made, log, err := newClient(t, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- made.Run(ctx) }()
	n := &node{made, log, sync.OnceValue(func() error {
		cancel()
		return <-done
	})}
	t.Cleanup(func() { _ = n.stop() })
	select {
	case <-made.Ready():
	case err := <-done:
		done <- nil
		t.Fatalf("the client doesn't start: %v", err)
	}
	return n
}

func (n *node) apply(t *testing.T, mappings ...config.Mapping) {
	t.Helper()
	if err := n.Apply(t.Context(), settings(mappings...)); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

func settings(mappings ...config.Mapping) *config.Config {
	c := &config.Config{
		Role: config.RoleClient, Limits: config.DefaultLimits(), Mappings: mappings,
		Relays: []config.Relay{{Address: "192.0.2.1:30380"}},
	}
	c.Limits.HoldTimeout = 100 * time.Millisecond
	return c
}

// mapping listens on "tcp 127.0.0.1:2200", "unix NAME" or "systemd NAME".
func mapping(name, listen string) config.Mapping {
	kind, addr, _ := strings.Cut(listen, " ")
	target, err := policy.ParseTarget("22")
	if err != nil {
		panic(err)
	}
	return config.Mapping{
		Name: name, Listen: config.Listen{Kind: config.Kind(kind), Addr: addr}, ListenMode: config.DefaultListenMode,
		Server: "nas", Target: target, Enabled: true, OnRemove: config.OnRemoveKeep, ResumeTimeout: time.Minute,
	}
}

func freePort(t *testing.T) string { return strconv.Itoa(testutil.FreePort(t)) }

// listens reports whether a connection is accepted, or queued.
func listens(t *testing.T, network, address string) bool {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), network, address)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func occupy(t *testing.T, address string) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", address)
	if err != nil {
		t.Skipf("listen on %s: %v", address, err)
	}
	t.Cleanup(func() { _ = l.Close() })
}

func TestListensOnTCP(t *testing.T) {
	port := freePort(t)
	start(t, client.Config{Settings: settings(mapping("m", "tcp localhost:"+port))})
	if !listens(t, "tcp", "127.0.0.1:"+port) {
		t.Error("nobody listens on the loopback of IPv4")
	}
	if six, err := new(net.ListenConfig).Listen(t.Context(), "tcp6", "[::1]:0"); err == nil {
		_ = six.Close()
		if !listens(t, "tcp", "[::1]:"+port) {
			t.Error("nobody listens on the loopback of IPv6")
		}
	}
}

func TestUnspecifiedAddressOfIPv4IsNotIPv6(t *testing.T) {
	port := freePort(t)
	start(t, client.Config{Settings: settings(mapping("m", "tcp 0.0.0.0:"+port))})
	if !listens(t, "tcp", "127.0.0.1:"+port) || listens(t, "tcp", "[::1]:"+port) {
		t.Error("0.0.0.0 is not exactly all addresses of IPv4")
	}
}

func TestHeldConnectionIsReset(t *testing.T) {
	port := freePort(t)
	n := start(t, client.Config{Settings: settings(mapping("m", "tcp 127.0.0.1:"+port))})
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("without a relay P1 reads %v, want a reset", err)
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	if n.log.Count("no network in this test") == 0 {
		t.Error("the log doesn't say why there is no relay")
	}
}

// waitFor waits until the snapshot is as it should be.
func (n *node) waitFor(t *testing.T, what string, is func(client.Snapshot) bool) client.Snapshot {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; {
		now := n.Snapshot()
		if is(now) {
			return now
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not seen in %+v", what, now.Mappings)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// One listener that can't be bound leaves the others alone, and says why.
func TestStartsWithoutAListener(t *testing.T) {
	port, good := freePort(t), freePort(t)
	occupy(t, "127.0.0.1:"+port)
	for _, test := range []struct {
		name, listen, want string
	}{
		{"the address is in use", "tcp 127.0.0.1:" + port, "another process listens there"},
		{"the address is nobody's", "tcp 192.0.2.77:" + port, "no interface of this host has the address"},
		{"no runtime directory", "unix db.sock", "there is no runtime directory"},
		{"no such inherited socket", "systemd web", "FileDescriptorName=web"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := start(t, client.Config{Settings: settings(mapping("bad", test.listen), mapping("good", "tcp 127.0.0.1:"+good))})
			if !listens(t, "tcp", "127.0.0.1:"+good) {
				t.Error("the other mapping does not listen")
			}
			now := n.Snapshot().Mappings
			if bad := now[0]; bad.Failed == nil || !strings.Contains(bad.Failed.Error(), test.want) || len(bad.Listening) > 0 {
				t.Errorf("it stands as %+v, want %q", bad, test.want)
			}
			if now[1].Failed != nil {
				t.Errorf("the other one stands as %+v", now[1])
			}
			if list := n.Failing(); len(list) != 1 || list[0].Name != "bad" {
				t.Errorf("failing are %+v", list)
			}
			if n.log.Count("a mapping does not listen") != 1 {
				t.Errorf("%d lines about it, want one", n.log.Count("a mapping does not listen"))
			}
			if err := n.stop(); err != nil {
				t.Error(err)
			}
		})
	}
	if _, _, err := newClient(t, client.Config{Settings: settings(mapping("a", "tcp 127.0.0.1:1"), mapping("b", "tcp 127.0.0.1:1"))}); err == nil {
		t.Error("two mappings on one listener are accepted")
	}
}

// When the port becomes free, the mapping listens by itself.
func TestListensOnceItCan(t *testing.T) {
	port := freePort(t)
	squatter, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	other := listenUnix(t, filepath.Join(dir, "db.sock"))
	rebound := make(chan struct{}, 8)
	n := start(t, client.Config{
		Settings:         settings(mapping("tcp", "tcp 127.0.0.1:"+port), mapping("unix", "unix db.sock")),
		RuntimeDirectory: dir,
		Rebound:          func() { rebound <- struct{}{} },
	})
	if n := len(n.Failing()); n != 2 {
		t.Fatalf("%d mappings fail, want both", n)
	}
	_ = squatter.Close()
	_ = other.Close()
	n.waitFor(t, "both listen", func(s client.Snapshot) bool { return len(s.Mappings[0].Listening)+len(s.Mappings[1].Listening) == 2 })
	<-rebound
	if !listens(t, "tcp", "127.0.0.1:"+port) || !listens(t, "unix", filepath.Join(dir, "db.sock")) {
		t.Error("they don't listen")
	}
	if len(n.Failing()) != 0 || len(n.Sockets()) != 2 {
		t.Errorf("failing %+v, sockets %v", n.Failing(), n.Sockets())
	}
}

// The process that listens on a Unix socket of that name sees no connection when the client tries
// to bind.
func TestUnixSocketInTheWayIsNotConnectedTo(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there is no other way to ask on Windows")
	}
	dir := t.TempDir()
	other := listenUnix(t, filepath.Join(dir, "db.sock"))
	n := start(t, client.Config{Settings: settings(mapping("unix", "unix db.sock")), RuntimeDirectory: dir})
	if list := n.Failing(); len(list) != 1 || !strings.Contains(list[0].Failed.Error(), "another process listens there") {
		t.Fatalf("failing are %+v", list)
	}
	_ = other.SetDeadline(time.Now().Add(10 * time.Millisecond))
	if conn, err := other.Accept(); err == nil {
		t.Errorf("it sees a connection of %v", conn.RemoteAddr())
	}
}

// A reload does not fail because of a listener that failed before. It tries that listener at once,
// and forgets a listener that is gone.
func TestReloadBesideAListenerThatFails(t *testing.T) {
	port, good := freePort(t), freePort(t)
	squatter, err := new(net.ListenConfig).Listen(t.Context(), "tcp4", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = squatter.Close() }()
	bad := mapping("bad", "tcp 127.0.0.1:"+port)
	n := start(t, client.Config{Settings: settings(bad)})
	bad.Server = "other"
	n.apply(t, bad, mapping("good", "tcp 127.0.0.1:"+good))
	if list := n.Failing(); len(list) != 1 || list[0].Server != "other" {
		t.Errorf("failing are %+v", list)
	}
	n.apply(t, mapping("good", "tcp 127.0.0.1:"+good))
	if list := n.Failing(); len(list) != 0 {
		t.Errorf("failing are %+v, and none of them is wanted", list)
	}
	if err := n.Apply(t.Context(), settings(bad)); err == nil {
		t.Error("a new mapping that can't listen is taken over")
	}
	_ = squatter.Close()
	n.apply(t, bad)
	if !listens(t, "tcp", "127.0.0.1:"+port) || len(n.Failing()) != 0 {
		t.Error("it does not listen")
	}
}

func TestAddedMappingThatCannotBind(t *testing.T) {
	port, good, bad := freePort(t), freePort(t), freePort(t)
	n := start(t, client.Config{Settings: settings(mapping("old", "tcp 127.0.0.1:"+port))})
	occupy(t, "127.0.0.1:"+bad)
	changed := mapping("old", "tcp 127.0.0.1:"+port)
	changed.Server = "other"
	err := n.Apply(t.Context(), settings(changed, mapping("good", "tcp 127.0.0.1:"+good), mapping("bad", "tcp 127.0.0.1:"+bad)))
	if err == nil || !strings.Contains(err.Error(), "mapping bad: ") {
		t.Errorf("apply: %v, want a complaint about bad", err)
	}
	if listens(t, "tcp", "127.0.0.1:"+good) {
		t.Error("a part of the refused config is in force")
	}
	if !listens(t, "tcp", "127.0.0.1:"+port) {
		t.Error("the old mapping is gone")
	}
	if m := n.Snapshot().Mappings; len(m) != 1 || m[0].Server != "nas" {
		t.Errorf("the mappings are %+v after a refused config", m)
	}
}

func TestListenerMovesToAnOverlappingAddress(t *testing.T) {
	port := freePort(t)
	n := start(t, client.Config{Settings: settings(mapping("m", "tcp 127.0.0.1:"+port))})
	n.apply(t, mapping("m", "tcp 0.0.0.0:"+port))
	if !listens(t, "tcp", "127.0.0.2:"+port) && runtime.GOOS == "linux" {
		t.Error("it doesn't listen on the new address")
	}
	n.apply(t, mapping("m", "tcp 127.0.0.1:"+port))
	if listens(t, "tcp", "127.0.0.2:"+port) {
		t.Error("it still listens on the wider address")
	}
}

func TestListenerCannotMoveToAnOverlappingAddress(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("it takes 127.0.0.2 to be a loopback address")
	}
	port, other := freePort(t), freePort(t)
	n := start(t, client.Config{Settings: settings(mapping("m", "tcp 127.0.0.1:"+port))})
	occupy(t, "127.0.0.2:"+port) // in the way of 0.0.0.0
	err := n.Apply(t.Context(), settings(mapping("m", "tcp 0.0.0.0:"+port), mapping("other", "tcp 127.0.0.1:"+other)))
	if err == nil {
		t.Error("apply succeeds")
	}
	if !listens(t, "tcp", "127.0.0.1:"+port) {
		t.Error("the old listener wasn't bound again")
	}
	if listens(t, "tcp", "127.0.0.1:"+other) {
		t.Error("a part of the refused config is in force")
	}
	n.apply(t) // and it can still be closed
	if listens(t, "tcp", "127.0.0.1:"+port) {
		t.Error("the listener outlives its mapping")
	}
}

func TestUnixSocketListener(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db.sock")
	m := mapping("db", "unix db.sock")
	n := start(t, client.Config{Settings: settings(m), RuntimeDirectory: dir})
	if !listens(t, "unix", path) {
		t.Fatal("nobody listens")
	}
	wantMode(t, path, 0o660)
	m.ListenMode = 0o600
	n.apply(t, m)
	wantMode(t, path, 0o600)
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is left behind: %v", err)
	}
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	if info, err := os.Lstat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != want {
		t.Errorf("%s: %v, %v; want mode %v", path, info, err, want)
	}
}

func TestUnixSocketInTheWay(t *testing.T) {
	for _, test := range []struct {
		name string
		put  func(t *testing.T, path string)
		want string // part of the error; empty if there is none
	}{
		{"nobody's any more", func(t *testing.T, path string) {
			l := listenUnix(t, path)
			l.SetUnlinkOnClose(false)
			_ = l.Close()
		}, ""},
		{"another process's", func(t *testing.T, path string) { listenUnix(t, path) }, "another process listens there"},
		{"no socket", func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("dear diary"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "a file that is no socket"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "db.sock")
			test.put(t, path)
			n := start(t, client.Config{Settings: settings(), RuntimeDirectory: dir})
			err := n.Apply(t.Context(), settings(mapping("db", "unix db.sock")))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("apply: %v, want %q", err, test.want)
			}
			if _, err := os.Lstat(path); err != nil {
				t.Errorf("what was there is gone: %v", err)
			}
		})
	}
}

func listenUnix(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l.(*net.UnixListener)
}

func TestSocketsSurviveARestart(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("descriptors can't be handed over here")
	}
	dir, port := t.TempDir(), freePort(t)
	mappings := []config.Mapping{mapping("web", "tcp 127.0.0.1:"+port), mapping("db", "unix db.sock")}
	first := start(t, client.Config{Settings: settings(mappings...), RuntimeDirectory: dir, KeepSockets: true})
	kept := make(map[string]*os.File)
	for name, sockets := range first.Sockets() {
		file, err := sockets[0].(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		kept[name] = file
	}
	if err := first.stop(); err != nil {
		t.Error(err)
	}

	// Between the two processes, P1's connections wait.
	if !listens(t, "tcp", "127.0.0.1:"+port) || !listens(t, "unix", filepath.Join(dir, "db.sock")) {
		t.Fatal("the sockets are gone between the two processes")
	}
	second := start(t, client.Config{
		Settings: settings(mappings...), RuntimeDirectory: dir,
		Inherit: func(name string) []net.Listener {
			file := kept[name]
			if file == nil {
				return nil
			}
			delete(kept, name)
			l, err := net.FileListener(file)
			if err != nil {
				t.Errorf("inherit %s: %v", name, err)
				return nil
			}
			_ = file.Close()
			return []net.Listener{l}
		},
	})
	if len(kept) != 0 {
		t.Errorf("%v were not asked for", kept)
	}
	second.apply(t) // what is removed is closed, inherited or not
	if listens(t, "tcp", "127.0.0.1:"+port) || listens(t, "unix", filepath.Join(dir, "db.sock")) {
		t.Error("the listeners outlive their mappings")
	}
}

func TestAlive(t *testing.T) {
	port := freePort(t)
	n := start(t, client.Config{Settings: settings(mapping("m", "tcp 127.0.0.1:"+port))})
	for range 100 {
		if err := n.Alive(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !listens(t, "tcp", "127.0.0.1:"+port) {
		t.Error("it doesn't accept any more")
	}
}

// inMemory runs a client with one in-memory listener in a bubble.
func inMemory(t *testing.T, c *config.Config) (*node, *testutil.Listener) {
	t.Helper()
	l := testutil.Listen("systemd:web")
	n := start(t, client.Config{Settings: c, Inherit: func(string) []net.Listener { return []net.Listener{l} }})
	return n, l
}

func TestAcceptSurvivesWantOfDescriptors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, l := inMemory(t, settings(mapping("m", "systemd web")))
		for range 100 {
			l.Fail(os.NewSyscallError("accept4", syscall.EMFILE))
		}
		began := time.Now()
		conn, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("P1 reads %v", err)
		}
		if took := time.Since(began); took < 30*time.Second || took > 2*time.Minute {
			t.Errorf("100 failures took %v: the loop spins, or sleeps too long", took)
		}
		if lines := n.log.Count("connections can't be accepted"); lines < 1 || lines > 3 {
			t.Errorf("%d lines for 100 failures", lines)
		}
		if n.log.Count("raise LimitNOFILE") == 0 {
			t.Error("the log doesn't say what to do")
		}
	})
}

func TestConnectionsBeyondALimitWait(t *testing.T) {
	for _, limit := range []func(*config.Limits){
		func(l *config.Limits) { l.SessionsPerMapping = 2 },
		func(l *config.Limits) { l.Sessions = 2 },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := settings(mapping("m", "systemd web"))
			c.Limits.HoldTimeout = time.Second
			limit(&c.Limits)
			n, l := inMemory(t, c)
			began := time.Now()
			var ends []time.Duration
			var mu sync.Mutex
			var work sync.WaitGroup
			for range 6 {
				conn, err := l.Dial(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				work.Go(func() {
					_, _ = conn.Read(make([]byte, 1))
					mu.Lock()
					defer mu.Unlock()
					ends = append(ends, time.Since(began))
				})
			}
			work.Wait()
			synctest.Wait() // P1 hears of the end before the client has counted it
			slices.Sort(ends)
			want := []time.Duration{time.Second, time.Second, 2 * time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second}
			if !slices.Equal(ends, want) {
				t.Errorf("connections were served until %v, want two at a time: %v", ends, want)
			}
			if n.log.Count("limit reached") != 1 {
				t.Errorf("%d lines about the limit, want one", n.log.Count("limit reached"))
			}
			synctest.Wait() // P1 sees its end before the mapping counts it
			if m := n.Snapshot().Mappings[0]; m.Connections != 0 {
				t.Errorf("%d connections are still counted", m.Connections)
			}
		})
	}
}

func TestHeldConnectionOfAMappingThatGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := mapping("m", "systemd web")
		m.OnRemove = config.OnRemoveClose
		c := settings(m)
		c.Limits.HoldTimeout = time.Minute
		n, l := inMemory(t, c)
		conn, err := l.Dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		began := time.Now()
		n.apply(t)
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) || time.Since(began) != 0 {
			t.Errorf("P1 reads %v after %v, want a reset at once", err, time.Since(began))
		}
	})
}

func TestApplyAfterTheEnd(t *testing.T) {
	n := start(t, client.Config{Settings: settings()})
	if err := n.stop(); err != nil {
		t.Error(err)
	}
	if err := n.Apply(t.Context(), settings()); err == nil {
		t.Error("a client that has stopped takes another config")
	}
}
