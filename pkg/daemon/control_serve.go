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
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

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
	server.SetKeepAlivesEnabled(false) // a connection has deadlines for one request
	var closing sync.WaitGroup
	closing.Go(func() {
		<-ctx.Done()
		// A request may be waiting for the daemon to end: give it a second.
		patience, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if server.Shutdown(patience) != nil {
			_ = server.Close()
		}
	})
	defer closing.Wait()
	if err := server.Serve(d.control); !errors.Is(err, http.ErrServerClosed) {
		d.log.Error("the control socket has failed: status and reload can't be asked any more",
			"error", err)
	}
}

type callerKey struct{}

// openToAll are the requests that everyone who can connect may make. They change and cost nothing.
var openToAll = map[string]bool{
	"GET " + control.PathStatus:   true,
	"GET " + control.PathExplain:  true,
	"GET " + control.PathLogLevel: true,
}

// authorize refuses all requests but those openToAll, unless they come from root, the daemon's user
// or a member of the config's admin_group.
func (d *daemon) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, _ := r.Context().Value(callerKey{}).(host.User)
		group := d.loaded.Load().config.AdminGroup
		if !openToAll[r.Method+" "+r.URL.Path] && !administers(who, os.Geteuid(), group) {
			control.Refuse(w, http.StatusForbidden, &control.Error{
				Message: fmt.Sprintf("%s %s is for root and the user of the daemon", r.Method,
					r.URL.Path),
				Hint: "use sudo, or name a group of yours as admin_group in the config",
			})
			return
		}
		next.ServeHTTP(w, r)
	})
}

// administers reports whether a user may make all requests.
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

// logRequests logs each request with its caller: changes at level info, others at debug.
func (d *daemon) logRequests(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		level := slog.LevelDebug
		if r.Method != http.MethodGet {
			level = slog.LevelInfo
		}
		who, _ := r.Context().Value(callerKey{}).(host.User)
		d.log.Log(r.Context(), level, "control request", "method", r.Method, "path", r.URL.Path,
			"caller", cmp.Or(who.Text, "unknown"))
		next.ServeHTTP(w, r)
	})
}

// Explain implements control.Backend, by the config in force.
func (d *daemon) Explain(q control.Question) (*control.Explanation, error) {
	return Explain(d.loaded.Load().config, new(server.Host), q)
}

// LogLevel implements control.Backend.
func (d *daemon) LogLevel() control.LogLevel {
	return control.LogLevel{Level: strings.ToLower(d.level.Level().String())}
}

// SetLogLevel implements control.Backend.
func (d *daemon) SetLogLevel(to control.LogLevel) error {
	var level slog.Level
	switch to.Level {
	case "debug", "info", "warn", "error":
		_ = level.UnmarshalText([]byte(to.Level)) // slog knows these
	default:
		return &control.Error{
			Message: fmt.Sprintf("there is no log level %q", to.Level),
			Hint:    "use debug, info, warn or error",
		}
	}
	d.level.Set(level)
	d.log.Info("log level changed", "level", to.Level)
	return nil
}

// Reload implements control.Backend.
func (d *daemon) Reload(ctx context.Context) *control.Reload {
	// A reload that has begun is finished, even if the client goes away.
	return d.reload(context.WithoutCancel(ctx), "command")
}
