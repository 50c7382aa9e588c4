package daemon

import (
	"log/slog"
	"testing"
)

// A reload starts and stops the adaption of GOMAXPROCS, in a process of the daemon alone.
func TestAdaptProcessorsFollowsTheConfig(t *testing.T) {
	for _, own := range []bool{true, false} {
		d := &daemon{
			options: Options{OwnProcess: own}, log: slog.New(slog.DiscardHandler),
			background: t.Context(),
		}
		d.adaptProcessors(true)
		if runs := d.stopAdapting != nil; runs != own {
			t.Errorf("own process %v: it runs: %v", own, runs)
		}
		d.adaptProcessors(true)
		d.adaptProcessors(false)
		if d.stopAdapting != nil {
			t.Errorf("own process %v: it runs on", own)
		}
	}
}
