package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
)

// metricsServer serves metrics, /healthz and /readyz over HTTP at the place in the config. Its
// methods must not be called concurrently, except problem.
type metricsServer struct {
	daemon  *daemon
	at      config.Listen // where it listens; zero for nowhere
	servers []*http.Server
	serving sync.WaitGroup
	failed  atomic.Pointer[error] // why the place can't be bound; nil if it is bound
}

// The bounds of requests: everyone who can reach the address is served.
const (
	metricsTimeout     = 10 * time.Second // to read a request, and to answer it
	metricsConnections = 16               // at once; others wait
)

// start serves at a place, or at none (zero). If the place can't be bound, retry tries again.
func (m *metricsServer) start(ctx context.Context, at config.Listen) {
	err := m.open(ctx, at)
	if err == nil {
		return
	}
	m.at = at
	if last := m.failed.Swap(&err); last == nil || (*last).Error() != err.Error() {
		problem, hint := bind.Problem(err)
		m.daemon.log.Warn("metrics are not served", slog.String("error", problem),
			slog.String("hint", hint))
	}
}

// retry binds the place if it could not be bound before.
func (m *metricsServer) retry(ctx context.Context) {
	if m.failed.Load() != nil {
		m.start(ctx, m.at)
	}
}

// problem returns why metrics are not served though the config says so; nil if they are. It may be
// called from any goroutine.
func (m *metricsServer) problem() error {
	if err := m.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// move serves at another place, or at none (zero). It binds the new place before it leaves the old
// one, unless they overlap. If it fails, nothing has changed. undo moves back.
func (m *metricsServer) move(ctx context.Context, to config.Listen) (undo func(), err error) {
	from := m.at
	if to == from {
		return func() {}, nil
	}
	if !from.IsZero() && from.Overlaps(to) {
		m.close()
		if err := m.open(ctx, to); err != nil {
			m.start(ctx, from)
			return nil, fmt.Errorf("metrics: %w", err)
		}
	} else {
		old := m.servers
		if err := m.open(ctx, to); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		stop(old)
	}
	return func() {
		m.close()
		m.start(ctx, from)
	}, nil
}

// open binds all sockets of a place, or none, and begins to serve.
func (m *metricsServer) open(ctx context.Context, at config.Listen) error {
	bound := new(bind.Listener)
	if !at.IsZero() {
		var err error
		if bound, err = new(bind.Binder).Listen(ctx, at, 0); err != nil {
			return err
		}
	}
	m.at, m.servers = at, nil
	m.failed.Store(nil)
	for _, l := range bound.Sockets {
		server := &http.Server{
			Handler:           m.handler(),
			ReadHeaderTimeout: metricsTimeout,
			ReadTimeout:       metricsTimeout,
			WriteTimeout:      2 * metricsTimeout,
			IdleTimeout:       2 * time.Minute, // most scrapes are a minute apart
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(m.daemon.log.Handler(), slog.LevelDebug),
		}
		m.servers = append(m.servers, server)
		m.serving.Go(func() {
			if err := server.Serve(newBoundedListener(l.Socket,
				metricsConnections)); !errors.Is(err, http.ErrServerClosed) {
				m.daemon.log.Error("metrics are not served any more",
					slog.String("listener", at.String()), slog.Any("error", err))
			}
		})
		m.daemon.log.Info("serving metrics", slog.String("address", l.Socket.Addr().String()))
	}
	return nil
}

// close stops serving and waits for that.
func (m *metricsServer) close() {
	stop(m.servers)
	m.at, m.servers = config.Listen{}, nil
	m.failed.Store(nil)
	m.serving.Wait()
}

func stop(servers []*http.Server) {
	for _, s := range servers {
		_ = s.Close() // an interrupted scrape is tried again
	}
}

func (m *metricsServer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.daemon.metrics.registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(m.daemon.log.Handler(), slog.LevelWarn),
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: metricsConnections,
		Timeout:             metricsTimeout,
	}))
	proof := &proof{daemon: m.daemon}
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := proof.ask(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		state, _ := m.daemon.state.Load().(string)
		if state != stateRunning {
			http.Error(w, state, http.StatusServiceUnavailable)
			return
		}
		if unbound := m.daemon.role.Unbound(); len(unbound) > 0 {
			http.Error(w, strings.Join(unbound, "\n"), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return m.forHost(mux)
}

// forHost refuses requests that name another host. Otherwise a web page whose host name leads to
// this address could have a browser read the metrics.
func (m *metricsServer) forHost(next http.Handler) http.Handler {
	own, _ := os.Hostname()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		names := append([]string{"localhost", strings.ToLower(own)},
			m.daemon.loaded.Load().config.Metrics.Hosts...)
		if !hostAllowed(r.Host, names) {
			text := fmt.Sprintf("%q is not a name of this host: ask by its IP address, "+
				"or add the name to metrics.hosts in the config", r.Host)
			http.Error(w, text, http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// hostAllowed reports whether a Host header is an IP address or one of the names. No browser sends
// an empty one, as HTTP/1.0 allows.
func hostAllowed(host string, names []string) bool {
	if host == "" {
		return true
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	return name != "" && slices.Contains(names, name)
}

// proof checks for many requests whether the daemon works. One check runs at a time: it hangs if
// the daemon does, and all requests learn that.
type proof struct {
	daemon *daemon

	mu      sync.Mutex
	running chan struct{} // closed when the running check ends; nil if none runs
	result  error         // of the last check
}

// proofTime is how long a check may take before the daemon counts as hung.
const proofTime = 5 * time.Second

func (p *proof) ask(ctx context.Context) error {
	p.mu.Lock()
	done := p.running
	if done == nil {
		done = make(chan struct{})
		p.running = done
		go p.run(done) // ends with the daemon, unless a lock is held for ever
	}
	p.mu.Unlock()
	timeout := time.NewTimer(proofTime)
	defer timeout.Stop()
	select {
	case <-done:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.result
	case <-timeout.C:
		return fmt.Errorf("something hangs: no answer within %v", proofTime)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p *proof) run(done chan struct{}) {
	err := p.daemon.prove(p.daemon.background, proofTime)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.result, p.running = err, nil
	close(done)
}
