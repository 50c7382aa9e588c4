package bind_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
)

// on is a listener of a kind.
func on(kind config.Kind, addr string) config.Listen { return config.Listen{Kind: kind, Addr: addr} }

// taken is an address that another socket has, for TCP and UDP.
func taken(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	c, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return l.Addr().String()
}

// Each error says where, why and what to do, for connections and packets alike.
func TestErrors(t *testing.T) {
	busy := taken(t)
	for _, test := range []struct {
		at         config.Listen
		text, hint string
		err        error
		problem    string
	}{
		{at: on(config.TCP, busy), text: "listen on " + busy + ": bind: address already in use: another process", hint: "ss -ltnp", err: syscall.EADDRINUSE, problem: ", retrying"},
		{at: on(config.UDP, busy), text: "listen on UDP " + busy + ": bind: address already in use: another process", hint: "ss -lunp", err: syscall.EADDRINUSE, problem: ", retrying"},
		{at: on(config.TCP, "192.0.2.77:2200"), text: "listen on 192.0.2.77:2200: bind: ", hint: "no interface", err: syscall.EADDRNOTAVAIL, problem: ", retrying"},
		{at: on(config.Systemd, "web"), text: "listen on systemd:web: systemd has handed over no", hint: "FileDescriptorName=web", problem: " of this name"},
		{at: on(config.Unix, "db.sock"), text: "listen on unix:db.sock: there is no runtime directory", hint: "XDG_RUNTIME_DIR", problem: "no runtime directory"},
	} {
		var b bind.Binder
		var err error
		if test.at.Kind == config.UDP {
			_, err = b.ListenPacket(t.Context(), test.at)
		} else {
			_, err = b.Listen(t.Context(), test.at, 0o600)
		}
		e, ok := errors.AsType[*bind.Error](err)
		if !ok || !strings.HasPrefix(err.Error(), test.text) || !strings.Contains(e.Hint, test.hint) || !strings.HasSuffix(err.Error(), e.Hint) {
			t.Errorf("%v: %v; want %q and %q", test.at, err, test.text, test.hint)
			continue
		}
		if test.err != nil && !errors.Is(err, test.err) {
			t.Errorf("%v: %v is not %v", test.at, err, test.err)
		}
		problem, hint := bind.Problem(fmt.Errorf("of somebody: %w", err))
		if problem != "failed: "+e.Short()+map[bool]string{false: ", retrying"}[e.Final] || hint != e.Hint || !strings.HasSuffix(problem, test.problem) {
			t.Errorf("%v: %q, %q", test.at, problem, hint)
		}
	}
}

// A listener is bound as a whole or not at all.
func TestAllOrNothing(t *testing.T) {
	six, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("there is no IPv6: ", err)
	}
	defer func() { _ = six.Close() }()
	port := six.Addr().(*net.TCPAddr).Port
	var b bind.Binder
	if l, err := b.Listen(t.Context(), on(config.TCP, fmt.Sprintf("localhost:%d", port)), 0); err == nil {
		l.Close(false)
		t.Error("half of the loopback is bound")
	}
	four, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatalf("the other half is left open: %v", err)
	}
	_ = four.Close()
}

// Inherited sockets come first; of several with one name, one is used and the others are closed.
func TestInherited(t *testing.T) {
	first, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	extra, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	name := first.LocalAddr().String()
	b := bind.Binder{Packets: func(n string) []net.PacketConn {
		if n == name {
			return []net.PacketConn{first, extra}
		}
		return nil
	}}
	sockets, err := b.ListenPacket(t.Context(), on(config.UDP, name))
	if err != nil || len(sockets) != 1 || sockets[0].Socket != first || sockets[0].Name != name {
		t.Errorf("bound %v, %v", sockets, err)
	}
	if err := extra.Close(); err == nil {
		t.Error("the other one is still open")
	}
	_ = first.Close()
}

// The file of a Unix socket on which no process listens is removed before a bind, and the file of a
// listener when it closes.
func TestUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "db.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	b := bind.Binder{Directory: dir}
	if _, err := b.Listen(t.Context(), on(config.Unix, "db.sock"), 0o600); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("beside another: %v", err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()
	l, err := b.Listen(t.Context(), on(config.Unix, "db.sock"), 0o600)
	if err != nil || l.Path != path {
		t.Fatalf("%+v, %v", l, err)
	}
	if err := l.SetMode(0o640); err != nil {
		t.Error(err)
	}
	if info, err := os.Lstat(path); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info, err)
	}
	l.Close(false)
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file is left behind")
	}
}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 7*time.Second)
		defer cancel()
		tries := 0
		bind.Retry(ctx, func() { tries++ })
		if tries != 3 {
			t.Errorf("%d tries in 7 s", tries)
		}
	})
}
