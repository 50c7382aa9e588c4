//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/user"
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

// An openSSH is an sshd with a host key of its own that lets one key in, as the
// user who runs the test.
type openSSH struct {
	port     int
	ssh, scp string
	options  []string // of both programs
	user     string
}

func startSSH(t *testing.T) *openSSH {
	t.Helper()
	sshd := need(t, "sshd", "openssh-server")
	s := &openSSH{port: freeTCPPort(t), ssh: need(t, "ssh", "openssh-client"), scp: need(t, "scp", "openssh-client")}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	s.user = me.Username
	dir := t.TempDir()
	host, key := filepath.Join(dir, "host"), filepath.Join(dir, "key")
	for _, name := range []string{host, key} {
		outputOf(t, exec.Command(need(t, "ssh-keygen", "openssh-client"), "-q", "-t", "ed25519", "-N", "", "-f", name))
	}
	if me.Uid == "0" { // where sshd separates its privileges; its service makes it
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(dir, "sshd_config")
	text := fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %s\nAuthorizedKeysFile %s.pub\nPidFile none\nStrictModes no\nUsePAM no\n"+
		"PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\nPrintMotd no\nPrintLastLog no\n"+
		"Subsystem sftp internal-sftp\nSetEnv HOME=%s\n", s.port, host, key, dir) // no start-up files of the shell, which might print
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(host + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(dir, "known_hosts")
	if err := os.WriteFile(known, append([]byte("p5 "), public...), 0o600); err != nil {
		t.Fatal(err)
	}
	s.options = []string{
		"-F", "none", "-i", key, "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=yes", "-o", "HostKeyAlias=p5", "-o", "UserKnownHostsFile=" + known, "-o", "GlobalKnownHostsFile=none", "-o", "LogLevel=ERROR",
	}
	startProgram(t, exec.Command(sshd, "-D", "-e", "-f", config), syscall.SIGTERM, fmt.Sprintf("127.0.0.1:%d", s.port))
	return s
}

// command is ssh to a port of this host.
func (s *openSSH) command(port int, args ...string) *exec.Cmd {
	argv := append(slices.Clone(s.options), "-p", strconv.Itoa(port))
	return exec.Command(s.ssh, append(argv, args...)...)
}

// TestOpenSSH logs in, runs commands and copies files.
func TestOpenSSH(t *testing.T) {
	t.Parallel()
	server := startSSH(t)
	w := newWorld(t, endServer)
	port := w.forward(strconv.Itoa(server.port))
	w.all()

	t.Run("command", func(t *testing.T) {
		out, code := runProgram(t, server.command(port, server.user+"@127.0.0.1", "echo out; echo err >&2; exit 42"))
		if out != "out\n" || code != 42 {
			t.Errorf("printed %q, exit code %d", out, code)
		}
	})
	t.Run("stdin to stdout", func(t *testing.T) {
		cmd := server.command(port, server.user+"@127.0.0.1", "sha256sum")
		sum := sha256.New()
		var data bytes.Buffer
		if err := send(io.MultiWriter(sum, &data), 9, 8<<20); err != nil {
			t.Fatal(err)
		}
		cmd.Stdin = &data
		if out, want := outputOf(t, cmd), fmt.Sprintf("%x  -\n", sum.Sum(nil)); out != want {
			t.Errorf("printed %q, want %q", out, want)
		}
	})
	t.Run("scp", func(t *testing.T) {
		const size = 256 << 20
		dir := t.TempDir()
		here, there, back := filepath.Join(dir, "here"), filepath.Join(dir, "there"), filepath.Join(dir, "back")
		want := writePattern(t, here, 3, size)
		for _, copied := range [][2]string{{here, server.user + "@127.0.0.1:" + there}, {server.user + "@127.0.0.1:" + there, back}} {
			argv := append(slices.Clone(server.options), "-q", "-P", strconv.Itoa(port), copied[0], copied[1])
			outputOf(t, exec.Command(server.scp, argv...))
		}
		for _, name := range []string{there, back} {
			if got := checksum(t, name); got != want {
				t.Errorf("%s: checksum %s, want %s", filepath.Base(name), got, want)
			}
		}
	})
}

// tickScript runs in a terminal: it counts by itself, and answers what is typed.
const tickScript = `stty -echo; ` +
	`(n=0; while n=$((n+1)); echo "tick $n"; do sleep 0.02; done) & ` +
	`while read -r line; do if [ "$line" = bye ]; then kill $!; exit 7; fi; echo "heard $line"; done`

// A terminal is an interactive ssh session with tickScript in it, whose every
// word is checked.
type terminal struct {
	cmd          *exec.Cmd
	stdin        io.WriteCloser
	stderr       bytes.Buffer
	ticks, heard atomic.Int64 // the last of each
	checked      chan error   // what was wrong with the output, at its end
}

func (s *openSSH) open(t *testing.T, port int) *terminal {
	t.Helper()
	x := &terminal{cmd: s.command(port, "-tt", s.user+"@127.0.0.1", "exec sh -c '"+tickScript+"'"), checked: make(chan error, 1)}
	x.cmd.Stderr = &x.stderr
	var err error
	if x.stdin, err = x.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := x.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := x.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.cmd.Process.Kill() })
	go func() { x.checked <- x.check(stdout) }()
	x.goesOn(t, 0)
	return x
}

func (x *terminal) check(stdout io.Reader) error {
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		word, number, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		n, err := strconv.ParseInt(number, 10, 64)
		counter := map[string]*atomic.Int64{"tick": &x.ticks, "heard": &x.heard}[word]
		if err != nil || counter == nil || n != counter.Load()+1 {
			return fmt.Errorf("after tick %d, heard %d: %q", x.ticks.Load(), x.heard.Load(), lines.Text())
		}
		counter.Store(n)
	}
	return lines.Err()
}

// goesOn types n lines, each after the one before has been answered, and sees
// that ticks come.
func (x *terminal) goesOn(t *testing.T, n int64) {
	t.Helper()
	ticks, heard := x.ticks.Load(), x.heard.Load()
	x.reaches(t, ticks+1, heard)
	for i := range n {
		if _, err := fmt.Fprintln(x.stdin, heard+i+1); err != nil {
			t.Fatal(err)
		}
		x.reaches(t, ticks+1+i, heard+i+1)
	}
}

// reaches waits until the terminal has ticked and answered so often.
func (x *terminal) reaches(t *testing.T, ticks, heard int64) {
	t.Helper()
	eventually(t, 30*time.Second, fmt.Sprintf("the terminal comes to tick %d, and answers line %d", ticks, heard), func() error {
		select {
		case err := <-x.checked:
			t.Fatalf("the terminal ended: %v; ssh said: %s", err, x.stderr.String())
		default:
		}
		if x.ticks.Load() < ticks || x.heard.Load() < heard {
			return fmt.Errorf("tick %d and line %d were the last", x.ticks.Load(), x.heard.Load())
		}
		return nil
	})
}

// logsOut ends the session in good order.
func (x *terminal) logsOut(t *testing.T) {
	t.Helper()
	if _, err := fmt.Fprintln(x.stdin, "bye"); err != nil {
		t.Fatal(err)
	}
	if err := <-x.checked; err != nil {
		t.Error(err)
	}
	_ = x.cmd.Wait()
	if code := x.cmd.ProcessState.ExitCode(); code != 7 {
		t.Errorf("exit code %d of ssh, which said: %s", code, x.stderr.String())
	}
}

// A postgreSQL is a cluster of its own. Root can't run one, so it gives it to
// the user postgres then.
type postgreSQL struct {
	port int
	psql string
	dir  string
}

func startPostgreSQL(t *testing.T) *postgreSQL {
	t.Helper()
	p := &postgreSQL{port: freeTCPPort(t), psql: need(t, "psql", "postgresql-client")}
	initdb, postgres := need(t, "initdb", "postgresql"), need(t, "postgres", "postgresql")
	dir, err := os.MkdirTemp("", "ptthqd-pg-") //nolint:usetesting // the user postgres can't enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p.dir = dir
	owner := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		account, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("the package postgresql makes a user postgres: %v", err)
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		owner.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(dir, "data")
	make := exec.Command(initdb, "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	make.SysProcAttr, make.Dir = owner, dir
	outputOf(t, make)
	serve := exec.Command(postgres, "-D", data, "-F", "-p", strconv.Itoa(p.port), "-k", dir,
		"-c", "listen_addresses=127.0.0.1", "-c", "full_page_writes=off", "-c", "max_wal_size=4GB")
	serve.SysProcAttr, serve.Dir = owner, dir
	startProgram(t, serve, syscall.SIGQUIT, fmt.Sprintf("127.0.0.1:%d", p.port))
	eventually(t, 20*time.Second, "the database takes queries", func() error { // it listens before it does
		return exec.Command(p.psql, p.at(p.port, "postgres", "-X", "-c", "select 1")...).Run()
	})
	return p
}

// at are the arguments that say where the cluster is to be reached.
func (p *postgreSQL) at(port int, database string, args ...string) []string {
	return append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "postgres", "-d", database}, args...)
}

// query runs SQL over a port of this host.
func (p *postgreSQL) query(t *testing.T, port int, database, sql string) string {
	t.Helper()
	cmd := exec.Command(p.psql, p.at(port, database, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql)...)
	return strings.TrimSpace(outputOf(t, cmd))
}

// TestPostgreSQL queries and benches a database.
func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	pgbench := need(t, "pgbench", "postgresql-contrib")
	db := startPostgreSQL(t)
	w := newWorld(t, endServer)
	port := w.forward(strconv.Itoa(db.port))
	w.all()

	if got := db.query(t, port, "postgres", "select sum(i) from generate_series(1, 1000) i"); got != "500500" {
		t.Errorf("a sum is %q", got)
	}
	if _, code := runProgram(t, exec.Command(db.psql, db.at(port, "postgres", "-X", "-v", "ON_ERROR_STOP=1", "-c", "select 1/0")...)); code != 1 {
		t.Errorf("a query that fails: exit code %d", code)
	}
	for _, args := range [][]string{{"-i", "-q", "-s", "1"}, {"-c", "4", "-T", "2"}, {"-c", "2", "-T", "2", "-C", "-S"}} {
		// pgbench takes the database as an argument.
		cmd := exec.Command(pgbench, append([]string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "postgres"}, append(args, "postgres")...)...)
		out := outputOf(t, cmd)
		if args[0] != "-i" && !strings.Contains(out, "number of failed transactions: 0 ") {
			t.Errorf("pgbench %v:\n%s", args, out)
		}
	}
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

// TestNetcat has nc send a file, close its half, and go on reading.
func TestNetcat(t *testing.T) {
	t.Parallel()
	nc := need(t, "nc", "netcat-openbsd")
	dir := t.TempDir()
	start := func(t *testing.T, name string, size uint64, args ...string) (cmd *exec.Cmd, sum, received string) {
		t.Helper()
		cmd = exec.Command(nc, append([]string{"-N"}, args...)...)
		sum = writePattern(t, filepath.Join(dir, name+".in"), 6, size)
		in, err := os.Open(filepath.Join(dir, name+".in"))
		if err != nil {
			t.Fatal(err)
		}
		received = filepath.Join(dir, name+".out")
		out, err := os.Create(received)
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdin, cmd.Stdout = in, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = in.Close()
		_ = out.Close()
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd, sum, received
	}

	// P5 answers with the sum of all that P1 says, and a lot more behind it: that can only come after P1's half has been closed.
	const answer = 8 << 20
	summing := listen(t, func(c net.Conn) {
		defer func() { _ = c.Close() }()
		sum := sha256.New()
		if _, err := io.Copy(sum, c); err != nil {
			return
		}
		_, _ = fmt.Fprintf(c, "%x", sum.Sum(nil))
		_ = send(c, 7, answer)
	})
	// P5 closes its half first, and sees all that comes after that.
	heard := make(chan string, 1)
	hanging := listen(t, func(c net.Conn) {
		defer func() { _ = c.Close() }()
		sum := sha256.New()
		_, _ = io.WriteString(c, "bye")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(sum, c)
		heard <- fmt.Sprintf("%x", sum.Sum(nil))
	})
	both := freeTCPPort(t)
	w := newWorld(t, endServer)
	summingPort := w.forward(strconv.Itoa(summing.Addr().(*net.TCPAddr).Port))
	hangingPort := w.forward(strconv.Itoa(hanging.Addr().(*net.TCPAddr).Port))
	bothPort := w.forward(strconv.Itoa(both))
	w.all()
	finish := func(t *testing.T, cmd *exec.Cmd) {
		t.Helper()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", cmd.Args, err)
		}
	}

	for _, size := range []uint64{0, 8, 8 << 20} {
		t.Run(fmt.Sprintf("P1 ends first after %d bytes", size), func(t *testing.T) {
			p1, up, received := start(t, "first", size, "127.0.0.1", strconv.Itoa(summingPort))
			finish(t, p1)
			want := writePattern(t, filepath.Join(dir, "want"), 7, answer)
			got, err := os.ReadFile(received)
			if err != nil {
				t.Fatal(err)
			}
			const hex = 2 * sha256.Size
			if len(got) != hex+answer {
				t.Fatalf("P1 has got %d bytes of %d", len(got), hex+answer)
			}
			if string(got[:hex]) != up {
				t.Error("P5 has got something else than P1 has sent")
			}
			if more := fmt.Sprintf("%x", sha256.Sum256(got[hex:])); more != want {
				t.Error("P1 has got something else than P5 has sent")
			}
		})
	}
	t.Run("P5 ends first", func(t *testing.T) {
		p1, up, received := start(t, "second", 8<<20, "127.0.0.1", strconv.Itoa(hangingPort))
		finish(t, p1)
		if got, _ := os.ReadFile(received); string(got) != "bye" {
			t.Errorf("P1 has got %q", got)
		}
		if sum := <-heard; sum != up {
			t.Error("P5 has got something else than P1 has sent")
		}
	})
	// An nc that listens goes when its peer has closed its half, even with something left to say.
	t.Run("nc at both ends", func(t *testing.T) {
		p5, down, receivedUp := start(t, "p5", 1<<10, "-l", "127.0.0.1", strconv.Itoa(both))
		eventually(t, 10*time.Second, "nc listens", func() error { return listens(both) })
		p1, up, receivedDown := start(t, "p1", 8<<20, "127.0.0.1", strconv.Itoa(bothPort))
		finish(t, p1)
		finish(t, p5)
		if checksum(t, receivedUp) != up {
			t.Error("P5 has got something else than P1 has sent")
		}
		if checksum(t, receivedDown) != down {
			t.Error("P1 has got something else than P5 has sent")
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
