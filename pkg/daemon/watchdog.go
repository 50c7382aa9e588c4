package daemon

import (
	"context"
	"os"
	"time"
)

// hangVariable is for tests of the watchdog: once the daemon has run for the duration that it holds, the table of
// reloads is locked for ever.
const hangVariable = "PTTHQD_TEST_HANG"

// feedWatchdog feeds the service manager's watchdog for as long as the daemon works: each time every lock has been had and
// every accept loop has answered. One loop does it all, so that nothing can be fed beside what hangs.
func (d *daemon) feedWatchdog(ctx context.Context) {
	if after, err := time.ParseDuration(os.Getenv(hangVariable)); err == nil {
		defer time.AfterFunc(after, d.reloading.Lock).Stop()
	}
	within := d.service.Watchdog()
	if within <= 0 {
		return
	}
	tick := time.NewTicker(within / 3)
	defer tick.Stop()
	for {
		if err := d.prove(ctx, within); err != nil && ctx.Err() == nil {
			d.log.Error(msgWatchdog, "error", err) // and let it bite
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

// prove returns nil once everything has answered. It hangs where a lock hangs: that is its purpose.
func (d *daemon) prove(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	d.reloading.Lock()
	d.reloading.Unlock() //nolint:staticcheck // that it could be had is all
	d.describe()         // takes the lock of every table
	return d.role.Alive(ctx)
}
