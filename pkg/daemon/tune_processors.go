package daemon

import (
	"context"

	"ptthqd/pkg/host"
)

// adaptProcessors starts or stops host.AdaptProcessors. The caller holds the lock of reloads, or is
// the last one.
func (d *daemon) adaptProcessors(wanted bool) {
	if d.stopAdapting != nil {
		d.stopAdapting()
		d.stopAdapting = nil
	}
	if !wanted || !d.options.OwnProcess {
		return
	}
	ctx, cancel := context.WithCancel(d.background)
	done := make(chan struct{})
	go func() {
		defer close(done)
		host.AdaptProcessors(ctx, d.log)
	}()
	d.stopAdapting = func() {
		cancel()
		<-done
	}
}
