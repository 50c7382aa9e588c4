package daemon

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/fsnotify/fsnotify"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
)

// The times of watching.
const (
	// gatherTime is how long further events are waited for before the files are read: an editor makes several.
	gatherTime = 30 * time.Millisecond
	// settleTime is how far apart two equal reads must be: who writes has finished then.
	settleTime = 300 * time.Millisecond
	// rewriteTime is the same for a file that is written in place. One that is put in another's place is whole at once; this
	// one may be half, and half a file must revoke nobody.
	rewriteTime = time.Second
	// goneTime is how long a file that has vanished counts as still there, and one that is shorter than before, being
	// written in place, as not yet written. It costs nothing: `ptthqd reload` acts at once.
	goneTime = 10 * time.Second
	// pollTime is how often the files are read where the system can't watch them, and where they can't be used for a
	// fault of the host: a volume that is mounted again makes no event.
	pollTime = 5 * time.Second
)

// watch reloads the config when its files change, until ctx is done.
func (d *daemon) watch(ctx context.Context) {
	ticker := time.NewTicker(pollTime)
	defer ticker.Stop()
	watcher, err := fsnotify.NewWatcher()
	blind := err != nil
	if blind {
		d.log.Warn("the config can't be watched: it is read every few seconds instead", "every", pollTime, "error", err,
			"hint", "raise fs.inotify.max_user_instances")
		watcher = &fsnotify.Watcher{}
	} else {
		defer func() { _ = watcher.Close() }()
	}
	complained := false
	for {
		if !blind {
			if err := lookAt(watcher, config.Watches(d.options.Config, d.loaded.Load().snapshot)); err != nil && !complained {
				complained = true
				d.log.Warn("a directory of the config can't be watched: changes there need `ptthqd reload`", "error", err,
					"hint", "raise fs.inotify.max_user_watches, or let the daemon's user read the directory")
			}
		}
		// What changed before it was looked at makes no event.
		for d.checkFiles(ctx) {
		}
		var poll <-chan time.Time
		if r := d.lastReload.Load(); blind || r != nil && r.Cause == control.CauseHost {
			poll = ticker.C
		}
		select {
		case <-ctx.Done():
			return
		case <-poll:
			d.again(ctx)
		case <-d.reloaded: // it may include other directories now
		case <-watcher.Events:
			d.gather(ctx, watcher)
		case err := <-watcher.Errors: // an overflow of the queue: something has changed
			d.log.Debug("watching the config", "error", err)
		}
	}
}

// lookAt watches all the paths. One that is watched already is watched again: there may be another directory of that name
// now. Those that are of no interest any more are let go.
func lookAt(w *fsnotify.Watcher, paths []string) error {
	wanted := make(map[string]bool, len(paths))
	var failed error
	for _, p := range paths {
		wanted[p] = true
		if err := w.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	for _, p := range w.WatchList() {
		if !wanted[p] {
			_ = w.Remove(p) // it has gone by itself, or goes now
		}
	}
	return failed
}

// gather takes the events of gatherTime together.
func (d *daemon) gather(ctx context.Context, w *fsnotify.Watcher) {
	timer := time.NewTimer(gatherTime)
	defer timer.Stop()
	for {
		select {
		case <-w.Events:
		case err := <-w.Errors:
			d.log.Debug("watching the config", "error", err)
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// checkFiles reloads the config if its files say something new. It tells whether it was overtaken by a command that has read
// them meanwhile, and is to look again.
func (d *daemon) checkFiles(ctx context.Context) (overtaken bool) {
	begun, attempts := time.Now(), d.attempts.Load()
	now := d.loaded.Load()
	found, overtaken := settle(ctx, now, d.readFiles, d.considered.Load().(string), d.reloaded)
	if found == nil {
		return overtaken
	}
	d.reloading.Lock()
	defer d.reloading.Unlock()
	if d.attempts.Load() != attempts {
		return true // what the command has read is newer, be it good or bad
	}
	d.applyLocked(ctx, "watch", begun, found.snapshot, found.err)
	return false
}
