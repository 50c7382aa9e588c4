//go:build linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// need returns the path of a program. Where it is missing the test is skipped,
// with the command that installs it; not on a machine that sets CI, which has
// to have everything.
func need(t *testing.T, name, pkg string) string {
	t.Helper()
	// Debian's PostgreSQL is beside the PATH; what is in it are wrappers.
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin/" + name, "/usr/sbin/" + name} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return slices.MaxFunc(found, func(a, b string) int { return len(a) - len(b) + strings.Compare(a, b) })
		}
	}
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: apt-get install %s", name, pkg)
	}
	t.Skipf("%s is missing; to have this tested: apt-get install %s", name, pkg)
	return ""
}

// outputOf runs a program to its end, which must be a good one, and returns
// what it has printed to stdout.
func outputOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, code := runProgram(t, cmd)
	if code != 0 {
		t.Fatalf("%v: exit code %d: %s", cmd.Args, code, cmd.Stderr)
	}
	return out
}

// runProgram runs a program to its end and returns what it has printed to
// stdout, and its exit code.
func runProgram(t *testing.T, cmd *exec.Cmd) (string, int) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
		t.Fatal(err)
	}
	return stdout.String(), cmd.ProcessState.ExitCode()
}

// startProgram starts a server that ends with the test, and waits until it
// listens.
func startProgram(t *testing.T, cmd *exec.Cmd, end syscall.Signal, address string) {
	t.Helper()
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // its children may hold its output open
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(end)
		<-exited
		if t.Failed() {
			t.Logf("--- %s said:\n%s", cmd.Args[0], out.String())
		}
	})
	eventually(t, 20*time.Second, cmd.Args[0]+" listens", func() error {
		select {
		case <-exited:
			t.Fatalf("%v ended: %s", cmd.Args, out.String())
		default:
		}
		c, err := net.Dial("tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// writePattern writes a file of n bytes, and returns their checksum.
func writePattern(t *testing.T, name string, seed, n uint64) string {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if err := send(io.MultiWriter(f, sum), seed, n); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func checksum(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

// A blow is something that happens to a chain while connections are open.
type blow struct {
	name   string
	relays []string
	strike func(w *world)
	lab    bool // it needs hosts with networks of their own
}

func blows() []blow {
	outage, still := 3*time.Second, 4*time.Second
	if *full {
		outage, still = 20*time.Second, 90*time.Second
	}
	killed := func(d time.Duration) func(*world) {
		return func(w *world) {
			w.procs["relay"].kill()
			<-time.After(d)
			w.start("relay")
		}
	}
	stopped := func(name string, d time.Duration) func(*world) {
		return func(w *world) {
			w.procs[name].signal(syscall.SIGSTOP)
			<-time.After(d)
			w.procs[name].signal(syscall.SIGCONT)
		}
	}
	one, two := []string{"relay"}, []string{"relay", "other"}
	blackHoled := func(host string) func(*world) {
		return func(w *world) { w.lab.blackHole(host, w.hosts[w.carrier()]) }
	}
	moved := func(host, address string) func(*world) {
		return func(w *world) { w.lab.address(host, address) }
	}
	return []blow{
		{"relay killed and started", nil, killed(200 * time.Millisecond), false},
		{"relay killed, started after an outage", nil, killed(outage), false},
		{"relay stopped and started", nil, func(w *world) {
			w.procs["relay"].stop(w.t)
			w.start("relay")
		}, false},
		{"one of two relays killed", two, func(w *world) { w.procs[w.carrier()].kill() }, false},
		{"one of two relays stopped", two, func(w *world) { w.procs[w.carrier()].stop(w.t) }, false},
		{"client stands still", nil, stopped("laptop", still), false},
		{"server stands still", nil, stopped("nas", still), false},
		{"relay stands still", nil, stopped("relay", still), false},
		{"black hole at the client", two, blackHoled("laptop"), true},
		{"black hole at the server", two, blackHoled("nas"), true},
		{"client's address changed", one, moved("laptop", "10.91.1.77"), true},
		{"server's address changed", one, moved("nas", "10.91.2.77"), true},
	}
}

// bring is forward for a server of this host that a chain in a lab is to reach: what the test itself carries in and out of
// the lab's hosts is plain TCP.
func (w *world) bring(port int) int {
	w.t.Helper()
	loopback := func(port int) func() (net.Conn, error) {
		return func() (net.Conn, error) { return net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)) }
	}
	if w.lab == nil {
		return w.forward(strconv.Itoa(port))
	}
	var inner net.Listener
	err := w.lab.do("nas", func() error {
		inner = listen(w.t, joinTo(loopback(port)))
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	mapped := w.forward(strconv.Itoa(inner.Addr().(*net.TCPAddr).Port))
	outer := listen(w.t, joinTo(func() (c net.Conn, err error) {
		err = w.lab.do("laptop", func() (err error) {
			c, err = loopback(mapped)()
			return err
		})
		return c, err
	}))
	return outer.Addr().(*net.TCPAddr).Port
}

// joinTo joins each connection to another, half-closes and all.
func joinTo(dial func() (net.Conn, error)) func(net.Conn) {
	return func(a net.Conn) {
		defer func() { _ = a.Close() }()
		b, err := dial()
		if err != nil {
			return
		}
		defer func() { _ = b.Close() }()
		var both sync.WaitGroup
		for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
			both.Go(func() {
				_, _ = io.Copy(way[0], way[1])
				_ = way[0].(*net.TCPConn).CloseWrite()
			})
		}
		both.Wait()
	}
}

// carrier is the relay that carries the client's oldest connection.
func (w *world) carrier() string {
	w.t.Helper()
	connections := w.status("laptop").Connections
	if len(connections) == 0 {
		w.t.Fatal("the client has no connection")
	}
	for _, name := range w.relays() {
		if connections[0].Relay == fmt.Sprintf("%s:%d", w.hosts[name], w.ports[name]) {
			return name
		}
	}
	w.t.Fatalf("no relay is %s", connections[0].Relay)
	return ""
}

// TestProgramsSurvive strikes blows at the chain while an interactive ssh
// session is open and a database is copied through it. Neither may notice more
// than a pause.
func TestProgramsSurvive(t *testing.T) {
	t.Parallel()
	shell, db := startSSH(t), startPostgreSQL(t)
	dump := need(t, "pg_dump", "postgresql-client")
	rows := 150_000
	if *full {
		rows = 2_000_000
	}
	db.query(t, db.port, "postgres", fmt.Sprintf("create table rows as "+
		"select i, md5(i::text) as name, repeat(md5((7 * i)::text), 5) as text from generate_series(1, %d) i", rows))
	const digest = "select count(*), sum(hashtextextended(rows::text, 0)::numeric) from rows"
	want := db.query(t, db.port, "postgres", digest)

	for i, b := range blows() {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			var w *world
			if b.lab {
				w, _ = newLabWorld(t, endServer, b.relays...)
			} else {
				w = newWorld(t, endServer, b.relays...)
			}
			sshPort, dbPort := w.bring(shell.port), w.bring(db.port)
			w.all()
			x := shell.open(t, sshPort)
			x.goesOn(t, 10)
			copied := fmt.Sprintf("copy_%d", i)
			db.query(t, db.port, "postgres", "create database "+copied+" template template0")

			from := exec.Command(dump, db.at(dbPort, "postgres", "-t", "rows")...)
			to := exec.Command(db.psql, db.at(dbPort, copied, "-X", "-q", "-v", "ON_ERROR_STOP=1")...)
			pipe(t, from, to, rows*50, func() { b.strike(w) })
			x.goesOn(t, 10)
			if got := db.query(t, db.port, copied, digest); got != want {
				t.Errorf("rows and their digest: %s, want %s", got, want)
			}
			db.query(t, db.port, "postgres", "drop database "+copied)
			x.logsOut(t)
		})
	}
}

// pipe runs from | to, and calls strike when mark bytes have passed. What comes behind
// them is more than the buffers on the way hold.
func pipe(t *testing.T, from, to *exec.Cmd, mark int, strike func()) {
	t.Helper()
	var fromSaid, toSaid bytes.Buffer
	from.Stderr, to.Stderr = &fromSaid, &toSaid
	out, err := from.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := to.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*exec.Cmd{from, to} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
	}
	copied := make(chan error, 1)
	reached := make(chan struct{})
	go func() {
		_, err := io.CopyN(in, out, int64(mark))
		close(reached)
		if err == nil {
			_, err = io.Copy(in, out)
		}
		_ = in.Close()
		copied <- err
	}()
	<-reached
	strike()
	if err := <-copied; err != nil {
		t.Errorf("copy: %v", err)
	}
	if err := from.Wait(); err != nil {
		t.Errorf("%s: %v: %s", from.Args[0], err, fromSaid.String())
	}
	if err := to.Wait(); err != nil {
		t.Errorf("%s: %v: %s", to.Args[0], err, toSaid.String())
	}
}

// TestHTTP has curl talk with a web server.
func TestHTTP(t *testing.T) {
	t.Parallel()
	curl := need(t, "curl", "curl")
	const size = 64 << 20
	var connections atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello\n") })
	mux.HandleFunc("GET /large", func(w http.ResponseWriter, _ *http.Request) { _ = send(w, 4, size) })
	mux.HandleFunc("PUT /sum", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		if _, err := io.Copy(sum, r.Body); err != nil { // the first read asks for the body: 100 Continue
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintf(w, "%x", sum.Sum(nil))
	})
	server := &http.Server{Handler: mux, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	go func() { _ = server.Serve(l) }()
	w := newWorld(t, endServer)
	port := w.forward(strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	w.all()
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	get := func(args ...string) *exec.Cmd {
		return exec.Command(curl, append([]string{"-q", "-sS", "--fail", "--noproxy", "*", "--max-time", "60"}, args...)...)
	}

	t.Run("keep-alive", func(t *testing.T) {
		before := connections.Load()
		if out := outputOf(t, get(base+"/hello", base+"/hello", base+"/hello")); out != "hello\nhello\nhello\n" {
			t.Errorf("got %q", out)
		}
		if n := connections.Load() - before; n != 1 {
			t.Errorf("%d connections for three requests", n)
		}
	})
	t.Run("Connection: close", func(t *testing.T) {
		before := connections.Load()
		if out := outputOf(t, get("-H", "Connection: close", base+"/hello", base+"/hello")); out != "hello\nhello\n" {
			t.Errorf("got %q", out)
		}
		if n := connections.Load() - before; n != 2 {
			t.Errorf("%d connections for two requests", n)
		}
	})
	t.Run("100-continue", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "upload")
		want := writePattern(t, name, 5, 16<<20)
		// Without an answer curl would send the body after a minute.
		cmd := get("-v", "--expect100-timeout", "60", "-H", "Expect: 100-continue", "-T", name, base+"/sum")
		out := outputOf(t, cmd)
		if out != want {
			t.Errorf("checksum %s, want %s", out, want)
		}
		if said := cmd.Stderr.(*bytes.Buffer).String(); !strings.Contains(said, "HTTP/1.1 100 Continue") {
			t.Errorf("no 100 Continue:\n%s", said)
		}
	})
	t.Run("download", func(t *testing.T) {
		dir := t.TempDir()
		want := writePattern(t, filepath.Join(dir, "want"), 4, size)
		got := filepath.Join(dir, "got")
		outputOf(t, get("-o", got, base+"/large"))
		if sum := checksum(t, got); sum != want {
			t.Errorf("checksum %s, want %s", sum, want)
		}
	})
}

// listens tells whether somebody listens on a port of 127.0.0.1, without
// connecting: there are servers that serve one connection.
func listens(port int) error {
	table, err := os.ReadFile("/proc/thread-self/net/tcp") // not /proc/net: a lab may have moved the first thread
	if err != nil {
		return err
	}
	const listening = "0A"
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[1] == fmt.Sprintf("0100007F:%04X", port) && f[3] == listening {
			return nil
		}
	}
	return fmt.Errorf("nobody on port %d", port)
}
