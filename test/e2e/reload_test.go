//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/control"
	"ptthqd/test/testutil"
)

// A site is a world whose configs a test changes piece by piece, while checked
// streams run over a mapping that nothing touches.
type site struct {
	*world
	undisturbed []*traffic
}

func newSite(t *testing.T, relays ...string) *site {
	t.Helper()
	s := &site{world: newWorld(t, endServer, relays...)}
	s.all()
	s.undisturbed = startTraffic(s.world, "request", "bulk")
	return s
}

// reload changes a node's config and has it taken over at once. It fails if the
// node's daemon refuses it.
func (s *site) reload(node string, change func(text string) string) {
	s.t.Helper()
	if out, err := s.tryReload(node, change); err != nil {
		s.t.Fatalf("reload of %s: %v: %s", node, err, out)
	}
}

func (s *site) tryReload(node string, change func(text string) string) (string, error) {
	s.t.Helper()
	text, err := os.ReadFile(s.path(node, ".toml"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(node, change(string(text)))
	cmd := exec.Command(program, "reload", "--socket", filepath.Join(s.path(node, ".run"), "control.sock"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func swap(old, fresh string) func(string) string {
	return func(text string) string {
		if !strings.Contains(text, old) {
			panic(fmt.Sprintf("%q is not in\n%s", old, text))
		}
		return strings.ReplaceAll(text, old, fresh)
	}
}

func also(more string) func(string) string {
	return func(text string) string { return text + "\n" + more }
}

func (s *site) mapping(name string, port int, more string) string {
	return fmt.Sprintf("[[mappings]]\nname = %q\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"%d\"\n%s\n",
		name, port, s.ports["target"], more)
}

func dialPort(t *testing.T, port int) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

// pinger opens a connection through a port and makes sure that it carries.
func pinger(t *testing.T, port int) *net.TCPConn {
	t.Helper()
	c := dialPort(t, port)
	if _, err := c.Write(request{kind: kindEcho}.bytes()); err != nil {
		t.Fatal(err)
	}
	goesOn(t, c)
	return c
}

func goesOn(t *testing.T, c *net.TCPConn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
}

// atOnce is within what time a right that is withdrawn has ended, everywhere.
const atOnce = 1500 * time.Millisecond

// isReset waits until a connection is reset, and tells how long after an event that was.
func isReset(t *testing.T, who string, c *net.TCPConn, since time.Time) time.Duration {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, err := c.Read(make([]byte, 1))
	took := time.Since(since)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s after %v: %v; a reset was to come", who, took, err)
	}
	return took
}

func refused(t *testing.T, port int) {
	t.Helper()
	if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		_ = c.Close()
		t.Errorf("port %d still listens", port)
	}
}

// TestReloadClient goes through the rows of the table of effects that concern
// mappings.
func TestReloadClient(t *testing.T) {
	s := newSite(t)
	a, b := testutil.FreePort(t), testutil.FreePort(t)

	s.reload("laptop", also(s.mapping("a", a, "")))
	open := pinger(t, a)

	// Another target: the listener stays, new connections go the new way.
	other := listen(t, func(c net.Conn) { _, _ = c.Write([]byte("other")); _ = c.Close() })
	target := fmt.Sprint(other.Addr().(*net.TCPAddr).Port)
	s.reload("nas", also("[[services]]\ntarget = \""+target+"\"\nclients = [\"laptop\"]"))
	before := s.mapping("a", a, "")
	after := strings.Replace(before, fmt.Sprintf("target = \"%d\"", s.ports["target"]), "target = \""+target+"\"", 1)
	s.reload("laptop", swap(before, after))
	fresh := dialPort(t, a)
	if got, err := io.ReadAll(fresh); err != nil || string(got) != "other" {
		t.Errorf("the new way: %q, %v", got, err)
	}
	goesOn(t, open) // the old way

	// Disabled and enabled again, then gone: running connections go on.
	s.reload("laptop", swap(after, after+"enabled = false\n"))
	refused(t, a)
	goesOn(t, open)
	s.reload("laptop", swap(after+"enabled = false\n", before))
	goesOn(t, pinger(t, a))
	s.reload("laptop", swap(before, ""))
	refused(t, a)
	goesOn(t, open)

	// on_remove = "close" ends them.
	promised(t, atOnce, func() map[string]time.Duration {
		s.reload("laptop", also(s.mapping("b", b, "on_remove = \"close\"")))
		closing := pinger(t, b)
		since := time.Now()
		s.reload("laptop", swap(s.mapping("b", b, "on_remove = \"close\""), ""))
		took := isReset(t, "P1 of the removed mapping", closing, since)
		refused(t, b)
		return map[string]time.Duration{"P1 of the removed mapping": took}
	})
	goesOn(t, open)

	// A listener moves to an address that overlaps its own.
	s.reload("laptop", also(s.mapping("a", a, "")))
	moved := strings.Replace(s.mapping("a", a, "allow_public = true"), "127.0.0.1:", "0.0.0.0:", 1)
	s.reload("laptop", swap(s.mapping("a", a, ""), moved))
	goesOn(t, pinger(t, a))

	// What can't be bound fails whole, and changes nothing.
	taken := listen(t, func(net.Conn) {})
	port := taken.Addr().(*net.TCPAddr).Port
	good, err := os.ReadFile(s.path("laptop", ".toml"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.tryReload("laptop", func(text string) string {
		return strings.Replace(text, moved, "", 1) + s.mapping("c", port, "")
	})
	if err == nil || !strings.Contains(out, "address already in use") {
		t.Errorf("a port that is taken: %v: %s", err, out)
	}
	goesOn(t, pinger(t, a))

	// What needs a restart is refused by name.
	for _, c := range []struct{ old, fresh, name string }{
		{"id = \"laptop\"", "id = \"desktop\"", "id"},
		{"role = \"client\"", "role = \"client\"\nprivate_key_file = \"/etc/other.key\"", "private_key_file"},
	} {
		s.write("laptop", string(good))
		out, err := s.tryReload("laptop", swap(c.old, c.fresh))
		if err == nil || !strings.Contains(out, c.name) {
			t.Errorf("another %s: %v: %s", c.name, err, out)
		}
	}
	// A fault in the text is refused with its place.
	s.write("laptop", string(good))
	out, err = s.tryReload("laptop", swap("[[mappings]]", "[[mapings]]"))
	if err == nil || !strings.Contains(out, "laptop.toml:") || !strings.Contains(out, "mappings") {
		t.Errorf("a misspelt table: %v: %s", err, out)
	}
	goesOn(t, open)
	finish(s.world, s.undisturbed)
}

// TestReloadRelaysOfNodes adds a relay and removes the one in use: the sessions
// move, and not a byte is lost.
func TestReloadRelaysOfNodes(t *testing.T) {
	s := newSite(t, "one", "two")
	block := fmt.Sprintf("[[relays]]\naddress = \"127.0.0.1:%d\"\npublic_key = %q\n", s.ports["one"], s.keys["one"].Public())
	for range 3 {
		for _, node := range []string{"laptop", "nas"} {
			s.reload(node, swap(block, ""))
		}
		s.carries(10 * time.Second)
		for _, node := range []string{"nas", "laptop"} {
			s.reload(node, func(text string) string { return strings.Replace(text, "[[relays]]", block+"[[relays]]", 1) })
		}
		s.carries(10 * time.Second)
	}
	finish(s.world, s.undisturbed)
}

// A settings site is a site whose nodes' own configs stay as they were, but for a line at their head.
type settings struct {
	*site
	nodes []string
	good  map[string]string // the config of each node
}

// with puts a line, or none, at the head of a node's own config.
func (s *settings) with(node, line string) {
	s.t.Helper()
	s.reload(node, func(string) string { return line + "\n" + s.good[node] })
}

// TestReloadSettings changes settings that are no mapping and no right, at each role, and settings
// that only a restart can change.
func TestReloadSettings(t *testing.T) {
	s := &settings{newSite(t), []string{"relay", "nas", "laptop"}, make(map[string]string)}
	for _, node := range s.nodes {
		text, err := os.ReadFile(s.path(node, ".toml"))
		if err != nil {
			t.Fatal(err)
		}
		s.good[node] = string(text)
	}
	s.logLevel(t)
	for _, node := range s.nodes {
		s.speaksAsDocumented(node)
	}
	s.limits(t)
	s.metrics(t)
	s.include(t)
	s.needRestart(t)
	finish(s.world, s.undisturbed)
}

// logLevel changes the log level by a reload, and by a signal.
func (s *settings) logLevel(t *testing.T) {
	for _, node := range s.nodes {
		s.with(node, `log_level = "debug"`)
		if level := s.status(node).Config.LogLevel; level != "debug" {
			t.Errorf("the level of %s is %s", node, level)
		}
		s.procs[node].says(t, "DEBUG")
		s.with(node, `log_level = "warn"`)
		quiet := len(s.procs[node].output())
		// By a signal, for once.
		s.write(node, "log_level = \"error\"\n"+s.good[node])
		s.procs[node].signal(syscall.SIGHUP)
		eventually(t, 15*time.Second, "the signal is heeded", func() error {
			if now := s.status(node).Config; now.LogLevel != "error" || now.Reload.Trigger != "signal" {
				return fmt.Errorf("%+v", now)
			}
			return nil
		})
		if said := s.procs[node].output()[quiet:]; said != "" {
			t.Errorf("%s says, with the level warn: %s", node, said)
		}
		s.with(node, "")
	}
}

// limits reaches a limit of each node, and raises it.
func (s *settings) limits(t *testing.T) {
	count := func(node string) int { return len(s.status(node).Connections) }
	s.with("laptop", fmt.Sprintf("limits.sessions_per_mapping = %d", count("laptop")))
	waits := s.mustDial() // in the listener's queue
	if _, err := waits.Write(append(request{kind: kindEcho}.bytes(), "ping"...)); err != nil {
		t.Fatal(err)
	}
	_ = waits.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := waits.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("beyond sessions_per_mapping: %v", err)
	}
	s.with("laptop", fmt.Sprintf("limits.sessions_per_mapping = %d", count("laptop")+1))
	_ = waits.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(waits, make([]byte, 4)); err != nil {
		t.Errorf("the limit was raised: %v", err)
	}
	s.with("laptop", "")
	for node, limit := range map[string]string{"nas": "sessions_per_client", "relay": "streams"} {
		s.with(node, fmt.Sprintf("limits.%s = %d", limit, count(node)))
		if source := refusedConnection(t, s.ports["mapping"]); source == "" {
			t.Log("the refusal was faster than the connection")
		}
		s.procs["laptop"].says(t, "code=429 .*by="+node)
		s.with(node, fmt.Sprintf("limits.%s = %d", limit, count(node)+1))
		goesOn(t, pinger(t, s.ports["mapping"]))
		s.with(node, "")
	}
}

// metrics has the metrics' listener come, move, fail to move, and go. What it serves tells limits
// that have changed.
func (s *settings) metrics(t *testing.T) {
	taken := listen(t, func(net.Conn) {}).Addr()
	for _, node := range s.nodes {
		one, two := testutil.FreePort(t), testutil.FreePort(t)
		at := func(port int, more string) string {
			return fmt.Sprintf("metrics.listen = \"127.0.0.1:%d\"\n%s", port, more)
		}
		s.with(node, at(one, ""))
		scrape(t, one)
		s.with(node, at(two, `limits.link_memory = "7MiB"`))
		refused(t, one)
		if text := scrape(t, two); !strings.Contains(text, `ptthqd_budget_limit_bytes{budget="link_memory"} 7.340032e+06`) {
			t.Errorf("link_memory of %s isn't 7 MiB:\n%s", node, text)
		}
		out, err := s.tryReload(node, swap(fmt.Sprintf("127.0.0.1:%d\"\nlimits", two), taken.String()+"\"\nlimits"))
		if err == nil || !strings.Contains(out, "address already in use") {
			t.Errorf("metrics at a port that is taken: %v: %s", err, out)
		}
		scrape(t, two)
		s.with(node, "")
		refused(t, two)
	}
}

// include has a directory included, and not any more.
func (s *settings) include(t *testing.T) {
	more := filepath.Join(s.dir, "more")
	port := testutil.FreePort(t)
	err := errors.Join(os.Mkdir(more, 0o755), os.WriteFile(filepath.Join(more, "a.toml"), []byte(s.mapping("included", port, "")), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	s.with("laptop", `include = ["more/*.toml"]`)
	included := pinger(t, port)
	s.with("laptop", "")
	refused(t, port)
	goesOn(t, included)
}

// needRestart changes what needs a restart. That is refused by name, and none of it is in force.
func (s *settings) needRestart(t *testing.T) {
	line := func(key, value string) func(string) string {
		return func(text string) string {
			return key + " = " + value + "\n" + regexp.MustCompile(`(?m)^`+key+` = .*\n`).ReplaceAllString(text, "")
		}
	}
	other := map[string]func(string) string{
		"relay":  swap(s.good["relay"], s.good["laptop"]),
		"nas":    swap(s.good["nas"], s.good["relay"]),
		"laptop": swap(s.good["laptop"], s.good["nas"]),
	}
	for _, c := range []struct {
		node, key string
		change    func(string) string
	}{
		{"relay", "role", other["relay"]},
		{"nas", "role", other["nas"]},
		{"laptop", "role", other["laptop"]},
		{"nas", "id", line("id", `"other"`)},
		{"laptop", "id", line("id", `"other"`)},
		{"relay", "private_key_file", line("private_key_file", `"/etc/other.key"`)},
		{"nas", "private_key_file", line("private_key_file", `"/etc/other.key"`)},
		{"laptop", "private_key_file", line("private_key_file", `"/etc/other.key"`)},
		{"relay", "listen", line("listen", fmt.Sprintf("[\"127.0.0.1:%d\"]", testutil.FreePort(t)))},
	} {
		s.write(c.node, s.good[c.node])
		s.with(c.node, "")
		before := s.status(c.node).Config.Hash
		out, err := s.tryReload(c.node, func(text string) string {
			return "log_level = \"debug\"\n" + c.change(strings.TrimPrefix(text, "\n"))
		})
		if err == nil || !strings.Contains(out, "only a restart can change "+c.key+" from") {
			t.Errorf("another %s at %s: %v: %s", c.key, c.node, err, out)
		}
		if now := s.status(c.node).Config; now.Hash != before || now.LogLevel != "info" {
			t.Errorf("another %s at %s has changed %+v", c.key, c.node, now)
		}
		s.with(c.node, "")
	}
}

// speaksAsDocumented fails unless what a node says of itself is in the form that pkg/control has types for, which are those of
// docs/control.md: nothing more, and nothing less.
func (s *site) speaksAsDocumented(node string) {
	s.t.Helper()
	raw, err := (&control.Client{Socket: filepath.Join(s.path(node, ".run"), "control.sock")}).RawStatus(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	var status control.Status
	if err := decoder.Decode(&status); err != nil {
		s.t.Errorf("status of %s: %v", node, err)
	}
	again, err := json.MarshalIndent(&status, "", "  ")
	if err != nil || string(again) != strings.TrimSpace(string(raw)) {
		s.t.Errorf("status of %s: %v\n%s\nisn't what it was decoded from:\n%s", node, err, again, raw)
	}
}

// scrape reads metrics.
func scrape(t *testing.T, port int) string {
	t.Helper()
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s, %v", answer.Status, err)
	}
	return string(text)
}

// TestManyReloads changes the client's config again and again under traffic.
// Nothing is disturbed or leaked, and the last file is what runs.
func TestManyReloads(t *testing.T) {
	s := newSite(t)
	rounds := 200
	if *full {
		rounds = 1000
	}
	ports := []int{testutil.FreePort(t), testutil.FreePort(t)}
	base, err := os.ReadFile(s.path("laptop", ".toml"))
	if err != nil {
		t.Fatal(err)
	}
	before := s.footprint(t, "laptop")
	daemon := &control.Client{Socket: filepath.Join(s.path("laptop", ".run"), "control.sock")}
	for i := range rounds {
		s.write("laptop", string(base)+s.mapping(fmt.Sprint("round-", i), ports[i%2], ""))
		if _, err := daemon.Reload(t.Context()); err != nil {
			t.Fatalf("reload %d: %v", i, err)
		}
	}
	goesOn(t, pinger(t, ports[(rounds-1)%2]))
	refused(t, ports[rounds%2])
	// The watched file alone does it too, and the last of many changes counts.
	for i := range 50 {
		s.write("laptop", string(base)+s.mapping(fmt.Sprint("watched-", i), ports[i%2], ""))
	}
	s.write("laptop", string(base)+s.mapping("last", ports[rounds%2], ""))
	eventually(t, 15*time.Second, "the last file runs", func() error {
		names := []string{}
		for _, m := range s.status("laptop").Mappings {
			names = append(names, m.Name)
		}
		if !slices.Contains(names, "last") || len(names) != 2 {
			return fmt.Errorf("%v", names)
		}
		return nil
	})
	finish(s.world, s.undisturbed)
	after := s.footprint(t, "laptop")
	t.Logf("before %+v, after %+v", before, after)
	if after.files > before.files+3 {
		t.Errorf("%d files are open after %d reloads, %d before", after.files, rounds, before.files)
	}
}

// TestWritersThatTakeTheirTime writes configs as people and tools do: slowly,
// through swap files, by removing and copying. Nobody is revoked on the way.
func TestWritersThatTakeTheirTime(t *testing.T) {
	for range 5 {
		// Who takes longer than the nodes wait can't be told from one who is done.
		stood := testutil.WatchMachine()
		said := takesItsTime(t)
		still := stood()
		if len(said) == 0 {
			return
		}
		if still < stalled {
			t.Fatalf("the relay has said %q", said)
		}
		t.Logf("the relay has said %q; the machine itself stood still for %v at a time", said, still)
	}
	t.Error("the relay has said each time what it should not")
}

// takesItsTime writes a relay's config in all these ways, and returns what the relay has said that it shouldn't.
func takesItsTime(t *testing.T) (said []string) {
	t.Helper()
	s := newSite(t)
	name := s.path("relay", ".toml")
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	head, peers, _ := strings.Cut(string(text), "[[peers]]")
	dir := s.path("relay", ".d")
	include := filepath.Join(dir, "peers.toml")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	padding := strings.Repeat("# what somebody has to say about peers\n", 400)
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(include, padding+"[[peers]]"+peers)
	s.write("relay", head)
	reloads := func() time.Time {
		if r := s.status("relay").Config.Reload; r != nil && r.OK {
			return r.At
		}
		return time.Time{}
	}
	last := reloads()
	settled := func(what string) {
		t.Helper()
		eventually(t, 10*time.Second, what, func() error {
			if at := reloads(); !at.After(last) {
				return fmt.Errorf("the last reload was at %v", at)
			}
			return nil
		})
		last = reloads()
	}
	settled("the peers have moved to an include file")

	// In chunks of 4 KiB, over seconds.
	f, err := os.Create(include)
	if err != nil {
		t.Fatal(err)
	}
	rest := []byte(padding + "# slowly\n[[peers]]" + peers)
	for len(rest) > 0 {
		n := min(4096, len(rest))
		if _, err := f.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
		<-time.After(250 * time.Millisecond)
	}
	_ = f.Close()
	settled("the slow writer is done")

	// The include directory removed and copied back.
	kept := s.path("relay", ".kept")
	if err := os.CopyFS(kept, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	<-time.After(700 * time.Millisecond)
	write(filepath.Join(kept, "peers.toml"), padding+"# copied\n[[peers]]"+peers)
	if err := os.CopyFS(dir, os.DirFS(kept)); err != nil {
		t.Fatal(err)
	}
	settled("the directory is back")

	// An editor's swap files and backup.
	write(filepath.Join(dir, ".peers.toml.swp"), "\x00 not TOML")
	write(filepath.Join(dir, "peers.toml~"), "not TOML either")
	write(filepath.Join(dir, "4913"), "")
	_ = os.Remove(filepath.Join(dir, "4913"))
	write(include+".new", padding+"# edited\n[[peers]]"+peers)
	if err := os.Rename(include+".new", include); err != nil {
		t.Fatal(err)
	}
	settled("the editor has saved")

	for _, line := range []string{"revoked", "link down"} {
		if strings.Contains(s.procs["relay"].output(), line) {
			said = append(said, line)
		}
	}
	if len(said) == 0 {
		finish(s.world, s.undisturbed)
	}
	s.end()
	return said
}
