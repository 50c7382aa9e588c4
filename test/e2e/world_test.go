//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/control"
	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

var (
	full    = flag.Bool("full", false, "run the long forms of the tests: more data, more rounds")
	program string // the ptthqd that is tested
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	program = os.Getenv("PTTHQD")
	if program == "" {
		dir, err := os.MkdirTemp("", "ptthqd-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		program = filepath.Join(dir, "ptthqd")
		build := exec.Command("go", "build", "-o", program, "ptthqd/cmd/ptthqd")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// A world is a chain: one client, one server, one or more relays.
type world struct {
	t       *testing.T
	dir     string
	keys    map[string]ident.PrivateKey
	target  net.Listener // P5
	procs   map[string]*process
	ports   map[string]int
	extra   map[string]string // appended to a node's config
	prefix  map[string][]string
	hosts   map[string]string // the address at which a relay listens
	allowed string            // what the relays let the client reach; `"nas"` if empty
	lab     *lab              // where the nodes are; nil for this host
}

// newWorld prepares a chain without starting anything. P5 is served by serve,
// a goroutine a connection.
func newWorld(t *testing.T, serve func(net.Conn), relays ...string) *world {
	t.Helper()
	if len(relays) == 0 {
		relays = []string{"relay"}
	}
	w := &world{
		t: t, dir: shortDir(t),
		keys: map[string]ident.PrivateKey{}, procs: map[string]*process{}, ports: map[string]int{},
		extra: map[string]string{}, prefix: map[string][]string{}, hosts: map[string]string{},
	}
	for _, node := range append([]string{"laptop", "nas"}, relays...) {
		key, err := ident.Generate()
		if err != nil {
			t.Fatal(err)
		}
		w.keys[node] = key
		if err := ident.WritePrivateKey(w.path(node, ".key"), key, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, relay := range relays {
		w.ports[relay] = testutil.FreePort(t)
		w.hosts[relay] = "127.0.0.1"
	}
	if serve != nil {
		w.target = listen(t, serve)
		w.ports["target"] = w.target.Addr().(*net.TCPAddr).Port
	}
	w.ports["mapping"] = testutil.FreePort(t)
	w.writeConfigs()
	t.Cleanup(func() {
		for _, p := range w.procs {
			if t.Failed() && os.Getenv("PTTHQD_DUMP") != "" {
				p.signal(syscall.SIGQUIT) // prints all goroutines
				select {
				case <-p.exited:
				case <-time.After(2 * time.Second):
				}
			}
			p.kill()
		}
		if t.Failed() {
			for name, p := range w.procs {
				t.Logf("--- %s said:\n%s", name, p.output())
			}
		}
	})
	return w
}

// end kills all nodes.
func (w *world) end() {
	for _, p := range w.procs {
		p.kill()
	}
}

// shortDir is a temporary directory without the name of the test: the path of a Unix socket may have 107 bytes.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "e2e-") //nolint:usetesting // t.TempDir has the name of the test in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("what the test has left behind: %v", err)
		}
	})
	return dir
}

func (w *world) path(node, suffix string) string { return filepath.Join(w.dir, node+suffix) }

func (w *world) relays() []string {
	var names []string
	for name := range w.hosts {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// writeConfigs writes the config files of all nodes.
func (w *world) writeConfigs() {
	w.t.Helper()
	var relays strings.Builder
	for _, name := range w.relays() {
		w.write(name, fmt.Sprintf("role = \"relay\"\nlisten = [\"%s:%d\"]\n%s\n"+
			"[[peers]]\nid = \"laptop\"\nrole = \"client\"\npublic_key = %q\nallowed_servers = [%s]\n"+
			"[[peers]]\nid = \"nas\"\nrole = \"server\"\npublic_key = %q\n",
			w.hosts[name], w.ports[name], w.extra[name], w.keys["laptop"].Public(), cmp.Or(w.allowed, `"nas"`), w.keys["nas"].Public()))
		fmt.Fprintf(&relays, "[[relays]]\naddress = \"%s:%d\"\npublic_key = %q\n",
			w.hosts[name], w.ports[name], w.keys[name].Public())
	}
	w.write("nas", fmt.Sprintf("role = \"server\"\nid = \"nas\"\n%s\n%s"+
		"[[services]]\nname = \"main\"\ntarget = \"%d\"\nclients = [\"laptop\"]\n", w.extra["nas"], relays.String(), w.ports["target"]))
	w.write("laptop", fmt.Sprintf("role = \"client\"\nid = \"laptop\"\n%s\n%s"+
		"[[mappings]]\nname = \"main\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"%d\"\n",
		w.extra["laptop"], relays.String(), w.ports["mapping"], w.ports["target"]))
}

func (w *world) write(node, text string) {
	w.t.Helper()
	name := w.path(node, ".toml")
	if err := os.WriteFile(name+".new", []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		w.t.Fatal(err)
	}
}

// forward adds a mapping, and a service of the server that covers its target.
// Call it before the nodes start. It returns the port at which P1 connects.
func (w *world) forward(target string) int {
	w.t.Helper()
	port := testutil.FreePort(w.t)
	w.mapping(fmt.Sprintf("m%d", port), fmt.Sprintf("127.0.0.1:%d", port), "nas", target)
	w.extra["nas"] += fmt.Sprintf("[[services]]\ntarget = %q\nclients = [\"laptop\"]\nallow_local = true\n", target)
	w.writeConfigs()
	return port
}

// mapping adds a mapping, which writeConfigs will write.
func (w *world) mapping(name, listen, server, target string) {
	w.extra["laptop"] += fmt.Sprintf("[[mappings]]\nname = %q\nlisten = %q\nserver = %q\ntarget = %q\n", name, listen, server, target)
}

// status asks a node over its control socket.
func (w *world) status(name string) *control.Status {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	asked := &control.Client{Socket: filepath.Join(w.path(name, ".run"), "control.sock")}
	status, err := asked.Status(ctx)
	if err != nil {
		p := w.procs[name]
		p.signal(syscall.SIGQUIT) // it says what its goroutines do
		<-p.exited
		w.t.Fatalf("status of %s: %v", name, err)
	}
	return status
}

// all starts every node, relays first, and waits until the chain carries.
func (w *world) all() *world {
	w.t.Helper()
	for _, name := range w.relays() {
		w.start(name)
	}
	w.start("nas")
	w.start("laptop")
	w.carries(10 * time.Second)
	return w
}

// carries waits until a connection through the chain can be opened and ends in
// good order, and tells how long that took.
func (w *world) carries(within time.Duration) time.Duration {
	w.t.Helper()
	begun := time.Now()
	eventually(w.t, within, "the chain carries a connection", func() error {
		c, err := w.dial()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		return probe(c)
	})
	return time.Since(begun)
}

// dial is P1.
func (w *world) dial() (*net.TCPConn, error) {
	var c net.Conn
	dial := func() (err error) {
		c, err = net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", w.ports["mapping"]), 30*time.Second)
		return err
	}
	enter := func(f func() error) error { return f() }
	if w.lab != nil {
		enter = func(f func() error) error { return w.lab.do("laptop", f) }
	}
	if err := enter(dial); err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func (w *world) mustDial() *net.TCPConn {
	w.t.Helper()
	c, err := w.dial()
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// A process is a ptthqd that runs, or has run, as a node of the world.
type process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
	ready  chan struct{} // closed at READY=1

	mu     sync.Mutex
	out    bytes.Buffer
	status string // the last STATUS=
}

// start starts a node and waits until it is ready.
func (w *world) start(name string, args ...string) *process {
	w.t.Helper()
	p := w.launch(name, args...)
	select {
	case <-p.ready:
	case <-p.exited:
		w.t.Fatalf("%s ended before it was ready:\n%s", name, p.output())
	case <-time.After(20 * time.Second):
		w.t.Fatalf("%s is not ready:\n%s", name, p.output())
	}
	return p
}

// launch starts a node and doesn't wait.
func (w *world) launch(name string, args ...string) *process {
	w.t.Helper()
	runtime := w.path(name, ".run")
	if err := os.MkdirAll(runtime, 0o700); err != nil {
		w.t.Fatal(err)
	}
	notify := filepath.Join(runtime, "notify")
	_ = os.Remove(notify)
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{name: name, exited: make(chan struct{}), ready: make(chan struct{})}
	argv := append(append([]string{}, w.prefix[name]...), program, "run", "-c", w.path(name, ".toml"))
	argv = append(argv, args...)
	p.cmd = exec.Command(argv[0], argv[1:]...)
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify, "RUNTIME_DIRECTORY="+runtime, "XDG_RUNTIME_DIR="+runtime)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := p.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	if old := w.procs[name]; old != nil {
		p.mu.Lock()
		p.out.WriteString(old.output() + "--- started again ---\n")
		p.mu.Unlock()
	}
	w.procs[name] = p
	go func() {
		_ = p.cmd.Wait()
		_ = socket.Close()
		close(p.exited)
	}()
	go p.listenForReady(socket)
	return p
}

func (p *process) listenForReady(socket *net.UnixConn) {
	buf := make([]byte, 4096)
	for ready := false; ; {
		n, err := socket.Read(buf)
		if err != nil {
			return
		}
		for line := range strings.SplitSeq(string(buf[:n]), "\n") {
			if line == "READY=1" && !ready {
				ready = true
				close(p.ready)
			}
			if status, found := strings.CutPrefix(line, "STATUS="); found {
				p.mu.Lock()
				p.status = status
				p.mu.Unlock()
			}
		}
	}
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *process) signal(s os.Signal) { _ = p.cmd.Process.Signal(s) }

// kill ends the process without a warning and waits until it is gone.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// stop asks the process to end and waits until it has.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s doesn't stop:\n%s", p.name, p.output())
	}
}

// says waits until the process has printed a line that matches, and returns it.
func (p *process) says(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var line string
	eventually(t, 15*time.Second, p.name+" says "+pattern, func() error {
		for l := range strings.Lines(p.output()) {
			if re.MatchString(l) {
				line = strings.TrimSpace(l)
				return nil
			}
		}
		return errors.New("not yet")
	})
	return line
}

// eventually repeats try until it succeeds.
func eventually(t *testing.T, within time.Duration, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// listen serves a P5 until the test ends. Its connections may outlive the test: some wait for ever.
func listen(t *testing.T, serve func(net.Conn)) net.Listener {
	t.Helper()
	return testutil.Listening(t, "tcp", "127.0.0.1:0", func(c net.Conn) { go serve(c) })
}

// cpuTicks is the processor time that a process has used, in clock ticks.
func cpuTicks(pid int) (int, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return user + system, nil
}
