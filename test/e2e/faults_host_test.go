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
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/test/testutil"

	"golang.org/x/sys/unix"
)

// wantMounts makes a test that mounts file systems for its nodes alone skip
// where that can't be.
func wantMounts(t *testing.T) {
	t.Helper()
	requires(t, os.Geteuid() == 0, "mounts for one process alone need root")
	requires(t, exec.Command("unshare", "-m", "true").Run() == nil, "mount namespaces are not to be had here")
}

// mounted is the prefix of a node that sees mounts that nobody else sees.
func mounted(script string) []string {
	return []string{"unshare", "-m", "sh", "-c", script + ` && exec "$0" "$@"`}
}

// seenBy is a path as a node sees it.
func (w *world) seenBy(node, path string) string {
	return fmt.Sprintf("/proc/%d/root%s", w.procs[node].cmd.Process.Pid, path)
}

// fill writes to a file until its file system has no byte left.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for size := 64 << 10; size > 0; { // the last bytes too
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskFull has the file system fill up to which a node writes: its log, its
// qlogs, its sockets, and the config that its administrator edits.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	wantMounts(t)
	w := newWorld(t, endServer)
	dirs := map[string]string{}
	for _, node := range []string{"relay", "nas", "laptop"} {
		dir := w.path(node, ".disk")
		dirs[node] = dir
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		// The log goes to the disk, and the qlogs; so does the directory with the config that is included.
		w.prefix[node] = mounted(fmt.Sprintf("mount -t tmpfs -o size=2m none %[1]s && mkdir %[1]s/qlogs %[1]s/conf.d && export QLOGDIR=%[1]s/qlogs && exec 2>>%[1]s/log", dir))
	}
	w.extra["relay"] = fmt.Sprintf("include = [\"%s/conf.d/*.toml\"]\n", dirs["relay"])
	w.writeConfigs()
	// The laptop is a peer by what is included.
	text, err := os.ReadFile(w.path("relay", ".toml"))
	if err != nil {
		t.Fatal(err)
	}
	before, after, _ := strings.Cut(string(text), "[[peers]]\nid = \"laptop\"")
	peer, rest, _ := strings.Cut(after, "[[peers]]")
	w.write("relay", before+"[[peers]]"+rest)
	included := "[[peers]]\nid = \"laptop\"" + peer

	p := w.start("relay")
	disk := w.seenBy("relay", dirs["relay"])
	peers := filepath.Join(disk, "conf.d", "peers.toml")
	if err := os.WriteFile(peers+".new", []byte(included), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(peers+".new", peers); err != nil {
		t.Fatal(err)
	}
	w.start("nas")
	w.start("laptop")
	w.carries(15 * time.Second)
	all := startTraffic(w, "request", "request")
	for node := range dirs {
		fill(t, filepath.Join(w.seenBy(node, dirs[node]), "filler"))
	}
	w.carries(5 * time.Second)

	// An editor that writes to the file itself: what was in it is gone, and there is no room for what should be.
	f, err := os.OpenFile(peers, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	fill(t, filepath.Join(disk, "filler"))
	if _, err := f.WriteString(included + "# and more\n"); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	_ = f.Close()
	eventually(t, 25*time.Second, "the relay refuses the empty file", func() error {
		if r := w.status("relay").Config.Reload; r == nil || r.OK || !strings.Contains(r.Error, "peers.toml") {
			return fmt.Errorf("%+v", r)
		}
		return nil
	})
	if _, code := w.askReload("relay"); code != exitFailed && code != exitConfig {
		t.Errorf("reload takes the empty file: exit code %d", code)
	}
	w.carries(5 * time.Second)

	// Room again, and the file as it should be.
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(peers, []byte(included), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the config is in force", func() error {
		if out, code := w.askReload("relay"); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	// Links that are new while the disk is full.
	w.procs["relay"].signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		t.Fatal("the relay doesn't stop")
	}
	w.prefix["relay"] = mounted(fmt.Sprintf("mount -t tmpfs -o size=2m none %[1]s && mkdir %[1]s/conf.d && export QLOGDIR=%[1]s && exec 2>%[1]s/log", dirs["relay"]))
	w.write("relay", string(text))
	w.start("relay")
	finish(w, all)
	w.carries(5 * time.Second)
}

// TestCommandsThatCannotWrite has the commands that write files meet a full disk:
// they fail, say why, and leave nothing behind that looks like a key or a config.
func TestCommandsThatCannotWrite(t *testing.T) {
	t.Parallel()
	wantMounts(t)
	dir := t.TempDir()
	for _, c := range []struct {
		name, mount, says string
		args              []string
	}{
		{"keygen, disk full", "mount -t tmpfs -o size=4k none %[1]s && { cat /dev/zero >%[1]s/filler 2>/dev/null; true; }", "no space left on device", []string{"keygen", "-o", dir + "/node.key"}},
		{"init, disk full", "mount -t tmpfs -o size=4k none %[1]s && { cat /dev/zero >%[1]s/filler 2>/dev/null; true; }", "no space left on device", []string{"init", "relay", "-c", dir + "/ptthq.toml"}},
		{"keygen, read-only", "mount --bind %[1]s %[1]s && mount -o remount,ro,bind %[1]s", "read-only file system", []string{"keygen", "-o", dir + "/node.key"}},
		{"init, read-only", "mount --bind %[1]s %[1]s && mount -o remount,ro,bind %[1]s", "read-only file system", []string{"init", "relay", "-c", dir + "/ptthq.toml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			script := fmt.Sprintf(c.mount+` && { "$0" "$@"; code=$?; ls -A %[1]s; exit $code; }`, dir)
			cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c", script, program}, c.args...)...)
			out, _ := cmd.CombinedOutput() // the exit code tells
			if code := cmd.ProcessState.ExitCode(); code != exitFailed {
				t.Errorf("exit code %d, want %d", code, exitFailed)
			}
			if !strings.Contains(string(out), c.says) {
				t.Errorf("%q is missing in\n%s", c.says, out)
			}
			for line := range strings.Lines(string(out)) {
				if name := strings.TrimSpace(line); strings.HasSuffix(name, ".key") || strings.HasSuffix(name, ".toml") {
					if !strings.Contains(name, " ") {
						t.Errorf("%s is left behind:\n%s", name, out)
					}
				}
			}
		})
	}
}

// TestReadOnly has nodes that can write nowhere but to their runtime directory,
// as the service's sandbox has it: they run, and take what others write into
// the config. Where not even that can be written, the node says which file and why.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	wantMounts(t)
	w := newWorld(t, endServer)
	for _, node := range []string{"relay", "nas", "laptop"} {
		run := w.path(node, ".run")
		if err := os.Mkdir(run, 0o700); err != nil {
			t.Fatal(err)
		}
		w.prefix[node] = mounted(fmt.Sprintf("mount --bind %[1]s %[1]s && mount --bind %[2]s %[2]s && mount -o remount,ro,bind %[1]s", w.dir, run) +
			fmt.Sprintf(" && ! touch %s/written 2>/dev/null && touch %s/written", w.dir, run))
	}
	w.all()
	port := testutil.FreePort(t)
	w.mapping("second", fmt.Sprintf("127.0.0.1:%d", port), "nas", fmt.Sprint(w.ports["target"]))
	w.writeConfigs()
	eventually(t, 10*time.Second, "the new mapping listens", func() error { return listens(port) })
	c := dialPort(t, port)
	if err := probe(c); err != nil {
		t.Error(err)
	}

	w.procs["laptop"].stop(t)
	run := w.path("laptop", ".run")
	w.prefix["laptop"] = mounted(fmt.Sprintf("mount --bind %[1]s %[1]s && mount -o remount,ro,bind %[1]s", run))
	_ = os.Remove(filepath.Join(run, "control.sock"))
	p := w.launch("laptop")
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		t.Fatal("it runs without its runtime directory")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	if out := p.output(); !strings.Contains(out, "control.sock") || !strings.Contains(out, "read-only file system") {
		t.Errorf("it doesn't say what is wrong:\n%s", out)
	}
}

// TestLogReaderGone has the program go away that reads a node's log: connections
// are worth more than lines.
func TestLogReaderGone(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	for _, node := range []string{"relay", "nas", "laptop"} {
		fifo := w.path(node, ".log")
		if err := syscall.Mkfifo(fifo, 0o600); err != nil {
			t.Fatal(err)
		}
		w.prefix[node] = []string{"sh", "-c", `exec "$0" "$@" 2>` + fifo}
		go func() {
			reader, err := os.Open(fifo) // waits for the writer
			if err != nil {
				return
			}
			_, _ = reader.Read(make([]byte, 1))
			_ = reader.Close()
		}()
	}
	w.all()
	for _, node := range []string{"relay", "nas", "laptop"} { // each has much to say
		if out, code := w.askReload(node); code != 0 {
			t.Errorf("reload of %s: %s", node, out)
		}
	}
	w.carries(5 * time.Second)
}

// limited is the prefix of a node that may have few descriptors.
func limited(n int) []string { return []string{"prlimit", fmt.Sprintf("--nofile=%d:%[1]d", n)} }

// idle checks that processes take next to no processor time.
func (w *world) idle(t *testing.T, nodes ...string) {
	t.Helper()
	used := func(node string) time.Duration {
		ticks, err := cpuTicks(w.procs[node].cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ticks) * 10 * time.Millisecond
	}
	before := map[string]time.Duration{}
	for _, node := range nodes {
		before[node] = used(node)
	}
	const look = 1500 * time.Millisecond
	<-time.After(look)
	for _, node := range nodes {
		if now := used(node) - before[node]; now > look/4 {
			t.Errorf("%s has used %v of processor time in %v", node, now, look)
		}
	}
}

// goesBack checks that a connection still echoes.
func goesBack(c net.Conn, text string) error {
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
		return fmt.Errorf("%q came back, %w", got, err)
	}
	return nil
}

// echoes is a connection to an echo that works.
func (w *world) echoes(t *testing.T) *net.TCPConn {
	t.Helper()
	c := w.mustDial()
	if _, err := c.Write(request{kind: kindEcho}.bytes()); err != nil {
		t.Fatal(err)
	}
	if err := goesBack(c, "opened"); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestDescriptorsOfClient has a client run out of descriptors: it stops
// accepting, what is open goes on, and so do its links, reload and status; when
// some come back, it accepts again.
func TestDescriptorsOfClient(t *testing.T) {
	t.Parallel()
	requires(t, has("prlimit"), "apt-get install util-linux")
	w := newWorld(t, endServer)
	w.prefix["laptop"] = limited(128)
	w.all()
	first := w.echoes(t)
	var crowd []*net.TCPConn
	for range 150 {
		crowd = append(crowd, w.mustDial())
	}
	w.procs["laptop"].says(t, "connections wait: few file descriptors are left .*raise LimitNOFILE")
	w.idle(t, "laptop")
	if err := goesBack(first, "still here"); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	if p := w.status("laptop").Process; p.FilesLimit != 128 || p.Files < 60 || p.Files > 110 {
		t.Errorf("%d files of %d are open", p.Files, p.FilesLimit)
	}
	if out, code := w.askReload("laptop"); code != 0 {
		t.Errorf("reload: %s", out)
	}
	// A link needs a socket.
	w.procs["relay"].kill()
	w.start("relay")
	if err := goesBack(first, "over a new link"); err != nil {
		t.Errorf("the first connection: %v", err)
	}

	// Worse: not one descriptor is left, and not even the spare ones are to be had.
	limit := unix.Rlimit{Cur: 8, Max: 128}
	if err := unix.Prlimit(w.procs["laptop"].cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	w.idle(t, "laptop")
	if err := goesBack(first, "still here"); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	for _, c := range crowd {
		resetConn(c)
	}
	c := w.mustDial() // accepted by nobody yet
	w.idle(t, "laptop")
	limit.Cur = 128
	if err := unix.Prlimit(w.procs["laptop"].cmd.Process.Pid, unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if err := probe(c); err != nil {
		t.Errorf("the connection that has waited: %v", err)
	}
	if err := goesBack(first, "to the end"); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	w.carries(5 * time.Second)
}

// TestDescriptorsOfServer has a server run out of descriptors: it refuses new
// connections with the reason, and what is open goes on.
func TestDescriptorsOfServer(t *testing.T) {
	t.Parallel()
	requires(t, has("prlimit"), "apt-get install util-linux")
	w := newWorld(t, endServer)
	w.prefix["nas"] = limited(128)
	w.all()
	first := w.echoes(t)
	var crowd []*net.TCPConn
	for range 150 {
		c, err := w.dial()
		if err != nil {
			continue // refused so soon that connect has seen it
		}
		crowd = append(crowd, c)
	}
	w.procs["laptop"].says(t, "connection refused .*code=429 .*raise LimitNOFILE.* by=nas")
	w.idle(t, "nas")
	if err := goesBack(first, "still here"); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	if out, code := w.askReload("nas"); code != 0 {
		t.Errorf("reload: %s", out)
	}
	w.procs["relay"].kill()
	w.start("relay")
	if err := goesBack(first, "over a new link"); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	for _, c := range crowd {
		resetConn(c)
	}
	w.carries(10 * time.Second)
}

// TestDescriptorsOfRelay leaves a relay not one descriptor: it needs none for
// new links and connections. It can't read its config then, and keeps the old one.
func TestDescriptorsOfRelay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	w.all()
	first := w.echoes(t)
	pid := w.procs["relay"].cmd.Process.Pid
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4, Max: was.Max}, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files are open, 4 may be", len(files))
	w.carries(5 * time.Second)
	if err := goesBack(first, "still here"); err != nil {
		t.Errorf("the first connection: %v", err)
	}
	_ = first.Close()
	w.procs["laptop"].stop(t)
	w.start("laptop")
	w.carries(10 * time.Second)
	// A reload that can read nothing withdraws nothing.
	w.procs["relay"].signal(syscall.SIGHUP)
	w.procs["relay"].says(t, "ERROR .*reload.*too many open files")
	w.carries(5 * time.Second)
	w.idle(t, "relay")
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
		t.Fatal(err)
	}
	if out, code := w.askReload("relay"); code != 0 {
		t.Errorf("reload: %s", out)
	}
}
