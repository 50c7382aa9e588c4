//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/ident"
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

// isReset waits until a connection is reset, and tells how long that took.
func isReset(t *testing.T, c *net.TCPConn, within time.Duration) {
	t.Helper()
	begun := time.Now()
	_ = c.SetDeadline(begun.Add(10 * time.Second))
	_, err := c.Read(make([]byte, 1))
	if took := time.Since(begun); !errors.Is(err, syscall.ECONNRESET) || took > within {
		t.Errorf("after %v: %v; a reset within %v was to come", took, err, within)
	}
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
	a, b := freeTCPPort(t), freeTCPPort(t)

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
	s.reload("laptop", also(s.mapping("b", b, "on_remove = \"close\"")))
	closing := pinger(t, b)
	s.reload("laptop", swap(s.mapping("b", b, "on_remove = \"close\""), ""))
	isReset(t, closing, 1500*time.Millisecond)
	refused(t, b)
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
		s.carries(back)
		for _, node := range []string{"nas", "laptop"} {
			s.reload(node, func(text string) string { return strings.Replace(text, "[[relays]]", block+"[[relays]]", 1) })
		}
		s.carries(back)
	}
	finish(s.world, s.undisturbed)
}

// TestPeerAdded: a peer that a reload adds can connect at once.
func TestPeerAdded(t *testing.T) {
	s := &site{world: newWorld(t, endServer)}
	text, err := os.ReadFile(s.path("relay", ".toml"))
	if err != nil {
		t.Fatal(err)
	}
	all := string(text)
	head, rest, _ := strings.Cut(all, "[[peers]]")
	_, server, _ := strings.Cut(rest, "[[peers]]")
	s.write("relay", head+"[[peers]]"+server) // without the laptop
	s.start("relay")
	s.start("nas")
	s.reload("relay", func(string) string { return all })
	s.start("laptop")
	s.carries(5 * time.Second)
}

// TestRightsWithdrawn takes a right away at each place that can, by replacing the
// file alone: the connections that lived by it end within 1.5 s, the others
// don't, and those that are detached at the time end too.
func TestRightsWithdrawn(t *testing.T) {
	for _, c := range []struct {
		name, node string
		change     func(s *site) func(string) string
	}{
		{"allowed server", "relay", func(*site) func(string) string { return swap(`["nas"]`, `["gone"]`) }},
		{"key", "relay", func(s *site) func(string) string {
			return swap(s.keys["laptop"].Public().String(), s.keys["stranger"].Public().String())
		}},
		{"service's client", "nas", func(*site) func(string) string { return swap(`clients = ["laptop"]`, `clients = ["nobody"]`) }},
	} {
		for _, detached := range []bool{false, true} {
			name := c.name
			if detached {
				name += ", detached"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p5 := make(chan *net.TCPConn, 10)
				s := &site{world: newWorld(t, func(c net.Conn) {
					p5 <- c.(*net.TCPConn)
				})}
				stranger, err := ident.Generate()
				if err != nil {
					t.Fatal(err)
				}
				s.keys["stranger"] = stranger
				for _, node := range []string{"relay", "nas", "laptop"} {
					s.start(node)
				}
				var p1 *net.TCPConn
				eventually(t, 10*time.Second, "the chain carries", func() error {
					var err error
					if p1, err = s.dial(); err != nil {
						return err
					}
					_ = p1.SetDeadline(time.Now().Add(10 * time.Second))
					_, err = p1.Write([]byte("hello"))
					return err
				})
				far := <-p5
				if _, err := io.ReadFull(far, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
				text, err := os.ReadFile(s.path(c.node, ".toml"))
				if err != nil {
					t.Fatal(err)
				}
				if detached {
					s.procs["laptop"].signal(syscall.SIGSTOP)
					eventually(t, 15*time.Second, "the server's session is detached", func() error {
						for _, x := range s.status("nas").Connections {
							if x.State == "detached" {
								return nil
							}
						}
						return errors.New("not yet")
					})
				}
				s.write(c.node, c.change(s)(string(text)))
				isReset(t, far, 1500*time.Millisecond)
				if detached {
					s.procs["laptop"].signal(syscall.SIGCONT)
				}
				isReset(t, p1, 5*time.Second)
				for _, node := range []string{"laptop", "relay", "nas"} {
					eventually(t, 5*time.Second, node+" has no connection left", func() error {
						if left := s.status(node).Connections; len(left) > 0 {
							return fmt.Errorf("%+v", left)
						}
						return nil
					})
				}
			})
		}
	}
}

// TestManyReloads changes the client's config again and again under traffic.
// Nothing is disturbed or leaked, and the last file is what runs.
func TestManyReloads(t *testing.T) {
	s := newSite(t)
	rounds := 200
	if *full {
		rounds = 1000
	}
	ports := []int{freeTCPPort(t), freeTCPPort(t)}
	base, err := os.ReadFile(s.path("laptop", ".toml"))
	if err != nil {
		t.Fatal(err)
	}
	before := s.footprint(t, "laptop")
	for i := range rounds {
		s.reload("laptop", func(string) string {
			return string(base) + s.mapping(fmt.Sprint("round-", i), ports[i%2], "")
		})
	}
	goesOn(t, pinger(t, ports[(rounds-1)%2]))
	refused(t, ports[rounds%2])
	// The watched file alone does it too, and the last of many changes counts.
	for i := range 50 {
		s.write("laptop", string(base)+s.mapping(fmt.Sprint("watched-", i), ports[i%2], ""))
	}
	s.write("laptop", string(base)+s.mapping("last", ports[rounds%2], ""))
	eventually(t, 5*time.Second, "the last file runs", func() error {
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
			t.Errorf("the relay has said %q", line)
		}
	}
	finish(s.world, s.undisturbed)
}
