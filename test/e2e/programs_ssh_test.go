//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

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
	s := &openSSH{port: testutil.FreePort(t), ssh: need(t, "ssh", "openssh-client"), scp: need(t, "scp", "openssh-client")}
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
