// Package daemon is the process around a role: it reads a config, runs the client, server or relay
// that the config describes, and keeps it in step with files, signals and requests.
//
// Its one idea: the roles work and know nothing of the world around them. Signals, files that
// change, the control socket and Prometheus are known here alone; the host itself is pkg/host.
//
//	err := daemon.Run(ctx, daemon.Options{Config: "/etc/ptthq.toml", Stderr: os.Stderr})
//
// The rooms of this package, by the prefix of their files:
//
//   - daemon.go: from the start to the end. role_*.go: the three roles behind one interface.
//   - reload.go: every reload, asked for by a signal, a request or a changed file. watch_*.go:
//     notices that files have changed, and waits until they are whole.
//   - view.go, view_relay.go: what a role knows at one moment, with the sums over it; status_*.go
//     and metrics_*.go print it. summary.go: the same in one line, made of counters.
//   - control_*.go: answers on the control socket. metrics_*.go: Prometheus.
//   - service_*.go: what systemd is told. tune_*.go: how the process fits its host.
//
// Run ends what it started, in reverse order. The control socket and the watcher outlive the drain
// of the role, so that the status can be asked meanwhile. All state hangs on one daemon value; the
// lock named reloading makes reloads follow one another.
package daemon

import (
	"context"
	"errors"
	"io"
	"log" //nolint:depguard // what libraries print by themselves is to go through the queue, too
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
	"ptthqd/pkg/ident"
)

// Options are what the command line says. The zero value of each field means its default.
type Options struct {
	Config    string    // the config file; required
	Socket    string    // the control socket; default control.SocketPath of Config
	LogFormat string    // host.LogAuto, LogText or LogJSON; default LogAuto
	Version   string    // for status and log
	Stderr    io.Writer // takes the log unless the journal does; default os.Stderr

	// OwnProcess says that nothing else runs in this process, so that the daemon may set the limits
	// of Go's runtime and the output of the standard logger.
	OwnProcess bool
}

// LoggedError is an error that is in the log already. The caller need not print it.
type LoggedError struct{ Err error }

func (e *LoggedError) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e *LoggedError) Unwrap() error { return e.Err }

// Run runs the daemon until ctx is done or a signal ends it, and returns when all that it started
// has ended. The error is config.Errors if the text of the config is wrong. It is a *LoggedError
// around another one if the log is JSON or goes to the journal.
func Run(ctx context.Context, o Options) error {
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	d := &daemon{
		options: o,
		started: time.Now(),
		service: host.NewService(),
		level:   new(slog.LevelVar),

		reloaded: make(chan struct{}, 1),
	}
	logs, err := host.OpenLog(o.LogFormat, o.Stderr, d.level, messageIDs)
	if err != nil {
		return err
	}
	defer logs.Close()
	d.log, d.logs = logs.Logger, logs
	if o.OwnProcess { // libraries write to the standard logger
		log.SetFlags(0)
		log.SetOutput(slog.NewLogLogger(d.log.Handler(), slog.LevelWarn).Writer())
	}
	err = d.run(ctx)
	if err == nil {
		return nil
	}
	d.service.Failed(err)
	if !logs.Journal() && o.LogFormat != host.LogJSON {
		return err
	}
	if faults, ok := errors.AsType[config.Errors](err); ok {
		for _, f := range faults {
			d.log.Error(msgFailed, "error", f.Error(), "file", f.File, "line", f.Line, "column",
				f.Column, "key", f.Key)
		}
	} else {
		d.log.Error(msgFailed, "error", err)
	}
	if logs.Journal() {
		logs.Close()
		<-time.After(lastWords)
	}
	return &LoggedError{err}
}

// lastWords is how long a failed process lives on. The journal looks up the unit of a line when it
// takes the line. If the process were gone, `journalctl -u ptthqd` would not show why it failed.
const lastWords = 300 * time.Millisecond

// The states of a daemon.
const (
	stateStarting = "starting"
	stateRunning  = "running"
	stateDraining = "draining"
)

// daemon is the state of Run.
type daemon struct {
	options  Options
	started  time.Time
	service  *host.Service
	log      *slog.Logger
	logs     *host.Log // where log goes
	level    *slog.LevelVar
	identity ident.PrivateKey
	role     role
	files    uint64 // the limit of open files
	memory   int64  // the control group's limit in bytes; 0 if there is none
	metrics  *metrics
	scraped  *metricsServer
	control  *controlListener

	background context.Context // done after the drain: everything ends
	state      atomic.Value    // of string
	loaded     atomic.Pointer[loaded]
	lastReload atomic.Pointer[control.Reload]
	reloads    atomic.Uint64 // that succeeded
	badReloads atomic.Uint64

	reloading  sync.Mutex    // one reload at a time
	attempts   atomic.Uint64 // reloads, good and bad; written under reloading
	considered atomic.Value  // of string: key of the last reading that was applied or refused
	reloaded   chan struct{} // of capacity 1: the config has changed

	stopAdapting func() // ends host.AdaptProcessors; nil if it does not run; under reloading
}

// loaded is the config in force.
type loaded struct {
	config   *config.Config
	snapshot *config.Snapshot
	files    map[string]os.FileInfo // by path, when they were read
	at       time.Time
}

func (d *daemon) run(ctx context.Context) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	signal.Ignore(syscall.SIGPIPE) // the reader of the log may go away

	background, end := context.WithCancel(context.WithoutCancel(ctx))
	d.metrics, d.scraped = newMetrics(d), &metricsServer{daemon: d}
	defer d.scraped.close()
	defer d.adaptProcessors(false)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer end()
	d.background = background
	d.state.Store(stateStarting)

	if err := d.prepare(); err != nil {
		return err
	}
	listener, err := control.Listen(background,
		control.SocketPath(d.options.Socket, d.options.Config))
	if err != nil {
		return err
	}
	d.control = newControlListener(listener, d.loaded.Load().config.Limits)
	helpers.Go(func() { d.serveControl(background) })
	d.scraped.start(background, d.loaded.Load().config.Metrics.Listen)
	helpers.Go(func() { bind.Retry(background, d.retryMetrics) })

	working, stop := context.WithCancel(background)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- d.role.Run(working) }() // supervise receives it in any case
	return d.supervise(ctx, stop, ended, signals, &helpers)
}

// prepare does all that must succeed before a socket is bound.
func (d *daemon) prepare() error {
	snapshot, err := config.ReadFiles(d.options.Config)
	if err != nil {
		return err
	}
	c, err := config.Parse(snapshot)
	if err != nil {
		return err
	}
	d.level.Set(c.LogLevel)
	d.loaded.Store(&loaded{c, snapshot, identify(snapshot), time.Now()})
	d.considered.Store(snapshot.Hash)
	begins := []any{"version", d.options.Version, "go", runtime.Version(), "role", string(c.Role)}
	if c.ID != "" {
		begins = append(begins, "id", c.ID)
	}
	d.log.Info("ptthqd begins",
		append(begins, "config", c.Path, "hash", shortHash(c.Hash), "pid", os.Getpid())...)
	for _, w := range c.Warnings() {
		d.log.Warn("config: "+w.Key+": "+w.Message,
			"file", w.File, "line", w.Line, "key", w.Key, "hint", w.Hint)
	}
	if trouble := host.ClockTrouble(time.Now(),
		append(slices.Clone(c.Files), c.PrivateKeyFile)...); trouble != "" {
		d.log.Warn(trouble, "hint", host.ClockRemedy)
	}
	if d.options.OwnProcess {
		d.memory = host.LimitMemory(os.DirFS("/"), d.log)
	} else {
		d.memory, _ = host.GroupMemory(os.DirFS("/"))
	}
	d.files = host.RaiseFileLimit()
	if d.files > 0 && d.files < fewFiles {
		d.log.Warn("few files may be open at once: each connection takes one",
			"limit", d.files, "hint", "raise LimitNOFILE= of the service, or ulimit -n")
	}
	if d.identity, err = loadKey(c, snapshot); err != nil {
		return err
	}
	if err := d.checkInherited(c); err != nil {
		return err
	}
	d.role, err = newRole(d, c)
	return err
}

// fewFiles is less than a node with some thousand connections needs.
const fewFiles = 4096

func shortHash(h string) string { return h[:min(12, len(h))] }

// supervise accompanies the role from its start to its end. ended gets the result of the role.
func (d *daemon) supervise(ctx context.Context, stop context.CancelFunc, ended <-chan error,
	signals <-chan os.Signal, helpers *sync.WaitGroup,
) error {
	ready := d.role.Ready()
	stopped := ctx.Done()
	stopping := false
	begin := func(why string) {
		stopping, stopped = true, nil
		d.state.Store(stateDraining)
		d.log.Info(msgStopping, "reason", why)
		helpers.Go(func() { d.reportDrain(d.background) })
		stop()
	}
	for {
		select {
		case <-ready:
			ready = nil
			if !stopping {
				d.begun(helpers)
			}
		case <-stopped:
			begin("asked to")
		case err := <-ended:
			if err == nil && !stopping {
				err = errors.New("internal error: the role has ended by itself")
			}
			if err == nil {
				d.log.Info(msgStopped, "uptime", time.Since(d.started).Round(time.Second))
			}
			return err
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				helpers.Go(func() { d.reload(d.background, "signal") })
			case stopping:
				d.log.Warn("second signal: connections are cut off", "signal", s.String())
				d.role.Force()
			default:
				begin(s.String())
			}
		}
	}
}

// begun is called once the role's sockets are bound. It starts what a running daemon needs.
func (d *daemon) begun(helpers *sync.WaitGroup) {
	d.state.Store(stateRunning)
	d.keepSockets()
	d.service.Ready(d.summary())
	d.log.Info(msgStarted, "uptime", time.Since(d.started).Round(time.Millisecond), "files",
		d.files)
	helpers.Go(func() { d.reportStatus(d.background) })
	helpers.Go(func() { d.feedWatchdog(d.background) })
	helpers.Go(func() { d.watch(d.background) })
	helpers.Go(func() { host.ReleaseMemory(d.background) })
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.adaptProcessors(d.loaded.Load().config.AdaptProcessors)
}
