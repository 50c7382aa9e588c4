package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
	"ptthqd/pkg/server"
)

// serveControl answers on the control socket until ctx is done, and closes it.
func (d *daemon) serveControl(ctx context.Context) {
	mux := http.NewServeMux()
	mux.Handle("/", control.Handler(d))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{
		Handler:        d.logRequests(d.authorize(mux)),
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
		BaseContext:    func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, callerKey{}, host.PeerOf(c.(*controlConn).Conn))
		},
	}
	server.SetKeepAlivesEnabled(false) // the deadlines are those of a connection's one request
	var closing sync.WaitGroup
	closing.Go(func() {
		<-ctx.Done()
		// A request may wait for the end of the daemon: none is worth more than a moment.
		patience, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(patience) != nil {
			_ = server.Close()
		}
	})
	defer closing.Wait()
	if err := server.Serve(d.control); !errors.Is(err, http.ErrServerClosed) {
		d.log.Error("the control socket has failed: status and reload can't be asked any more", "error", err)
	}
}

type callerKey struct{}

// openToAll are the requests that whoever may connect to the control socket may make: they change and cost nothing.
var openToAll = map[string]bool{
	"GET " + control.PathStatus:   true,
	"GET " + control.PathExplain:  true,
	"GET " + control.PathLogLevel: true,
}

// authorize leaves all but a look at things to root, the daemon's user, and the config's admin_group.
func (d *daemon) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, _ := r.Context().Value(callerKey{}).(host.User)
		group := d.loaded.Load().config.AdminGroup
		if !openToAll[r.Method+" "+r.URL.Path] && !administers(who, os.Geteuid(), group) {
			control.Refuse(w, http.StatusForbidden, &control.Error{
				Message: fmt.Sprintf("%s %s is for root and the user of the daemon", r.Method, r.URL.Path),
				Hint:    "use sudo, or name a group of yours as admin_group in the config",
			})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// administers tells whether a person may do all that the control socket has.
func administers(who host.User, daemon int, group string) bool {
	switch {
	case !who.Known, who.UID == 0, who.UID == daemon && daemon != host.Unmapped:
		return true
	case group == "":
		return false
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return false
	}
	id, err := strconv.Atoi(g.Gid)
	return err == nil && id != host.Unmapped && slices.Contains(who.Groups, id)
}

// logRequests tells who changes something.
func (d *daemon) logRequests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		level := slog.LevelDebug
		if r.Method != http.MethodGet {
			level = slog.LevelInfo
		}
		who, _ := r.Context().Value(callerKey{}).(host.User)
		d.log.Log(r.Context(), level, "control request", "method", r.Method, "path", r.URL.Path, "caller", cmp.Or(who.Text, "unknown"))
		next.ServeHTTP(w, r)
	})
}

// A controlListener is the control socket, whose connections are bounded in number and time by the config in force.
type controlListener struct {
	*boundedListener
	timeout atomic.Int64 // a time.Duration
}

func newControlListener(l net.Listener, limits config.Limits) *controlListener {
	c := &controlListener{boundedListener: newBoundedListener(l, limits.ControlRequests)}
	c.limit(limits)
	return c
}

// limit changes the limits, for the connections to come.
func (l *controlListener) limit(limits config.Limits) {
	l.resize(limits.ControlRequests)
	l.timeout.Store(int64(limits.ControlTimeout))
}

func (l *controlListener) Accept() (net.Conn, error) {
	conn, err := l.accept()
	if err != nil {
		return nil, err
	}
	timeout := time.Duration(l.timeout.Load())
	c := &controlConn{boundedConn: conn, read: time.Now().Add(timeout)}
	// A profile takes 30 s to make.
	if err := errors.Join(c.SetReadDeadline(c.read), c.SetWriteDeadline(c.read.Add(timeout))); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// A controlConn is a connection for one request, until when that must be read and answered.
type controlConn struct {
	*boundedConn
	read time.Time
}

// SetReadDeadline takes no deadline that is later than the connection's own: the HTTP server's none is the latest.
func (c *controlConn) SetReadDeadline(t time.Time) error {
	if t.IsZero() || t.After(c.read) {
		t = c.read
	}
	return c.boundedConn.SetReadDeadline(t)
}

// A boundedListener has at most so many connections open at a time; others wait in its queue.
type boundedListener struct {
	net.Listener
	mu     sync.Mutex
	change sync.Cond // of what follows
	most   int
	open   int
	closed bool
}

func newBoundedListener(l net.Listener, n int) *boundedListener {
	b := &boundedListener{Listener: l, most: n}
	b.change.L = &b.mu
	return b
}

// resize changes how many connections may be open. Those that are stay.
func (l *boundedListener) resize(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.most = n
	l.change.Broadcast()
}

// enter waits for room, and takes it unless the listener is closed.
func (l *boundedListener) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.open >= l.most && !l.closed {
		l.change.Wait()
	}
	if l.closed {
		return false
	}
	l.open++
	return true
}

func (l *boundedListener) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	l.change.Broadcast()
}

func (l *boundedListener) Accept() (net.Conn, error) {
	conn, err := l.accept()
	if err != nil {
		return nil, err // and no nil of a type
	}
	return conn, nil
}

func (l *boundedListener) accept() (*boundedConn, error) {
	if !l.enter() {
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		l.leave()
		return nil, err
	}
	return &boundedConn{Conn: conn, leave: sync.OnceFunc(l.leave)}, nil
}

func (l *boundedListener) Close() error {
	l.mu.Lock()
	l.closed = true
	l.change.Broadcast()
	l.mu.Unlock()
	return l.Listener.Close()
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// Status is what the control socket is asked for.
func (d *daemon) Status() *control.Status {
	s := d.describe()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	s.Process.Goroutines = runtime.NumGoroutine()
	s.Process.HeapBytes = memory.HeapAlloc
	s.Process.Files, s.Process.FilesLimit = host.OpenFiles(), d.files
	s.Process.GroupMemory, s.Process.GoMemoryLimit = d.memory, host.GoMemoryLimit()
	s.Process.LogDropped = d.logs.Dropped()
	s.Warnings = d.warnings(s)
	return s
}

// summary is what the service manager is told.
func (d *daemon) summary() string { return d.describe().Summary }

// describe is the status without what takes time to find out.
func (d *daemon) describe() *control.Status {
	l := d.loaded.Load()
	s := &control.Status{
		Role:      string(l.config.Role),
		ID:        l.config.ID,
		PublicKey: d.identity.Public().String(),
		Version:   d.options.Version,
		PID:       os.Getpid(),
		State:     d.state.Load().(string),
		Started:   d.started,
		Uptime:    control.Seconds(time.Since(d.started)),
		Config: control.Config{
			File:     l.config.Path,
			Files:    l.config.Files,
			Hash:     l.config.Hash,
			Loaded:   l.at,
			LogLevel: d.LogLevel().Level,
			Reload:   d.lastReload.Load(),
		},
	}
	d.role.Describe(s)
	s.Counters.Reloads, s.Counters.BadReload = d.reloads.Load(), d.badReloads.Load()
	if err := d.scraped.problem(); err != nil {
		problem, _ := bind.Problem(err)
		s.Summary += "; metrics: " + problem
	}
	if r := s.Config.Reload; r != nil && !r.OK {
		s.Summary += "; the config in the file is not in force: " + r.Error
	}
	return s
}

// warnings are what a person should act on.
func (d *daemon) warnings(s *control.Status) []control.Warning {
	var list []control.Warning
	warn := func(hint, format string, args ...any) {
		list = append(list, control.Warning{Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	if r := s.Config.Reload; r != nil && !r.OK {
		hint := "mend it, and it is taken over by itself, or by `ptthqd reload`"
		switch {
		case r.Cause == control.CauseRestart:
			hint = "restart the daemon, or undo the change"
		case r.Cause == control.CauseHost && !r.Retrying:
			hint = "mend it, then `ptthqd reload`: it is not tried again by itself, as that would interrupt listeners that are in use"
		}
		warn(hint, "the config in the file is not in force: %s", r.Error)
	}
	if stale := d.staleKey(); stale != "" {
		warn(staleKeyHint, "%s", stale)
	}
	for _, l := range s.Links {
		if l.Problem != "" {
			warn(OwnKeyHint, "relay %s: %s", l.Relay, l.Problem)
		}
	}
	for _, l := range s.Links {
		if l.Name != "" && l.Name != s.ID {
			warn(OwnNameHint(l.Name), "relay %s: %s", l.Relay, OtherName(l.Name, s.ID))
		}
	}
	for _, reason := range lostLinks(s.Links) {
		warn("", "%s", reason)
	}
	for _, p := range s.Peers {
		if p.Problem != "" {
			warn(OwnKeyHint+"; one node that is restarted again and again without a word looks the same", "peer %s: %s", p.ID, p.Problem)
		}
	}
	for _, m := range s.Mappings {
		if m.Problem != "" {
			warn(m.Hint, "mapping %s: %s", m.Name, m.Problem)
		}
	}
	if err := d.scraped.problem(); err != nil {
		problem, hint := bind.Problem(err)
		warn(hint, "metrics: %s", problem)
	}
	for _, l := range s.Listeners {
		if l.Problem != "" {
			warn(l.Hint, "listener %s: %s", l.Listen, l.Problem)
		}
		if l.Dropped > 0 {
			warn("raise net.core.rmem_max, or use the socket unit", "the kernel has dropped %d packets as the receive buffer of %s was full", l.Dropped, l.Address)
		}
	}
	for _, short := range s.Shortages {
		warn(fmt.Sprintf("see what it leaves unread; or raise limits.%s", short.Limit),
			"limits.%s: each connection with %s goes on with 64 KiB a round trip, as together they hold %d MiB, of which %d are left for all others",
			short.Limit, short.Peer, short.Held>>20, short.Free>>20)
	}
	if s.Process.FilesLimit > 0 && uint64(s.Process.Files) > s.Process.FilesLimit/10*9 {
		warn("raise LimitNOFILE= of the service", "%d of %d files are open", s.Process.Files, s.Process.FilesLimit)
	}
	if trouble := d.logs.Trouble(); trouble != "" {
		warn("lines wait and are then dropped; look after what stderr is connected to, or systemd-journald", "%s: %d lines are missing", trouble, s.Process.LogDropped)
	}
	for _, w := range d.loaded.Load().config.Warnings() {
		warn(w.Hint, "%s:%d: %s: %s", w.File, w.Line, w.Key, w.Message)
	}
	return list
}

// OtherName says that a relay calls a node otherwise than its own config does.
func OtherName(name, id string) string {
	return fmt.Sprintf("it calls this node %q, and the config here has id = %q", name, id)
}

// OwnNameHint says what to do about it.
func OwnNameHint(name string) string {
	return fmt.Sprintf("write id = %q here when it is restarted next, as a reload can't take that over, or have the relay's administrator change the id in its [[peers]]: all goes on meanwhile", name)
}

// lostLinks says why links are down: each reason once, with all relays that it holds for.
func lostLinks(links []control.Link) (reasons []string) {
	relays := make(map[string][]string)
	var order []string
	for _, l := range links {
		if l.State == control.LinkConnected || l.LastError == "" || l.Problem != "" {
			continue
		}
		if relays[l.LastError] == nil {
			order = append(order, l.LastError)
		}
		relays[l.LastError] = append(relays[l.LastError], l.Relay)
	}
	for _, reason := range order {
		if these := relays[reason]; len(these) == 1 {
			reasons = append(reasons, fmt.Sprintf("relay %s is not connected: %s", these[0], reason))
		} else {
			reasons = append(reasons, fmt.Sprintf("the relays %s are not connected: %s", strings.Join(these, ", "), reason))
		}
	}
	return reasons
}

// Explain answers by the config in force.
func (d *daemon) Explain(q control.Question) (*control.Explanation, error) {
	return Explain(d.loaded.Load().config, new(server.Host), q)
}

// LogLevel is the level in force.
func (d *daemon) LogLevel() control.LogLevel {
	return control.LogLevel{Level: strings.ToLower(d.level.Level().String())}
}

// SetLogLevel changes it.
func (d *daemon) SetLogLevel(to control.LogLevel) error {
	var level slog.Level
	switch to.Level {
	case "debug", "info", "warn", "error":
		_ = level.UnmarshalText([]byte(to.Level)) // it is one that slog knows
	default:
		return &control.Error{Message: fmt.Sprintf("there is no log level %q", to.Level), Hint: "use debug, info, warn or error"}
	}
	d.level.Set(level)
	d.log.Info("log level changed", "level", to.Level)
	return nil
}

// Reload is for the command: it acts at once.
func (d *daemon) Reload(ctx context.Context) *control.Reload {
	// Who asked may go away; a reload that has begun is finished all the same.
	return d.reload(context.WithoutCancel(ctx), "command")
}
