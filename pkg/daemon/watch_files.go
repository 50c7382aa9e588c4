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
	// gatherTime is the wait for further events before the files are read: an editor causes
	// several.
	gatherTime = 30 * time.Millisecond
	// settleTime is the time between two equal reads after which the writer counts as finished.
	settleTime = 300 * time.Millisecond
	// rewriteTime is the same for a file that is written in place. A file that replaces another one
	// is whole at once; this one may be half written, and half a file must revoke nobody.
	rewriteTime = time.Second
	// goneTime is the wait for a vanished file to come back, and for a file that is written in
	// place to become as long as it was. `ptthqd reload` does not wait.
	goneTime = 10 * time.Second
	// pollTime is the time between two reads if the system can't watch the files, or while a fault
	// of the host keeps them from being used: a volume that is mounted again causes no event.
	pollTime = 5 * time.Second
)

// watch reloads the config when its files change, until ctx is done.
func (d *daemon) watch(ctx context.Context) {
	ticker := time.NewTicker(pollTime)
	defer ticker.Stop()
	watcher, err := fsnotify.NewWatcher()
	blind := err != nil
	if blind {
		d.log.Warn("the config can't be watched: it is read every few seconds instead",
			"every", pollTime, "error", err, "hint", "raise fs.inotify.max_user_instances")
		watcher = &fsnotify.Watcher{}
	} else {
		defer func() { _ = watcher.Close() }()
	}
	complained := false
	for {
		if !blind {
			err := lookAt(watcher, config.Watches(d.options.Config, d.loaded.Load().snapshot))
			if err != nil && !complained {
				complained = true
				d.log.Warn("a directory of the config can't be watched: changes there need "+
					"`ptthqd reload`",
					"error", err, "hint", "raise fs.inotify.max_user_watches, "+
						"or let the daemon's user read the directory")
			}
		}
		// A change before the watch began causes no event.
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
		case <-d.reloaded: // the config may include other directories now
		case <-watcher.Events:
			d.gather(ctx, watcher)
		case err := <-watcher.Errors: // the queue overflows: something has changed
			d.log.Debug("watching the config", "error", err)
		}
	}
}

// lookAt watches the paths and no others. It also adds paths that are watched already: there may be
// another directory of that name now.
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
			_ = w.Remove(p) // fails if the path is gone
		}
	}
	return failed
}

// gather takes the events of the next gatherTime.
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

// checkFiles reloads the config if its files say something new. It returns true if a command has
// read them meanwhile: then the caller must look again.
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
		return true // the command has read newer files, good or bad
	}
	d.applyLocked(ctx, "watch", begun, found.snapshot, found.err)
	return false
}
