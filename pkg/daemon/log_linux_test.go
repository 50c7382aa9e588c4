package daemon_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
	"ptthqd/test/testutil"
)

// journalVariable says where the journal of a child is.
const journalVariable = "PTTHQD_TEST_JOURNAL"

func init() {
	childHook = func() {
		host.QueueBytes = 4 << 10
		host.JournalSocket = os.Getenv(journalVariable)
	}
}

// A logReader stands for the reader of a child's log.
type logReader interface {
	environment(stderr *os.File) []string
	stop()        // it reads no more, and what is between is full
	goOn() string // it reads again, until it has seen that lines are missing
}

// A pipeReader reads stderr.
type pipeReader struct {
	t      *testing.T
	format string
	r, w   *os.File
	text   strings.Builder
	paused chan struct{}
}

func newPipeReader(t *testing.T, format string) *pipeReader {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &pipeReader{t: t, format: format, r: r, w: w, paused: make(chan struct{})}
	t.Cleanup(func() { _, _ = r.Close(), w.Close() })
	go p.read()
	return p
}

// read reads until there is an error, which may be a deadline.
func (p *pipeReader) read() {
	_, _ = io.Copy(&p.text, p.r)
	close(p.paused)
}

func (p *pipeReader) environment(*os.File) []string {
	return []string{formatVariable + "=" + p.format}
}

func (p *pipeReader) stop() {
	_ = p.r.SetReadDeadline(time.Unix(0, 0))
	<-p.paused
	// Opened again: the flags of the child's own descriptor must stay as they are.
	raw, err := p.r.SyscallConn() // Fd would have reads block
	if err != nil {
		p.t.Fatal(err)
	}
	path := ""
	_ = raw.Control(func(fd uintptr) { path = fmt.Sprintf("/proc/self/fd/%d", fd) })
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer unix.Close(fd)
	for _, size := range []int{4096, 1} {
		for err = nil; err == nil; {
			_, err = unix.Write(fd, make([]byte, size))
		}
	}
}

func (p *pipeReader) goOn() string {
	deadline := time.Now().Add(patience)
	for !strings.Contains(p.text.String(), missing) && time.Now().Before(deadline) {
		_ = p.r.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		_, _ = io.Copy(&p.text, p.r)
	}
	return p.text.String()
}

// A journalReader stands for systemd-journald.
type journalReader struct {
	t        *testing.T
	conn     *net.UnixConn
	datagram []string
	paused   chan struct{}
}

func newJournalReader(t *testing.T) *journalReader {
	t.Helper()
	path := t.TempDir() + "/journal"
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	j := &journalReader{t: t, conn: conn, paused: make(chan struct{})}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		j.read()
		close(j.paused)
	}()
	return j
}

func (j *journalReader) read() {
	for buffer := make([]byte, 64<<10); ; {
		n, err := j.conn.Read(buffer)
		if err != nil {
			return
		}
		j.datagram = append(j.datagram, string(buffer[:n]))
	}
}

func (j *journalReader) environment(stderr *os.File) []string {
	var is unix.Stat_t
	if err := unix.Fstat(int(stderr.Fd()), &is); err != nil {
		j.t.Fatal(err)
	}
	return []string{formatVariable + "=" + host.LogAuto, journalVariable + "=" + j.conn.LocalAddr().String(), fmt.Sprintf("JOURNAL_STREAM=%d:%d", is.Dev, is.Ino)}
}

func (j *journalReader) stop() {
	_ = j.conn.SetReadDeadline(time.Unix(0, 0))
	<-j.paused
	for refused := 0; refused < 3; refused++ { // one socket alone may be full before the queue is
		c, err := net.DialUnix("unixgram", nil, j.conn.LocalAddr().(*net.UnixAddr))
		if err != nil {
			j.t.Fatal(err)
		}
		j.t.Cleanup(func() { _ = c.Close() })
		raw, err := c.SyscallConn()
		if err != nil {
			j.t.Fatal(err)
		}
		_ = raw.Control(func(fd uintptr) {
			for n := 0; ; n++ {
				if _, err := unix.Write(int(fd), []byte("x")); err != nil {
					return
				}
				refused = 0
			}
		})
	}
}

func (j *journalReader) goOn() string {
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		for _, d := range j.datagram {
			if strings.Contains(d, missing) {
				return d
			}
		}
		_ = j.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		j.read()
	}
	return strings.Join(j.datagram, "\n\n")
}

const missing = "lines of the log are missing"

// A daemon does all of its work while nobody reads its log. When the log is read again, it says how
// many lines are missing.
func TestWorkGoesOnWhileNobodyReadsTheLog(t *testing.T) {
	t.Run("text", func(t *testing.T) { workGoesOn(t, newPipeReader(t, host.LogText), nil) })
	t.Run("json", func(t *testing.T) { workGoesOn(t, newPipeReader(t, host.LogJSON), nil) })
	t.Run("journal", func(t *testing.T) {
		stderr := newPipeReader(t, host.LogText)
		stderr.stop()
		workGoesOn(t, newJournalReader(t), stderr.w)
	})
}

func workGoesOn(t *testing.T, reader logReader, stderr *os.File) {
	s := newSite(t)
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, peer("nas", s.key("nas"))))
	config := fmt.Sprintf("role = \"server\"\nid = \"nas\"\nprivate_key_file = \"nas.key\"\nlog_level = \"debug\"\n[[relays]]\naddress = \"127.0.0.1:%d\"\npublic_key = %q\n",
		port, s.key("relay"))
	s.write("nas.toml", config)
	relay := s.start("relay")

	if p, ok := reader.(*pipeReader); ok {
		stderr = p.w
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), childVariable+"="+s.path("nas.toml")), reader.environment(stderr)...)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	nas := &process{t: t, Client: &control.Client{Socket: s.path("nas.toml.sock")}, done: make(chan struct{})}
	go func() {
		defer close(nas.done)
		nas.err = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-nas.done
	})
	connected := func(is string) func(now *control.Status) bool {
		return func(now *control.Status) bool { return len(now.Links) == 1 && (now.Links[0].State == is) }
	}
	nas.until("the link is up", connected(control.LinkConnected))

	reader.stop()
	_ = relay.end()
	nas.until("the link is lost", func(now *control.Status) bool { return !connected(control.LinkConnected)(now) })
	s.start("relay")
	nas.until("the link is back", connected(control.LinkConnected))
	s.write("nas.toml", strings.Replace(config, "[[relays]]", "drain_timeout = \"1s\"\n[[relays]]", 1))
	if done, err := nas.Reload(t.Context()); err != nil || !done.OK {
		t.Errorf("reload: %+v, %v", done, err)
	}
	now := nas.until("lines are dropped", func(now *control.Status) bool { return now.Process.LogDropped > 0 }) // each status is a line
	if text := reader.goOn(); !strings.Contains(text, missing) {
		t.Fatalf("%d lines are missing, and it isn't said in\n%s", now.Process.LogDropped, text)
	}

	reader.stop()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-nas.done:
	case <-time.After(patience):
		t.Fatal("it hasn't stopped")
	}
	if exit, ok := errors.AsType[*exec.ExitError](nas.err); ok {
		t.Errorf("exit: %v", exit)
	}
}
