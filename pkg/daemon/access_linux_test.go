package daemon_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"ptthqd/test/testutil"

	"golang.org/x/sys/unix"
)

// A user who may connect to the socket sees the status. Root, the daemon's user and the group that
// the config names may also change something, profile, and have connections made.
func TestWhoMayDoWhat(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be others")
	}
	s := newSite(t)
	s.key("relay")
	port := testutil.FreePort(t)
	s.write("relay.toml", relayConfig(port, ""))
	relay := s.start("relay")
	for dir := s.dir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(relay.Socket, 0o666); err != nil {
		t.Fatal(err)
	}
	const look, act = http.StatusOK, http.StatusForbidden
	requests := []struct {
		request string
		code    int // for a member of the socket's group
	}{
		{"GET /v1/status", look},
		{"GET /v1/log-level", look},
		{"GET /v1/explain?client=a&server=b&target=22", look},
		{"POST /v1/reload", act},
		{"PUT /v1/log-level", act},
		{"POST /v1/trace?mapping=x", act},
		{"GET /debug/pprof/goroutine", act},
		{"GET /debug/pprof/cmdline", act},
		{"POST /v1/status", act},
		{"GET /v1/status/", act},
	}
	for _, r := range requests {
		if code := askAs(t, relay.Socket, r.request, 12345, 100); code != r.code {
			t.Errorf("a user: %s: %d", r.request, code)
		}
		if code := askAs(t, relay.Socket, r.request, 0); code == act {
			t.Errorf("root: %s: %d", r.request, code)
		}
	}

	// Group 100 has another name on some systems.
	name := groupName(t, "100")
	s.write("relay.toml", "admin_group = \""+name+"\"\n"+relayConfig(port, ""))
	if done, err := relay.Reload(t.Context()); err != nil || !done.OK {
		t.Fatal(done, err)
	}
	if code := askAs(t, relay.Socket, "POST /v1/reload", 12345, 7, 100); code != http.StatusOK {
		t.Errorf("an administrator: %d", code)
	}
	if code := askAs(t, relay.Socket, "POST /v1/reload", 12345, 7); code != http.StatusForbidden {
		t.Errorf("a member of another group: %d", code)
	}
}

func groupName(t *testing.T, id string) string {
	t.Helper()
	text, err := os.ReadFile("/etc/group")
	if err != nil {
		t.Skip(err)
	}
	for l := range strings.Lines(string(text)) {
		if f := strings.Split(strings.TrimSpace(l), ":"); len(f) > 2 && f[2] == id {
			return f[0]
		}
	}
	t.Skip("there is no group " + id)
	return ""
}

// askAs makes a request as a user with groups, and returns the answer's code.
func askAs(t *testing.T, socket, request string, uid int, groups ...uint32) (code int) {
	t.Helper()
	var fd int
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and it ends with this goroutine
		if uid != 0 {
			ids := append([]uint32(nil), groups...)
			if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(ids)), uintptr(unsafe.Pointer(&ids[0])), 0); errno != 0 {
				err = errno
				return
			}
			for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
				if _, _, errno := unix.RawSyscall(call, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
					err = errno
					return
				}
			}
		}
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "")
	conn, err := net.FileConn(file)
	if err = errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := ""
	if strings.HasPrefix(request, "PUT") {
		body = `{"level": "info"}`
	}
	if _, err := fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", request, len(body), body); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	return response.StatusCode
}
