package daemon_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/daemon"
	"ptthqd/pkg/host"
	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

// childVariable has the test binary be a daemon, for tests that need a process of its own.
const childVariable = "PTTHQD_TEST_CHILD"

// formatVariable is the child's log format.
const formatVariable = "PTTHQD_TEST_FORMAT"

// childHook prepares a child.
var childHook func()

func TestMain(m *testing.M) {
	if path := os.Getenv(childVariable); path != "" {
		os.Exit(child(path)) //nolint:forbidigo // it is a main here
	}
	goleak.VerifyTestMain(m)
}

func child(path string) int {
	format := cmp.Or(os.Getenv(formatVariable), host.LogText)
	if childHook != nil {
		childHook()
	}
	err := daemon.Run(context.Background(), daemon.Options{Config: path, Socket: path + ".sock", LogFormat: format})
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	if _, ok := errors.AsType[config.Errors](err); ok {
		return 78
	}
	return 1
}

// A site is a directory with configs and keys.
type site struct {
	t   testing.TB
	dir string
}

func newSite(t testing.TB) *site {
	for _, name := range []string{"RUNTIME_DIRECTORY", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", dir)
	return &site{t, dir}
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

// key makes a private key NAME.key and returns the public one.
func (s *site) key(name string) string {
	s.t.Helper()
	k, err := ident.Generate()
	if err == nil {
		err = ident.WritePrivateKey(s.path(name+".key"), k, false)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return k.Public().String()
}

// write puts a file in place in one step.
func (s *site) write(name, text string) {
	s.t.Helper()
	draft := s.path(name) + "~"
	err := os.WriteFile(draft, []byte(text), 0o600)
	if err == nil {
		err = os.Rename(draft, s.path(name))
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// A process is a daemon that runs in the test's own process.
type process struct {
	*control.Client
	t    testing.TB
	log  testutil.Log
	stop context.CancelFunc
	done chan struct{}
	err  error
}

// start runs NAME.toml until the test ends, and waits until it is ready.
func (s *site) start(name string) *process {
	s.t.Helper()
	p := s.begin(name)
	p.until("it runs", func(now *control.Status) bool { return now.State == "running" })
	return p
}

func (s *site) begin(name string) *process {
	ctx, stop := context.WithCancel(context.Background())
	p := &process{t: s.t, stop: stop, done: make(chan struct{}), Client: &control.Client{Socket: s.path(name + ".sock")}}
	go func() {
		defer close(p.done)
		p.err = daemon.Run(ctx, daemon.Options{Config: s.path(name + ".toml"), Socket: p.Socket, LogFormat: host.LogText, Version: "test", Stderr: &p.log})
	}()
	s.t.Cleanup(func() {
		_ = p.end()
		if s.t.Failed() {
			s.t.Logf("%s said:\n%s", name, p.log.String())
		}
	})
	return p
}

func (p *process) end() error {
	p.stop()
	<-p.done
	return p.err
}

const patience = 2 * time.Minute

// until waits until the status is as it should be.
func (p *process) until(what string, is func(*control.Status) bool) *control.Status {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	ctx, cancel := context.WithDeadline(p.t.Context(), deadline)
	defer cancel()
	for {
		status, err := p.Status(ctx)
		if err == nil && is(status) {
			return status
		}
		select {
		case <-p.done:
			p.t.Fatalf("it has ended: %v", p.err)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("not seen within %v that %s: %+v, %v", patience, what, status, err)
		}
	}
}

func (p *process) hasPeer(id string) func(*control.Status) bool {
	return func(s *control.Status) bool {
		for _, peer := range s.Peers {
			if peer.ID == id {
				return true
			}
		}
		return false
	}
}

func (p *process) hasNoPeer(id string) func(*control.Status) bool {
	has := p.hasPeer(id)
	return func(s *control.Status) bool { return !has(s) }
}

func relayConfig(port int, more string) string {
	return fmt.Sprintf("role = \"relay\"\nlisten = [\"127.0.0.1:%d\"]\n%s\n", port, more)
}

func peer(id, key string) string {
	return fmt.Sprintf("[[peers]]\nid = %q\nrole = \"server\"\npublic_key = %q\n", id, key)
}

const (
	keyA = "m5ZbHNo2w1bOBuJ5rWBgPSCA4jHW2Xn2iWVvYtDmZzo="
	keyB = "9tQxVAhV2wH7b3xGqJmC2UzZBDBQsUoaDPRKkhd8nlg="
)

func TestChangedFilesAreTakenOver(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, ""))
	p := s.start("relay")

	s.write("relay.toml", relayConfig(port, peer("a", keyA)))
	p.until("a peer is added", p.hasPeer("a"))

	// A directory that was not there, with a file in it.
	if err := os.Mkdir(s.path("relay.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write("relay.d/b.toml", peer("b", keyB))
	p.until("an included peer is added", p.hasPeer("b"))

	// A bad file changes nothing, and says so.
	s.write("relay.toml", "lisen = 1\n"+relayConfig(port, ""))
	bad := p.until("the reload fails", func(now *control.Status) bool { return now.Config.Reload != nil && !now.Config.Reload.OK })
	if !p.hasPeer("a")(bad) || bad.Config.Reload.Trigger != "watch" || len(bad.Warnings) == 0 || !strings.Contains(bad.Summary, ":1:1: lisen") {
		t.Errorf("after a bad reload: %+v", bad)
	}
	s.write("relay.toml", relayConfig(port, peer("a", keyA)))
	p.until("it is mended", func(now *control.Status) bool { return now.Config.Reload.OK })

	// The log says that it is removed.
	if err := os.Remove(s.path("relay.d/b.toml")); err != nil {
		t.Fatal(err)
	}
	if done, err := p.Reload(t.Context()); err != nil || !done.OK {
		t.Fatalf("a file is removed: %+v, %v", done, err)
	}
	p.until("the included peer is gone", p.hasNoPeer("b"))
	if err := os.Remove(s.path("relay.d")); err != nil {
		t.Fatal(err)
	}

	// A link that is swapped, as Kubernetes and ln -sfn do.
	for _, dir := range []string{"one", "two"} {
		if err := os.Mkdir(s.path(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s.write("one/peer.toml", peer("one", keyB))
	s.write("two/peer.toml", peer("two", keyB))
	swap := func(to string) {
		t.Helper()
		if err := errors.Join(os.Symlink(s.path(to), s.path("draft")), os.Rename(s.path("draft"), s.path("relay.d"))); err != nil {
			t.Fatal(err)
		}
	}
	swap("one")
	p.until("the link is followed", p.hasPeer("one"))
	swap("two")
	now := p.until("the swapped link is followed", p.hasPeer("two"))
	if p.hasPeer("one")(now) {
		t.Error("both are there")
	}
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

// A missing directory of the config revokes no peer, however the reload was asked for. The daemon
// notices when the directory is back.
func TestDirectoryThatIsGone(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	if err := os.Mkdir(s.path("relay.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write("relay.d/b.toml", peer("b", keyB))
	s.write("relay.toml", relayConfig(testutil.FreePort(t), ""))
	p := s.start("relay")

	move := func(from, to string) {
		t.Helper()
		if err := os.Rename(s.path(from), s.path(to)); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string) {
		t.Helper()
		done, err := p.Reload(t.Context())
		if err != nil || done.OK || done.Cause != control.CauseHost || !strings.Contains(done.Error, "relay.d: the directory is gone") {
			t.Errorf("%s: %+v, %v", what, done, err)
		}
		p.until("the peer of the directory stays", p.hasPeer("b"))
	}
	move("relay.d", "away.d")
	refused("renamed")
	if err := os.Mkdir(s.path("relay.d"), 0o700); err != nil { // a mount point, without the volume
		t.Fatal(err)
	}
	refused("another directory, and empty")
	if err := os.Remove(s.path("relay.d")); err != nil {
		t.Fatal(err)
	}
	move("away.d", "relay.d")
	p.until("it is back", func(now *control.Status) bool { return now.Config.Reload.OK })
	p.until("the peer stays", p.hasPeer("b"))

	// An explicit command is obeyed.
	s.write("relay.d/b.toml", "# nobody any more")
	if done, err := p.Reload(t.Context()); err != nil || !done.OK {
		t.Errorf("a comment instead: %+v, %v", done, err)
	}
	p.until("the peer is gone", p.hasNoPeer("b"))
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

func TestReloadOnDemand(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, ""))
	p := s.start("relay")

	done, err := p.Reload(t.Context())
	if err != nil || !done.OK || len(done.Changes) != 0 || done.Trigger != "command" {
		t.Errorf("nothing new: %+v, %v", done, err)
	}
	s.write("relay.toml", "log_level = \"debug\"\n"+relayConfig(port, peer("a", keyA)))
	done, err = p.Reload(t.Context())
	if err != nil || !done.OK || len(done.Changes) != 2 || len(done.Warnings) == 0 {
		t.Errorf("a peer and a level: %+v, %v", done, err)
	}
	now := p.until("it is in force", p.hasPeer("a"))
	if now.Config.LogLevel != "debug" {
		t.Errorf("the level is %s", now.Config.LogLevel)
	}
	if who := fmt.Sprintf("caller=\"uid %d, pid %d\"", os.Getuid(), os.Getpid()); runtime.GOOS == "linux" && !strings.Contains(p.log.String(), "control request method=POST path=/v1/reload "+who) {
		t.Errorf("it isn't logged who asked: %s", who)
	}

	for _, c := range []struct{ text, cause, says string }{
		{"role = 1", control.CauseConfig, "relay.toml:1:8: role: is an integer, not a string"},
		{relayConfig(port+1, ""), control.CauseRestart, "only a restart can change listen from"},
		{"role = \"server\"\nid = \"x\"\n[[relays]]\naddress = \"h\"\npublic_key = \"" + keyA + "\"\n", control.CauseRestart, `only a restart can change role from "relay" to "server"`},
	} {
		s.write("relay.toml", c.text)
		done, err := p.Reload(t.Context())
		if err != nil || done.OK || done.Cause != c.cause || !strings.Contains(done.Error, c.says) {
			t.Errorf("%s: %+v, %v; want %s", c.text, done, err, c.says)
		}
	}
	if err := os.Remove(s.path("relay.toml")); err != nil {
		t.Fatal(err)
	}
	done, err = p.Reload(t.Context())
	if err != nil || done.OK || done.Cause != control.CauseHost {
		t.Errorf("no file: %+v, %v", done, err)
	}
	now = p.until("the old config is in force", p.hasPeer("a"))
	if now.Counters.Reloads != 2 || now.Counters.BadReload != 4 {
		t.Errorf("counted %+v", now.Counters)
	}
}

// A credential is a copy of the key file beside the config. The daemon refuses a file that others
// may read, as `ptthqd check` does, and doesn't put another key in it in force.
func TestCredential(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("credentials are systemd's")
	}
	s := newSite(t)
	s.key("relay")
	credentials := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	text, err := os.ReadFile(s.path("relay.key"))
	if err == nil {
		err = os.WriteFile(filepath.Join(credentials, "ptthq.key"), text, 0o440) // as systemd's look
	}
	if err != nil {
		t.Fatal(err)
	}
	s.write("relay.toml", relayConfig(testutil.FreePort(t), ""))
	for _, mode := range []os.FileMode{0o644, 0o640} {
		if err := os.Chmod(s.path("relay.key"), mode); err != nil {
			t.Fatal(err)
		}
		p := s.begin("relay")
		select {
		case <-p.done:
		case <-time.After(patience):
			p.stop()
		}
		<-p.done
		if p.err == nil || !strings.Contains(p.err.Error(), "open to other users") {
			t.Errorf("mode %04o: %v", mode, p.err)
		}
	}
	if err := os.Chmod(s.path("relay.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := s.start("relay")
	if done, err := p.Reload(t.Context()); err != nil || !done.OK || done.Restart != "" {
		t.Errorf("the same key: %+v, %v", done, err)
	}
	if err := os.Remove(s.path("relay.key")); err != nil {
		t.Fatal(err)
	}
	if done, err := p.Reload(t.Context()); err != nil || !done.OK || done.Restart != "" {
		t.Errorf("no key beside the config: %+v, %v", done, err)
	}
	s.key("relay")
	done, err := p.Reload(t.Context())
	if err != nil || !done.OK || !strings.Contains(done.Restart, "relay.key is another one than that in force") {
		t.Errorf("another key: %+v, %v", done, err)
	}
	p.until("status warns of it", func(now *control.Status) bool {
		return slices.ContainsFunc(now.Warnings, func(w control.Warning) bool { return strings.Contains(w.Text, "another one") })
	})
	if err := p.end(); err != nil {
		t.Error(err)
	}
}

// The relay and the nodes tell of nodes that share a key.
func TestNodesThatShareAKey(t *testing.T) {
	s := newSite(t)
	relayKey, key := s.key("relay"), s.key("client0")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, fmt.Sprintf("[[peers]]\nid = \"laptop\"\nrole = \"client\"\npublic_key = %q\nallowed_servers = []\n", key)))
	r := s.start("relay")
	var nodes []*process
	for i := range 3 {
		s.write(fmt.Sprintf("client%d.toml", i), fmt.Sprintf("role = \"client\"\nid = \"laptop\"\nprivate_key_file = %q\n[[relays]]\naddress = \"127.0.0.1:%d\"\npublic_key = %q\n",
			s.path("client0.key"), port, relayKey))
		node := s.start(fmt.Sprint("client", i))
		want := control.LinkWaiting
		if i == 0 {
			want = control.LinkConnected
		}
		node.until("its link is "+want, func(now *control.Status) bool { return now.Links[0].State == want })
		nodes = append(nodes, node)
	}
	warns := func(parts ...string) func(*control.Status) bool {
		return func(now *control.Status) bool {
			return slices.ContainsFunc(now.Warnings, func(w control.Warning) bool {
				text := w.Text + "; " + w.Hint
				return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
			})
		}
	}
	for i, node := range nodes {
		now := node.until("it warns", warns("another node holds this node's key", "ptthqd keygen"))
		if l := now.Links[0]; i > 0 && !strings.Contains(l.LastError, "another node holds this node's key") {
			t.Errorf("the link of node %d: %+v", i, l)
		}
	}
	now := r.until("it warns", warns("peer laptop", "several nodes hold its key, at 127.0.0.1", "ptthqd keygen"))
	if p := now.Peers[0]; !p.Connected || p.Problem == "" {
		t.Errorf("the peer: %+v", p)
	}
}

// An entry that only moves within the file changes nothing. Messages then name its new place.
func TestMovedLines(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	text := relayConfig(testutil.FreePort(t), peer("nas", keyA)+
		fmt.Sprintf("[[peers]]\nid = \"laptop\"\nrole = \"client\"\npublic_key = %q\nallowed_servers = [\"nas\"]\n", keyB))
	s.write("relay.toml", text)
	p := s.start("relay")
	line := func(place string) int {
		t.Helper()
		_, number, _ := strings.Cut(place, ".toml:")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("%q is no place", place)
		}
		return n
	}
	look := func() (peer, rule int) {
		t.Helper()
		now, err := p.Status(t.Context())
		if err != nil || len(now.Peers) != 2 {
			t.Fatalf("%+v, %v", now, err)
		}
		e, err := p.Explain(t.Context(), control.Question{Client: "laptop", Server: "nas", Target: "22"})
		if err != nil || !e.Allowed {
			t.Fatalf("%+v, %v", e, err)
		}
		return line(now.Peers[0].Source), line(e.Source)
	}
	peerWas, ruleWas := look()
	s.write("relay.toml", "# three\n# lines\n# more\n"+text)
	if done, err := p.Reload(t.Context()); err != nil || !done.OK || len(done.Changes) != 0 {
		t.Errorf("moved: %+v, %v", done, err)
	}
	if peerIs, ruleIs := look(); peerIs != peerWas+3 || ruleIs != ruleWas+3 {
		t.Errorf("the peer was at line %d and the rule at %d; now %d and %d", peerWas, ruleWas, peerIs, ruleIs)
	}
}

// A hundred reloads in a row: the last written file is what runs.
func TestTheLastFileRuns(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, ""))
	p := s.start("relay")
	for i := range 100 {
		s.write("relay.toml", relayConfig(port, peer(fmt.Sprintf("n%d", i), keyA)))
		if i%10 == 9 {
			if done, err := p.Reload(t.Context()); err != nil || !done.OK {
				t.Fatalf("reload %d: %+v, %v", i, done, err)
			}
		}
	}
	s.write("relay.toml", relayConfig(port, peer("last", keyA)))
	p.until("the last one runs", p.hasPeer("last"))
}

func TestLogLevelWhileItRuns(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	s.write("relay.toml", relayConfig(testutil.FreePort(t), ""))
	p := s.start("relay")
	if level, err := p.SetLogLevel(t.Context(), "debug"); err != nil || level.Level != "debug" {
		t.Errorf("%+v, %v", level, err)
	}
	if _, err := p.SetLogLevel(t.Context(), "loud"); err == nil {
		t.Error("loud is a level")
	}
	if _, err := p.Status(t.Context()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(p.log.String(), "DEBUG control request") {
		t.Error("nothing is logged at debug")
	}
}

// The limits of the control socket hold, and a reload changes them.
func TestLimitsOfTheControlSocket(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, "limits.control_requests = 1\n"))
	p := s.start("relay")
	silent := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", p.Socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	first := silent()
	impatient, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := p.Status(impatient); err == nil {
		t.Error("two requests at once, of which one is allowed")
	}
	// No request gets through, so the change of the file must be enough.
	s.write("relay.toml", relayConfig(port, "limits.control_requests = 2\nlimits.control_timeout = \"1s\"\n"))
	p.until("the second is served", func(now *control.Status) bool { return now.Config.Reload != nil })

	if _, err := io.WriteString(first, "GET /v1/status HTTP/1.1\r\nHost: ptthqd\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(first) // to its end: a connection is for one request
	if err != nil || !strings.Contains(string(answer), "200 OK") {
		t.Errorf("the first is answered %q, %v", answer, err)
	}
	begun := time.Now()
	slow := silent()
	_ = slow.SetReadDeadline(begun.Add(patience))
	if _, err := io.WriteString(slow, "GET /v1/sta"); err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(slow)
	if took := time.Since(begun); err != nil || took < 900*time.Millisecond || took > 5*time.Second {
		t.Errorf("a request that doesn't come to its end: %v after %v, want the end after 1 s", err, took)
	}
}

func TestWhatKeepsItFromStarting(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	good := relayConfig(testutil.FreePort(t), "")
	squatter, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer squatter.Close()
	for _, c := range []struct {
		name, config, want string
		fault              bool // of the config's text
	}{
		{"no config", "", "no such file", false},
		{"a fault", "role = \"relai\"", "role", true},
		{"no key", good, "ptthqd keygen -o", false},
		{"taken", relayConfig(squatter.LocalAddr().(*net.UDPAddr).Port, ""), "address already in use: another process listens there", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := "relay"
			if c.name == "no key" {
				name = "keyless"
			}
			if c.config != "" {
				s.write(name+".toml", c.config)
			}
			s.t = t
			p := s.begin(name)
			<-p.done
			_, fault := errors.AsType[config.Errors](p.err)
			if p.err == nil || !strings.Contains(p.err.Error(), c.want) || fault != c.fault {
				t.Errorf("%v; want %s", p.err, c.want)
			}
		})
	}
}
