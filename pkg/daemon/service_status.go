package daemon

import (
	"context"
	"fmt"
	"time"
)

// statusInterval is how often a changed summary is sent to the service manager.
const statusInterval = 3 * time.Second

// reportStatus keeps STATUS= up to date, if there is a service manager.
func (d *daemon) reportStatus(ctx context.Context) {
	if !d.service.Listens() {
		return
	}
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if d.state.Load() != stateRunning {
			return // reportDrain takes over
		}
		if now := d.summary(); now != last {
			d.service.Status(now)
			last = now
		}
	}
}

// drainMargin is how long a stop may take beyond drain_timeout: sessions are reset, the resets
// confirmed, links closed.
const drainMargin = 10 * time.Second

// reportDrain tells the service manager how the drain goes, and asks it for more time.
func (d *daemon) reportDrain(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	until := time.Now().Add(d.loaded.Load().config.DrainTimeout + drainMargin)
	n := d.role.Count()
	d.service.Stopping(fmt.Sprintf("stopping: waiting for %s to end or move",
		plural(n, "connection")))
	for left := time.Until(until); left > 0; left = time.Until(until) {
		d.service.Extend(min(left, 5*time.Second))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now := d.role.Count(); now != n {
			n = now
			d.service.Status(fmt.Sprintf("stopping: waiting for %s to end or move",
				plural(n, "connection")))
		}
	}
}
