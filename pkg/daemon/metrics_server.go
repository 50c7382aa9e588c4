package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"ptthqd/pkg/config"
)

// A metricsServer serves metrics and the state of the daemon over HTTP, where the config says so, and moves when that
// changes. Its methods are called by one goroutine at a time.
type metricsServer struct {
	daemon  *daemon
	at      config.Listen // where it listens; zero for nowhere
	servers []*http.Server
	serving sync.WaitGroup
}

// What a scraper may do: whoever can reach the address is let in.
const (
	metricsTimeout     = 10 * time.Second // for a request to be read, and for its answer to be made
	metricsConnections = 16               // at once; others wait
)

// move has metrics served at another place, or at none. It binds the new one before it leaves the old one, unless they
// overlap. If it fails, nothing has changed. undo goes back.
func (m *metricsServer) move(ctx context.Context, to config.Listen) (undo func(), err error) {
	from := m.at
	if to == from {
		return func() {}, nil
	}
	if !from.IsZero() && from.Overlaps(to) {
		m.close()
		if err := m.open(ctx, to); err != nil {
			return nil, errors.Join(err, m.open(ctx, from))
		}
	} else {
		old := m.servers
		if err := m.open(ctx, to); err != nil {
			return nil, err
		}
		stop(old)
	}
	return func() {
		m.close()
		if err := m.open(ctx, from); err != nil {
			m.daemon.log.Error("the metrics' listener is lost", slog.Any("error", err))
		}
	}, nil
}

// open binds and begins to serve, all of an address or nothing.
func (m *metricsServer) open(ctx context.Context, at config.Listen) error {
	var listeners []net.Listener
	var missing error // a family of the loopback that this host hasn't
	addrs := at.Addrs()
	for _, addr := range addrs {
		l, err := new(net.ListenConfig).Listen(ctx, tcpNetwork(addr), addr.String())
		switch {
		case err == nil:
			listeners = append(listeners, l)
		case len(addrs) > 1 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)):
			missing = err
		default:
			for _, l := range listeners {
				_ = l.Close()
			}
			return metricsError(addr.String(), err)
		}
	}
	if len(listeners) == 0 && len(addrs) > 0 {
		return metricsError(at.String(), missing)
	}
	m.at, m.servers = at, nil
	for _, l := range listeners {
		server := &http.Server{
			Handler:           m.handler(),
			ReadHeaderTimeout: metricsTimeout,
			ReadTimeout:       metricsTimeout,
			WriteTimeout:      2 * metricsTimeout,
			IdleTimeout:       2 * time.Minute, // scrapes are a minute apart, as a rule
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          slog.NewLogLogger(m.daemon.log.Handler(), slog.LevelDebug),
		}
		m.servers = append(m.servers, server)
		m.serving.Go(func() {
			if err := server.Serve(newBoundedListener(l, metricsConnections)); !errors.Is(err, http.ErrServerClosed) {
				m.daemon.log.Error("metrics are not served any more", slog.String("listener", at.String()), slog.Any("error", err))
			}
		})
		m.daemon.log.Info("serving metrics", slog.String("address", l.Addr().String()))
	}
	return nil
}

// close ends all service.
func (m *metricsServer) close() {
	stop(m.servers)
	m.at, m.servers = config.Listen{}, nil
	m.serving.Wait()
}

func stop(servers []*http.Server) {
	for _, s := range servers {
		_ = s.Close() // a scrape that is cut off is made again
	}
}

// tcpNetwork makes net.Listen bind exactly the address: with "tcp", 0.0.0.0 would be both families.
func tcpNetwork(addr netip.AddrPort) string {
	switch {
	case addr.Addr().Is4():
		return "tcp4"
	case addr.Addr().IsUnspecified():
		return "tcp"
	}
	return "tcp6"
}

func metricsError(at string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = ": another process listens there (ss -ltnp shows which): stop it, or choose another address for metrics.listen"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = ": no interface of this host has the address"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return fmt.Errorf("serve metrics on %s: %w%s", at, err, hint)
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
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// A proof finds out whether the daemon works, for many who ask, one at a time: where something hangs it hangs too, and the
// others are told.
type proof struct {
	daemon *daemon

	mu      sync.Mutex
	running chan struct{} // closed when the proof under way has ended
	result  error         // of it, once it has
}

// proofTime is how long the proof may take before the daemon counts as ill.
const proofTime = 5 * time.Second

func (p *proof) ask(ctx context.Context) error {
	p.mu.Lock()
	done := p.running
	if done == nil {
		done = make(chan struct{})
		p.running = done
		go p.run(done) // ends with the daemon's background, unless a lock hangs for ever
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
