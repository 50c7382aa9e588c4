package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
)

// reload reads the config now and applies it, or changes nothing.
func (d *daemon) reload(ctx context.Context, trigger string) *control.Reload {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	begun := time.Now()
	snapshot, err := config.ReadFiles(d.options.Config)
	return d.applyLocked(ctx, trigger, begun, snapshot, err)
}

// applyLocked is what every reload does: validate, compare, apply or change nothing, and report.
// err is why the files could not be read. The caller holds the lock of reloads.
func (d *daemon) applyLocked(ctx context.Context, trigger string, begun time.Time,
	snapshot *config.Snapshot, err error,
) *control.Reload {
	if d.state.Load() == stateDraining {
		return &control.Reload{
			Trigger: trigger, At: time.Now(), Cause: control.CauseHost, Error: "the daemon is " +
				"stopping",
		}
	}
	d.attempts.Add(1)
	if trigger != triggerRetry {
		d.service.Reloading()
	}
	read := reading{snapshot: snapshot, err: err}
	d.considered.Store(read.key())
	result := &control.Reload{Trigger: trigger, Retrying: true}
	if err == nil {
		err = d.exchange(ctx, snapshot, result)
	}
	result.OK = err == nil
	result.At, result.Took = time.Now(), control.Seconds(time.Since(begun))
	if err != nil {
		blame(result, err)
	}
	if err == nil {
		if result.Restart = d.staleKey(); result.Restart != "" {
			result.Restart += "; " + staleKeyHint
		}
	}
	result.Retrying = result.Retrying && result.Cause == control.CauseHost
	if last := d.lastReload.Load(); err == nil && len(result.Changes) == 0 && last != nil &&
		last.OK && time.Since(last.At) < recently {
		result.Already = append(slices.Clone(last.Already), last.Changes...)
	}
	if last := d.lastReload.Load(); trigger == triggerRetry && !result.OK &&
		last.Error == result.Error {
		return result // the same failure was reported before
	}
	d.lastReload.Store(result)
	d.tell(result)
	d.service.Ready(d.summary())
	select {
	case d.reloaded <- struct{}{}: // the watcher may have to look elsewhere
	default:
	}
	return result
}

// recently is how long a reload that finds nothing new reports what the one before has changed. The
// watcher may have applied an edit just before `ptthqd reload` was typed.
const recently = 10 * time.Second

// triggerRetry is the trigger of a reload that is tried again by itself.
const triggerRetry = "retry"

// again retries a reload that has failed for a fault of the host. If the files have changed since,
// checkFiles takes care of them: it waits until they are written.
func (d *daemon) again(ctx context.Context) {
	if r := d.lastReload.Load(); r == nil || !r.Retrying {
		return
	}
	begun, attempts := time.Now(), d.attempts.Load()
	found := d.readFiles()
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if found.err == nil && found.key() == d.considered.Load() && d.attempts.Load() == attempts {
		d.applyLocked(ctx, triggerRetry, begun, found.snapshot, nil)
	}
}

// interrupts reports whether applying a config would close listeners that are in use, to bind them
// again if it fails. Such a reload is not retried by itself.
func interrupts(now, next *config.Config, diff config.Diff) bool {
	at, to := now.Metrics.Listen, next.Metrics.Listen
	return at != to && !at.IsZero() && at.Overlaps(to) ||
		slices.ContainsFunc(diff.Mappings,
			func(m config.MappingChange) bool { return len(m.Overlaps) > 0 })
}

// keepSockets has the service manager keep the present sockets of the role.
func (d *daemon) keepSockets() {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.keepLocked(d.background)
}

func (d *daemon) keepLocked(ctx context.Context) {
	if err := d.service.Keep(ctx, d.role.Sockets()); err != nil {
		d.log.Warn("sockets will not survive a restart", "error", err)
	}
}

// retryMetrics binds the metrics' listener if it could not be bound, unless a reload runs.
func (d *daemon) retryMetrics() {
	if d.reloading.TryLock() {
		defer d.reloading.Unlock()
		d.scraped.retry(d.background)
	}
}

// exchange applies what was read, or changes nothing.
func (d *daemon) exchange(
	ctx context.Context, snapshot *config.Snapshot, result *control.Reload,
) error {
	if err := lost(d.loaded.Load().snapshot, snapshot); err != nil {
		return err
	}
	next, err := config.Parse(snapshot)
	if err != nil {
		return err
	}
	if faults := emptied(d.loaded.Load().snapshot, snapshot); len(faults) > 0 {
		return faults
	}
	for _, w := range next.Warnings() {
		result.Warnings = append(result.Warnings, w.String())
	}
	now := d.loaded.Load().config
	diff := config.Compare(now, next)
	if len(diff.Restart) > 0 {
		return &restartError{diff.Restart}
	}
	result.Changes = diff.Lines()
	result.Retrying = !interrupts(now, next, diff)
	if err := d.makeRoom(ctx, diff); err != nil {
		d.log.Warn("sockets kept for a restart may be in the way", "error", err)
	}
	undo, err := d.scraped.move(d.background, next.Metrics.Listen)
	if err != nil {
		return err
	}
	// Apply also what differs in its place alone: logs and status name the places.
	err = d.role.Apply(ctx, next)
	d.keepLocked(ctx)
	if err != nil {
		undo()
		return err
	}
	if next.LogLevel != now.LogLevel {
		d.level.Set(next.LogLevel)
	}
	if next.AdaptProcessors != now.AdaptProcessors {
		d.adaptProcessors(next.AdaptProcessors)
	}
	d.control.limit(next.Limits)
	d.loaded.Store(&loaded{next, snapshot, identify(snapshot), time.Now()})
	return nil
}

// makeRoom has the service manager close its copies of listeners that others will overlap.
func (d *daemon) makeRoom(ctx context.Context, diff config.Diff) error {
	released := make(map[string]bool)
	for _, m := range diff.Mappings {
		for _, name := range m.Overlaps {
			released[name] = true
		}
	}
	var names []string
	for _, m := range diff.Mappings {
		if m.Old == nil || !released[m.Old.Name] {
			continue
		}
		for _, addr := range m.Old.Listen.Addrs() {
			names = append(names, host.FDName("stream", addr.String()))
		}
	}
	return d.service.Drop(ctx, names)
}

// restartError says that the config changes what only a restart can change.
type restartError struct{ settings []config.Setting }

func (e *restartError) Error() string {
	changes := make([]string, len(e.settings))
	for i, s := range e.settings {
		changes[i] = fmt.Sprintf("%s from %s to %s", s.Key, cmp.Or(s.Old, "nothing"),
			cmp.Or(s.New, "nothing"))
	}
	return "only a restart can change " + strings.Join(changes, " and ")
}

// blame writes into the answer why a reload has failed.
func blame(r *control.Reload, err error) {
	r.Error = err.Error()
	r.Cause = control.CauseHost
	if _, ok := errors.AsType[*restartError](err); ok {
		r.Cause = control.CauseRestart
	}
	faults, ok := errors.AsType[config.Errors](err)
	if !ok {
		return
	}
	r.Cause = control.CauseConfig
	if len(faults) > 0 {
		r.Error = faults[0].Error()
	}
	more := len(faults) - 1
	for _, f := range faults {
		fault := control.Fault{
			File: f.File, Line: f.Line, Column: f.Column, Key: f.Key,
			Message: f.Message, Hint: f.Hint,
		}
		if f.Others > 0 {
			fault.Hint += fmt.Sprintf(" (and %d more)", f.Others)
			more += f.Others
		}
		r.Faults = append(r.Faults, fault)
	}
	if more > 0 {
		r.Error = fmt.Sprintf("%v (and %d more)", faults[0].Error(), more)
	}
}

// tell counts and logs a reload.
func (d *daemon) tell(r *control.Reload) {
	if !r.OK {
		d.badReloads.Add(1)
		d.log.Error(msgReloadFailed, "error", r.Error, "trigger", r.Trigger, "cause", r.Cause)
		for _, f := range r.Faults[min(1, len(r.Faults)):] {
			d.log.Error("another fault in the config", "error",
				fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Message))
		}
		return
	}
	d.reloads.Add(1)
	d.log.Info(msgReloaded, "trigger", r.Trigger, "changes", len(r.Changes), "took",
		time.Duration(r.Took).Round(time.Microsecond),
		"hash", shortHash(d.loaded.Load().config.Hash))
	for _, line := range r.Changes {
		d.log.Info("config change", "change", line)
	}
	for _, w := range r.Warnings {
		d.log.Warn("config: " + w)
	}
	if r.Restart != "" {
		d.log.Warn(r.Restart)
	}
}
