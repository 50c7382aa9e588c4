package daemon

import (
	"context"
	"time"
)

// feedWatchdog feeds the service manager's watchdog while the daemon works: each time after every
// lock was had and every accept loop has answered. One goroutine does both, so that a hang stops
// the feeding.
func (d *daemon) feedWatchdog(ctx context.Context) {
	within := d.service.Watchdog()
	if within <= 0 {
		return
	}
	tick := time.NewTicker(within / 3)
	defer tick.Stop()
	for {
		if err := d.prove(ctx, within); err != nil && ctx.Err() == nil {
			d.log.Error(msgWatchdog, "error", err) // the watchdog ends the process
			return
		}
		d.service.Feed()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// prove returns nil once everything has answered. It hangs if a lock is held for ever: that is its
// purpose.
func (d *daemon) prove(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	d.reloading.Lock()
	d.reloading.Unlock() //nolint:staticcheck // it only has to be free
	d.describe()         // takes every lock
	return d.role.Alive(ctx)
}
