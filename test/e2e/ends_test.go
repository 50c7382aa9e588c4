//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// prompt is how soon an end of the chain is to learn that its connection is
// over, from when it could be known.
const prompt = 2 * time.Second

// A recorder is a P5 that hands its connections to the test.
type recorder struct{ conns chan net.Conn }

func newRecorder() *recorder { return &recorder{make(chan net.Conn, 100)} }

func (r *recorder) serve(c net.Conn) { r.conns <- c }

// open opens a connection through the chain, and returns both of its ends. It
// tries again while the chain doesn't carry.
func (r *recorder) open(t *testing.T, w *world) (p1, p5 net.Conn) {
	t.Helper()
	eventually(t, 20*time.Second, "a connection opens", func() error {
		conn, err := w.dial()
		if err != nil {
			return err
		}
		p1 = conn
		_, _ = io.WriteString(p1, "hello")
		_ = p1.SetReadDeadline(time.Now().Add(2 * time.Second))
		select {
		case p5 = <-r.conns:
			_, _ = io.WriteString(p5, "hello")
			_ = p5.SetReadDeadline(time.Now().Add(2 * time.Second))
			err = errors.Join(hears(p5, "hello"), hears(p1, "hello"))
		case <-time.After(500 * time.Millisecond):
			err = errors.New("P5 has not heard of it")
		}
		if err != nil {
			_ = p1.Close()
		}
		return err
	})
	t.Cleanup(func() {
		_ = p1.Close()
		_ = p5.Close()
	})
	return p1, p5
}

func hears(c net.Conn, want string) error {
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		return fmt.Errorf("%q, %w", got, err)
	}
	return nil
}

// started starts a chain whose P5 is a recorder, with settings at the head of
// the client's and server's config.
func (r *recorder) started(t *testing.T, settings string) *world {
	t.Helper()
	w := newWorld(t, r.serve)
	w.extra["laptop"], w.extra["nas"] = settings, settings
	w.writeConfigs()
	for _, name := range []string{"relay", "nas", "laptop"} {
		w.start(name)
	}
	return w
}

// TestServerRestarted ends the connections of a server that was restarted: P1
// is reset, at once when the server says goodbye, else as soon as a new one
// says that it doesn't know them.
func TestServerRestarted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sig syscall.Signal
		end string // in the client's log
	}{
		{syscall.SIGKILL, `end="server restarted"`},
		{syscall.SIGTERM, "end=stopped"},
	} {
		t.Run(c.sig.String(), func(t *testing.T) {
			t.Parallel()
			p5s := newRecorder()
			w := p5s.started(t, "drain_timeout = \"1s\"\n")
			p1, p5 := p5s.open(t, w)
			idle, _ := p5s.open(t, w)
			_, _ = io.WriteString(p1, "are you there?")
			w.procs["nas"].signal(c.sig)
			<-w.procs["nas"].exited
			wantReset(t, "P5", p5, prompt)
			w.start("nas")
			wantReset(t, "P1", p1, prompt)
			wantReset(t, "an idle P1", idle, prompt)
			w.procs["laptop"].says(t, "mapping=main .*"+c.end)
			p5s.open(t, w)
		})
	}
}

// TestClientRestarted ends the connections of a client that was restarted: P5
// is reset, at once when the client says goodbye, else after the resume
// timeout, as it might come back.
func TestClientRestarted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		sig    syscall.Signal
		within time.Duration
		end    string // in the server's log
	}{
		{syscall.SIGKILL, 3*time.Second + prompt, "end=expired"},
		{syscall.SIGTERM, prompt, "end=stopped"},
	} {
		t.Run(c.sig.String(), func(t *testing.T) {
			t.Parallel()
			p5s := newRecorder()
			w := p5s.started(t, "drain_timeout = \"1s\"\nresume_timeout = \"3s\"\n")
			p1, p5 := p5s.open(t, w)
			_, idle := p5s.open(t, w)
			_, _ = io.WriteString(p5, "are you there?")
			w.procs["laptop"].signal(c.sig)
			<-w.procs["laptop"].exited
			wantReset(t, "P1", p1, prompt)
			w.start("laptop")
			wantReset(t, "P5", p5, c.within)
			wantReset(t, "an idle P5", idle, c.within)
			w.procs["nas"].says(t, "connection=.*"+c.end)
			p5s.open(t, w)
		})
	}
}

// TestResumeTimeout takes the relay away for longer than connections are kept.
// Both of their ends are reset, and nothing of them stays.
func TestResumeTimeout(t *testing.T) {
	t.Parallel()
	p5s := newRecorder()
	w := p5s.started(t, "resume_timeout = \"2s\"\n")
	p5s.open(t, w) // what is made once is made
	before := map[string]footprint{}
	for _, name := range []string{"laptop", "nas"} {
		before[name] = w.footprint(t, name)
	}
	const connections = 20
	var p1s, p5ends []net.Conn
	for range connections {
		p1, p5 := p5s.open(t, w)
		p1s, p5ends = append(p1s, p1), append(p5ends, p5)
	}
	began := time.Now()
	w.procs["relay"].kill()
	for i := range connections {
		wantReset(t, "P1", p1s[i], 15*time.Second)
		wantReset(t, "P5", p5ends[i], 15*time.Second)
	}
	// It takes 1.5 s until a link is suspect, and on a busy machine, whose round trips vary, up to 5 s and a heartbeat.
	if took := time.Since(began); took < 2*time.Second || took > 10*time.Second {
		t.Errorf("reset after %v", took)
	}
	for _, name := range []string{"laptop", "nas"} {
		w.procs[name].says(t, "connection failed .*end=expired")
	}
	delete(w.procs, "relay")
	w.empties(t, 5*time.Second)
	for name, was := range before {
		eventually(t, 10*time.Second, name+" is as it was", func() error {
			if is := w.footprint(t, name); is.files > was.files || is.goroutines > was.goroutines {
				return fmt.Errorf("%+v before, %+v after", was, is)
			}
			return nil
		})
	}
	w.start("relay")
	p5s.open(t, w)
}

// TestEnds ends connections in all ways that are not the fault of the chain's
// processes, and finds the end in the log of each, under one ID.
func TestEnds(t *testing.T) {
	t.Parallel()
	p5s := newRecorder()
	w := p5s.started(t, "")
	config := func(node string) string {
		text, err := os.ReadFile(w.path(node, ".toml"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	finish := func(first, second net.Conn) {
		_ = first.(halfCloser).CloseWrite()
		if _, err := io.ReadAll(second); err != nil {
			t.Errorf("the other end reads %v", err)
		}
		_ = second.Close()
		if _, err := io.ReadAll(first); err != nil {
			t.Errorf("the first end reads %v", err)
		}
	}
	reset := func(c net.Conn) {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	for _, c := range []struct {
		name   string
		end    func(p1, p5 net.Conn)
		client string // the end that each log tells
		server string
		relay  string
	}{
		{"P1 closes", func(p1, p5 net.Conn) { finish(p1, p5) }, "closed", "closed", "complete"},
		{"P5 closes", func(p1, p5 net.Conn) { finish(p5, p1) }, "closed", "closed", "complete"},
		{"P1 resets", func(p1, p5 net.Conn) {
			reset(p1)
			wantReset(t, "P5", p5, prompt)
		}, `"reset by P1"`, `"reset by P1"`, "complete"},
		{"P5 resets", func(p1, p5 net.Conn) {
			reset(p5)
			wantReset(t, "P1", p1, prompt)
		}, `"reset by P5"`, `"reset by P5"`, "complete"},
		{"the server withdraws the right", func(p1, p5 net.Conn) {
			was := config("nas")
			w.write("nas", strings.ReplaceAll(was, `clients = ["laptop"]`, `clients = ["somebody"]`))
			wantReset(t, "P1", p1, 10*time.Second)
			wantReset(t, "P5", p5, 10*time.Second)
			w.write("nas", was)
		}, "revoked", "revoked", "revoked"},
		{"the relay withdraws the right", func(p1, p5 net.Conn) {
			was := config("relay")
			w.write("relay", strings.ReplaceAll(was, `allowed_servers = ["nas"]`, `allowed_servers = []`))
			wantReset(t, "P1", p1, 10*time.Second)
			wantReset(t, "P5", p5, 10*time.Second)
			w.write("relay", was)
		}, "revoked", "revoked", "revoked"},
		{"the mapping goes, and its connections with it", func(p1, p5 net.Conn) {
			was := config("laptop")
			w.write("laptop", was+"on_remove = \"close\"\n")
			w.procs["laptop"].says(t, "on_remove")
			w.write("laptop", was+"on_remove = \"close\"\nenabled = false\n")
			wantReset(t, "P1", p1, 10*time.Second)
			wantReset(t, "P5", p5, 10*time.Second)
			w.write("laptop", was)
		}, `"mapping removed"`, `"mapping removed"`, "complete"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p1, p5 := p5s.open(t, w)
			source := p1.LocalAddr().String()
			c.end(p1, p5)
			line := w.procs["laptop"].says(t, "source="+source+" .*end="+c.client+" code=200")
			id := connectionID.FindStringSubmatch(line)
			if id == nil {
				t.Fatalf("no connection ID: %s", line)
			}
			w.procs["nas"].says(t, "connection="+id[1]+" .*end="+c.server+" code=200")
			w.procs["relay"].says(t, "connection="+id[1]+" .*end="+c.relay+" code=200")
		})
	}
}
