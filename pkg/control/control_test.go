package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/control"
)

// backend answers what it was given.
type backend struct {
	status      *control.Status
	reload      *control.Reload
	explanation *control.Explanation
	level       control.LogLevel
}

func (b *backend) Status() *control.Status                { return b.status }
func (b *backend) Reload(context.Context) *control.Reload { return b.reload }
func (b *backend) LogLevel() control.LogLevel             { return b.level }

func (b *backend) Trace(_ context.Context, q control.TraceQuestion) (*control.Trace, error) {
	if q.Mapping == "" {
		return nil, &control.Error{Message: "no mapping"}
	}
	return &control.Trace{
		OK: true,
		Hops: []control.Hop{{
			From: q.Mapping, To: "relay", OK: true,
			Took: control.Seconds(time.Millisecond),
		}},
	}, nil
}

func (b *backend) Explain(q control.Question) (*control.Explanation, error) {
	if q.Target == "" {
		return nil, &control.Error{Message: "no target", Hint: "name one"}
	}
	e := *b.explanation
	e.Question = q
	return &e, nil
}

func (b *backend) SetLogLevel(l control.LogLevel) error {
	if l.Level == "loud" {
		return errors.New("there is no log level loud")
	}
	b.level = l
	return nil
}

// serve runs b behind a control socket and returns a client for it.
func serve(t *testing.T, b control.Backend) *control.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "control.sock")
	l, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: control.Handler(b), ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	return &control.Client{Socket: path, Config: "/etc/ptthq.toml"}
}

func TestStatusGoesOverTheSocket(t *testing.T) {
	when := time.Date(2026, 3, 8, 10, 20, 30, 0, time.UTC)
	want := &control.Status{
		Role: "client", ID: "laptop", State: "running", Started: when, Uptime: control.Seconds(90 * time.Minute),
		Config: control.Config{
			File: "a.toml", Files: []string{"a.toml"}, Loaded: when,
			Reload: &control.Reload{OK: true, At: when, Took: control.Seconds(time.Millisecond)},
		},
		Links: []control.Link{
			{
				Relay: "r:30380", State: control.LinkConnected, Since: when,
				Figures: &control.Figures{
					RTT:  control.Seconds(1500 * time.Microsecond),
					Loss: 0.25,
				},
			},
			{
				Relay: "s:30380", State: control.LinkWaiting, Since: when,
				NextAttempt: when.Add(time.Second), LastError: "no answer",
			},
		},
		Connections: []control.Connection{{
			ID: "abcdefgh", Opened: when, Since: when,
			BytesUp: 1 << 60,
		}},
		Counters: control.Counters{Refused: map[string]uint64{"403": 1}},
	}
	got, err := serve(t, &backend{status: want}).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestSecondsAreNumbers(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", time.Second: "1", 1500 * time.Microsecond: "0.0015", 400 * time.Nanosecond: "0", 26 * time.Hour: "93600", -time.Second: "-1",
	} {
		got, err := json.Marshal(control.Seconds(d))
		if err != nil || string(got) != want {
			t.Errorf("%v: %s, %v; want %s", d, got, err, want)
		}
	}
	var s control.Seconds
	if err := json.Unmarshal([]byte(`"1s"`), &s); err == nil {
		t.Error("a string passes for seconds")
	}
}

func TestReloadTellsItsOutcome(t *testing.T) {
	b := &backend{}
	c := serve(t, b)
	for _, want := range []*control.Reload{
		{OK: true, At: time.Now().UTC(), Changes: []string{"peer nas: added"}},
		{
			At: time.Now().UTC(), Cause: control.CauseConfig, Error: "a.toml:1:2: bad",
			Faults: []control.Fault{{
				File: "a.toml", Line: 1, Column: 2, Key: "k", Message: "bad",
				Hint: "good",
			}},
		},
		{At: time.Now().UTC(), Cause: control.CauseRestart, Error: "only a restart"},
		{At: time.Now().UTC(), Cause: control.CauseHost, Error: "no such file"},
	} {
		b.reload = want
		got, err := c.Reload(t.Context())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
	fault := control.Fault{
		File: "a.toml", Line: 1, Column: 2, Key: "k", Message: "bad",
		Hint: "good",
	}
	if got := fault.String(); got != "a.toml:1:2: k: bad; good" {
		t.Errorf("a fault is printed as %q", got)
	}
}

func TestExplainAndLogLevel(t *testing.T) {
	c := serve(t, &backend{explanation: &control.Explanation{Role: "relay", Allowed: true}})
	q := control.Question{Client: "a b", Server: "n&s", Target: "unix:/x y"}
	got, err := c.Explain(t.Context(), q)
	if err != nil || got.Question != q || !got.Allowed {
		t.Errorf("got %+v, %v", got, err)
	}
	_, err = c.Explain(t.Context(), control.Question{})
	if refusal, ok := errors.AsType[*control.Error](err); !ok ||
		refusal.Error() != "no target; name one" {
		t.Errorf("a question without sense: %v", err)
	}
	if level, err := c.SetLogLevel(t.Context(), "debug"); err != nil || level.Level != "debug" {
		t.Errorf("got %+v, %v", level, err)
	}
	if _, err := c.SetLogLevel(t.Context(), "loud"); err == nil ||
		!strings.Contains(err.Error(), "no log level loud") {
		t.Errorf("a level that isn't one: %v", err)
	}
}

// What the socket's users do wrong they are told in JSON, too.
func TestRequestsThatMakeNoSense(t *testing.T) {
	c := serve(t, &backend{})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn,
		error,
	) {
		return new(net.Dialer).DialContext(ctx, "unix", c.Socket)
	}}
	defer transport.CloseIdleConnections()
	for _, r := range []struct {
		method, path, body string
		want               int
	}{
		{"GET", "/", "", 404},
		{"GET", "/v2/status", "", 404},
		{"GET", control.PathReload, "", 404},
		{"DELETE", control.PathStatus, "", 404},
		{"PUT", control.PathLogLevel, "debug", 400},
		{"PUT", control.PathLogLevel, `{"level": "` + strings.Repeat("x", 100_000) + `"}`, 400},
	} {
		request, err := http.NewRequestWithContext(t.Context(), r.method, "http://ptthqd"+r.path,
			strings.NewReader(r.body))
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		var refusal control.Error
		if err := json.NewDecoder(response.Body).Decode(&refusal); err != nil ||
			refusal.Message == "" || response.StatusCode != r.want {
			t.Errorf("%s %s: %d, %+v, %v; want %d", r.method, r.path, response.StatusCode, refusal,
				err, r.want)
		}
		_ = response.Body.Close()
	}
}

func TestWithoutADaemon(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for _, c := range []struct{ socket, config, want string }{
		{filepath.Join(dir, "none.sock"), "/etc/ptthq.toml", "`systemctl start ptthqd`"},
		{dead, "/etc/ptthq/office.toml", "`systemctl start ptthqd@office`"},
		{dead, "mine.toml", "`ptthqd -c mine.toml` starts it"},
		{dead, "", "`ptthqd -c FILE` starts it"},
	} {
		if runtime.GOOS != "linux" && strings.Contains(c.want, "systemctl") {
			continue
		}
		_, err := (&control.Client{Socket: c.socket, Config: c.config}).Status(t.Context())
		if !errors.Is(err, control.ErrNotRunning) || !strings.Contains(err.Error(), c.socket) ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s", c.config, err, c.want)
		}
	}
}

// A daemon of another version, or another program, is no reason for a riddle.
func TestAStrangerAtTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter,
		_ *http.Request,
	) {
		w.WriteHeader(http.StatusTeapot)
	}), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	c := &control.Client{Socket: path}
	_, err = c.Status(t.Context())
	if err == nil || !strings.Contains(err.Error(), "is it of another version") {
		t.Errorf("status: %v", err)
	}
	if _, err = c.Reload(t.Context()); err == nil ||
		!strings.Contains(err.Error(), "is it of another version") {
		t.Errorf("reload: %v", err)
	}
	if _, err = c.RawStatus(t.Context()); err == nil {
		t.Error("raw status: no error")
	}
}

func TestSocketPath(t *testing.T) {
	home := t.TempDir()
	for _, name := range []string{"HOME", "XDG_CONFIG_HOME", "AppData"} {
		t.Setenv(name, home)
	}
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	t.Setenv("RUNTIME_DIRECTORY", "")
	own, err := os.UserConfigDir()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ explicit, config, want string }{
		{"/x/y.sock", "/etc/ptthq.toml", "/x/y.sock"},
		{"", "/etc/ptthq.toml", "/run/ptthqd/control.sock"},
		{"", "/etc/../etc/ptthq.toml", "/run/ptthqd/control.sock"},
		{"", "/etc/ptthq/office.toml", "/run/ptthqd-office/control.sock"},
		{"", filepath.Join(own, "ptthq.toml"), "/run/user/7/ptthqd/control.sock"},
		{"", filepath.Join(own, "ptthq", "office.toml"), "/run/user/7/ptthqd-office/control.sock"},
		{"", "/srv/relay.toml", "/run/user/7/ptthqd-relay-136f3719/control.sock"},
		{"", "/etc/ptthq/sub/office.toml", "/run/user/7/ptthqd-office-76cd0700/control.sock"},
	} {
		if runtime.GOOS == "windows" {
			continue // its paths have volumes
		}
		if got := control.SocketPath(c.explicit, c.config); got != c.want {
			t.Errorf("%s: %s, want %s", c.config, got, c.want)
		}
	}
	t.Setenv("RUNTIME_DIRECTORY", "/run/a:/run/b")
	if got := control.SocketPath("", "/etc/ptthq.toml"); got != filepath.Join("/run/a",
		"control.sock") {
		t.Errorf("in a service: %s", got)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "made", "control.sock")
	l, err := control.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || runtime.GOOS != "windows" &&
		info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := control.Listen(t.Context(), path); err == nil ||
		!strings.Contains(err.Error(), "another ptthqd is running with it") {
		t.Errorf("one in use: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if l, err = control.Listen(t.Context(), path); err != nil {
		t.Fatalf("one left behind: %v", err)
	}
	_ = l.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket outlives its listener: %v", err)
	}

	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := control.Listen(t.Context(), file); err == nil ||
		!strings.Contains(err.Error(), "move it away") {
		t.Errorf("a file: %v", err)
	}
	if _, err := control.Listen(t.Context(),
		filepath.Join(dir, strings.Repeat("x", 200))); err == nil ||
		!strings.Contains(err.Error(), "--socket") {
		t.Errorf("a path that is too long: %v", err)
	}
}
