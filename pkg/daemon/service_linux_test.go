package daemon_test

import (
	"bytes"
	"context"
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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/control"
	"ptthqd/test/testutil"
)

// A manager stands for systemd: it starts a service, hears its notifications, and keeps its
// sockets.
type manager struct {
	t    *testing.T
	path string // NOTIFY_SOCKET

	mu     sync.Mutex
	said   []string // the states, each as it came
	stored map[string][]int
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), stored: make(map[string][]int)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	var hearing sync.WaitGroup
	hearing.Go(func() { m.hear(conn) })
	t.Cleanup(func() {
		_ = conn.Close()
		hearing.Wait()
		for _, fds := range m.stored {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	})
	return m
}

func (m *manager) hear(conn *net.UnixConn) {
	state, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, rn, _, _, err := conn.ReadMsgUnix(state, rights)
		if err != nil {
			return
		}
		var fds []int
		if messages, err := unix.ParseSocketControlMessage(rights[:rn]); err == nil {
			for _, message := range messages {
				got, _ := unix.ParseUnixRights(&message)
				fds = append(fds, got...)
			}
		}
		m.take(string(state[:n]), fds)
	}
}

func (m *manager) take(state string, fds []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = append(m.said, state)
	name := ""
	for line := range strings.Lines(state) {
		if after, ok := strings.CutPrefix(strings.TrimSpace(line), "FDNAME="); ok {
			name = after
		}
	}
	switch {
	case strings.Contains(state, "FDSTORE=1"):
		m.stored[name] = append(m.stored[name], fds...)
		return
	case strings.Contains(state, "FDSTOREREMOVE=1"):
		fds = m.stored[name]
		delete(m.stored, name)
	}
	for _, fd := range fds { // a barrier's, too: this answers it
		_ = unix.Close(fd)
	}
}

// heard returns the states since the last call that have a line with this beginning.
func (m *manager) heard(prefix string) (states []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, state := range m.said {
		for line := range strings.Lines(state) {
			if strings.HasPrefix(line, prefix) {
				states = append(states, state)
			}
		}
	}
	return states
}

func (m *manager) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = nil
}

// until waits until it has heard a line with this beginning.
func (m *manager) until(prefix string) string {
	m.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		if states := m.heard(prefix); len(states) > 0 {
			return states[len(states)-1]
		}
		if time.Now().After(deadline) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.t.Fatalf("not heard within %v: %s; but %q", patience, prefix, m.said)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (m *manager) names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for name := range m.stored {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A service is a process that a manager has started.
type service struct {
	*exec.Cmd
	*control.Client
	log   testutil.Log
	ended chan struct{}
}

// An inherited is a descriptor with its name.
type inherited struct {
	name string
	file *os.File
}

// start runs a config as a service, with the stored descriptors and more.
func (m *manager) start(s *site, name string, environment []string, more ...inherited) *service {
	m.t.Helper()
	m.mu.Lock()
	for stored, fds := range m.stored {
		for _, fd := range fds {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				m.t.Fatal(err)
			}
			more = append(more, inherited{stored, os.NewFile(uintptr(dup), stored)})
		}
	}
	m.mu.Unlock()
	// LISTEN_PID is known when the process runs: exec keeps it.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0"`, os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+s.path(name+".toml"), "NOTIFY_SOCKET="+m.path)
	cmd.Env = append(cmd.Env, environment...)
	var names []string
	for _, i := range more {
		names = append(names, i.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, i.file)
	}
	cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	v := &service{Cmd: cmd, Client: &control.Client{Socket: s.path(name + ".toml.sock")}, ended: make(chan struct{})}
	cmd.Stderr = &v.log
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		defer close(v.ended)
		_ = cmd.Wait()
	}()
	for _, i := range more {
		_ = i.file.Close()
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-v.ended
		if m.t.Failed() {
			m.t.Logf("%s said:\n%s", name, v.log.String())
		}
	})
	return v
}

func (v *service) stop(t *testing.T) {
	t.Helper()
	if err := v.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-v.ended
	if code := v.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestServiceManagerIsTold(t *testing.T) {
	s, m := newSite(t), newManager(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, ""))
	v := m.start(s, "relay", nil)
	if ready := m.until("READY=1"); !strings.Contains(ready, "STATUS=listening on 127.0.0.1:") {
		t.Errorf("ready: %q", ready)
	}
	if _, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		t.Error("it is ready before its socket is bound")
	}

	// A bad reload: the reason is in the status.
	m.forget()
	s.write("relay.toml", "lisen = 1\n"+relayConfig(port, ""))
	if _, err := v.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.until("RELOADING=1")
	if ready := m.until("READY=1"); !strings.Contains(ready, ":1:1: lisen") {
		t.Errorf("after a bad reload: %q", ready)
	}
	if reloading := m.until("RELOADING=1"); !strings.Contains(reloading, "MONOTONIC_USEC=") {
		t.Errorf("reloading: %q", reloading)
	}

	m.forget()
	v.stop(t)
	m.until("STOPPING=1")
	m.until("EXTEND_TIMEOUT_USEC=")
}

func TestFailedStartIsTold(t *testing.T) {
	s, m := newSite(t), newManager(t)
	s.write("relay.toml", "role = \"relay\"\nlisen = 1\n")
	v := m.start(s, "relay", nil)
	<-v.ended
	if code := v.ProcessState.ExitCode(); code != 78 {
		t.Errorf("exit code %d", code)
	}
	if status := m.until("STATUS="); !strings.Contains(status, "relay.toml:2:1: lisen") {
		t.Errorf("told: %q", status)
	}
}

func TestWatchdog(t *testing.T) {
	s, m := newSite(t), newManager(t)
	s.key("relay")
	metrics := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(testutil.FreePort(t), fmt.Sprintf("[metrics]\nlisten = \"127.0.0.1:%d\"\n", metrics)))
	v := m.start(s, "relay", []string{"WATCHDOG_USEC=150000"})
	m.until("READY=1")
	deadline := time.Now().Add(patience)
	for len(m.heard("WATCHDOG=1")) < 5 {
		if time.Now().After(deadline) {
			t.Fatalf("fed %d times within %v", len(m.heard("WATCHDOG=1")), patience)
		}
		time.Sleep(5 * time.Millisecond)
	}
	// A pipe in place of the config: the reload waits for ever, and holds its lock.
	if err := errors.Join(os.Remove(s.path("relay.toml")), unix.Mkfifo(s.path("relay.toml"), 0o600)); err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = v.Reload(context.WithoutCancel(t.Context())) }() // ends when the process is killed
	for quiet := 0; quiet < 2; {
		if time.Now().After(deadline) {
			t.Fatal("it hangs, and its watchdog is still fed")
		}
		before := len(m.heard("WATCHDOG=1"))
		time.Sleep(300 * time.Millisecond)
		if len(m.heard("WATCHDOG=1")) == before {
			quiet++
		}
	}
	// A request for its health gets an answer.
	if code, body := get(t, fmt.Sprintf("127.0.0.1:%d", metrics), "/healthz"); code != http.StatusServiceUnavailable || len(body) < 10 {
		t.Errorf("its health: %d %q", code, body)
	}
	_ = v.Process.Kill()
}

func clientConfig(listen string) string {
	return "role = \"client\"\nid = \"laptop\"\ndrain_timeout = \"0s\"\n[[relays]]\naddress = \"127.0.0.1:9\"\npublic_key = \"" + keyA + "\"\n" +
		"[[mappings]]\nname = \"m\"\nlisten = \"" + listen + "\"\nserver = \"nas\"\ntarget = \"22\"\n[limits]\nhold_timeout = \"0s\"\n"
}

// served connects. It reports whether a daemon accepts the connection and, having no relay, resets
// it.
func served(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(conn); err == nil || os.IsTimeout(err) {
		t.Errorf("nobody serves the connection: %v", err)
	}
	_ = conn.Close()
}

// connects is served, for a new connection. The reset may be there before Dial returns.
func connects(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	served(t, conn)
}

func TestSocketsSurviveARestart(t *testing.T) {
	s, m := newSite(t), newManager(t)
	s.key("client")
	port := testutil.FreePort(t)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	s.write("client.toml", clientConfig(address))
	v := m.start(s, "client", nil)
	m.until("READY=1")
	if names := m.names(); len(names) != 1 || strings.Contains(names[0], ":") {
		t.Fatalf("the manager keeps %q", names)
	}
	v.stop(t)

	// While no process runs, a connection waits for the next one.
	waiting, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatalf("refused during the restart: %v", err)
	}
	m.forget()
	v = m.start(s, "client", nil)
	m.until("READY=1")
	served(t, waiting)

	// A listener that moves to an overlapping address: the daemon closes the kept socket first.
	s.write("client.toml", clientConfig(fmt.Sprintf("0.0.0.0:%d", port))+"# allow_public\n")
	done, err := v.Reload(t.Context())
	if err != nil || !done.OK {
		t.Fatalf("moved: %+v, %v", done, err)
	}
	before := m.names()
	v.stop(t)

	// Moved while no process ran.
	s.write("client.toml", clientConfig(address))
	m.forget()
	v = m.start(s, "client", nil)
	m.until("READY=1")
	if after := m.names(); len(after) != 1 || slices.Equal(after, before) {
		t.Errorf("kept %q, then %q", before, after)
	}
	connects(t, address)

	// A removed listener is not kept.
	s.write("client.toml", strings.Replace(clientConfig(address), "server = ", "enabled = false\nserver = ", 1))
	if done, err := v.Reload(t.Context()); err != nil || !done.OK {
		t.Fatalf("disabled: %+v, %v", done, err)
	}
	if names := m.names(); len(names) != 0 {
		t.Errorf("the manager keeps %q", names)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		_ = conn.Close()
		t.Error("somebody still listens")
	}
}

// A client that is restarted with an idle connection refuses no connection: new ones wait for the
// next process, for a short time.
func TestRestartWithAnIdleConnection(t *testing.T) {
	s, m := newSite(t), newManager(t)
	_, _, inProcess, _, mapping := s.chain()
	_ = inProcess.end()
	v := m.start(s, "laptop", nil)
	m.until("READY=1")
	echo(t, mapping, "hello")
	address := fmt.Sprintf("127.0.0.1:%d", mapping)
	idle, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = idle.Close() }()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		now, err := v.Status(t.Context())
		if err == nil && len(now.Connections) == 1 && time.Duration(now.Connections[0].Age) > 1500*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the connection is not there: %+v, %v", now, err)
		}
	}
	begun := time.Now()
	if err := v.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var waiting net.Conn
	for stopped := false; !stopped; {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatalf("refused while it restarts: %v", err)
		}
		if waiting != nil {
			_ = waiting.Close()
		}
		waiting = conn
		select {
		case <-v.ended:
			stopped = true
		case <-time.After(20 * time.Millisecond):
		}
	}
	defer func() { _ = waiting.Close() }()
	if took := time.Since(begun); took > 4*time.Second { // drain_timeout is 5 s
		t.Errorf("it took %v to stop with an idle connection", took)
	}
	m.forget()
	m.start(s, "laptop", nil)
	m.until("READY=1")
	_ = waiting.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(waiting, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = waiting.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(waiting); err != nil || string(got) != "hello" {
		t.Errorf("one that came while it restarted has echoed %q, %v", got, err)
	}
}

// A Unix socket of a mapping has its directory, wherever the control socket is.
func TestUnixListenerBesideAnotherControlSocket(t *testing.T) {
	s := newSite(t)
	s.key("client")
	s.write("client.toml", clientConfig("unix:db.sock"))
	s.start("client") // with a control socket of its own place
	conn, err := net.Dial("unix", filepath.Join(control.RuntimeDir(s.path("client.toml")), "db.sock"))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	info, err := os.Stat(control.RuntimeDir(s.path("client.toml")))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
}

func TestRelaySocketSurvivesARestart(t *testing.T) {
	s, m := newSite(t), newManager(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, ""))
	v := m.start(s, "relay", nil)
	m.until("READY=1")
	if names := m.names(); len(names) != 1 {
		t.Fatalf("the manager keeps %q", names)
	}
	v.stop(t)
	if _, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
		t.Error("the port is free during the restart")
	}
	m.forget()
	m.start(s, "relay", nil)
	m.until("READY=1")
}

func udpSocket(t *testing.T) (*os.File, string) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	file, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	return file, conn.LocalAddr().String()
}

func TestSocketActivation(t *testing.T) {
	s, m := newSite(t), newManager(t)
	s.key("relay")
	s.write("relay.toml", "role = \"relay\"\nlisten = [\"systemd:one\", \"systemd:two\"]\n")
	one, addressOne := udpSocket(t)
	two, addressTwo := udpSocket(t)
	v := m.start(s, "relay", nil, inherited{"two", two}, inherited{"one", one}) // the order says nothing
	m.until("READY=1")
	status, err := v.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]string)
	for _, l := range status.Listeners {
		got[l.Listen] = l.Address
	}
	if got["systemd:one"] != addressOne || got["systemd:two"] != addressTwo {
		t.Errorf("listening on %v, handed over one %s, two %s", got, addressOne, addressTwo)
	}
	if names := m.names(); len(names) != 0 {
		t.Errorf("what the manager has anyway is stored too: %q", names)
	}
	v.stop(t)

	s.write("client.toml", clientConfig("systemd:web"))
	s.key("client")
	listener, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		t.Fatal(err)
	}
	m.forget()
	v = m.start(s, "client", nil, inherited{"web", file})
	m.until("READY=1")
	connects(t, listener.Addr().String())

	// Removed and added again, the socket is there again.
	for range 2 {
		for _, listen := range []string{fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t)), "systemd:web"} {
			s.write("client.toml", clientConfig(listen))
			if done, err := v.Reload(t.Context()); err != nil || !done.OK {
				t.Fatalf("%s: %+v, %v", listen, done, err)
			}
		}
		connects(t, listener.Addr().String())
	}
}

func TestSocketActivationThatDoesNotFit(t *testing.T) {
	for _, c := range []struct{ name, listen, handed, want string }{
		{"none", "systemd:quic", "", "systemd has handed over no UDP socket of this name: a socket unit must have FileDescriptorName=quic"},
		{"another", "systemd:quic", "quick", "systemd hands over the socket quick, which .* doesn't name"},
		{"one too many", "127.0.0.1:%d", "quic", "systemd hands over the socket quic, which .* doesn't name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, m := newSite(t), newManager(t)
			s.key("relay")
			listen := strings.Replace(c.listen, "%d", strconv.Itoa(testutil.FreePort(t)), 1)
			s.write("relay.toml", "role = \"relay\"\nlisten = [\""+listen+"\"]\n")
			var more []inherited
			if c.handed != "" {
				file, _ := udpSocket(t)
				more = append(more, inherited{c.handed, file})
			}
			v := m.start(s, "relay", nil, more...)
			<-v.ended
			want, _, _ := strings.Cut(c.want, ".*")
			if code := v.ProcessState.ExitCode(); code != 1 || !bytes.Contains([]byte(v.log.String()), []byte(want)) {
				t.Errorf("exit code %d; want 1 and %q in\n%s", code, want, v.log.String())
			}
		})
	}
}

func TestSignals(t *testing.T) {
	s, m := newSite(t), newManager(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, ""))
	v := m.start(s, "relay", nil)
	m.until("READY=1")
	s.write("relay.toml", relayConfig(port, peer("a", keyA)))
	m.forget()
	if err := v.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	m.until("READY=1")
	status, err := v.Status(t.Context())
	if err != nil || len(status.Peers) != 1 || status.Config.Reload.Trigger != "signal" {
		t.Errorf("after SIGHUP: %+v, %v", status, err)
	}
	v.stop(t)
}
