package link_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// rival makes a dialler of another process with the node's key, with a log of its own.
func (w *world) rival(host string, links chan<- *link.Link) (*link.Dialer, *lines) {
	d, log := w.newDialer(host, links), &lines{}
	d.Instance, d.Logger = wire.NewInstance(), slog.New(log)
	return d, log
}

// Of two processes with one key the first keeps its link while it answers. Both log that. The
// second has the link soon after the first has gone.
func TestFirstProcessKeepsItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var turnedAway atomic.Int64
		w.start(func(l *link.Listener) {
			l.Rival = func(id string, from netip.Addr) {
				if id != "client" || from != netip.MustParseAddr("10.0.0.9") {
					t.Errorf("%s was turned away at %v", id, from)
				}
				turnedAway.Add(1)
			}
		})
		var heard atomic.Int64
		w.dialer.Instance, w.dialer.OnContested = wire.NewInstance(), func() { heard.Add(1) }
		stop := w.dial()
		first := w.took(40*ms, 40*ms)
		time.Sleep(time.Hour)

		others := make(chan *link.Link, 10)
		other, log := w.rival("10.0.0.9", others)
		w.network.Run(other.Run)
		time.Sleep(10 * time.Minute)
		if first.Err() != nil || len(others) > 0 {
			t.Errorf("the first's link: %v; the other has %d", first.Err(), len(others))
		}
		if n := turnedAway.Load(); n < 120 || n > 200 {
			t.Errorf("the other was turned away %d times in ten minutes", n)
		}
		if n := heard.Load(); n < 60 || w.dialer.State().Contested.IsZero() {
			t.Errorf("the first has heard of the other %d times", n)
		}
		const words = "ERROR another node holds this node's key"
		if n := strings.Count(w.log.String(), words); n != 1 || !strings.Contains(w.log.String(), "from=10.0.0.9:") {
			t.Errorf("the first says so %d times:\n%s", n, w.log)
		}
		if n := strings.Count(log.String(), words); n < 1 || n > 4 {
			t.Errorf("the other says so %d times:\n%s", n, log)
		}
		if s := other.State(); s.Reason != link.DialContested || s.Contested.IsZero() || !strings.HasPrefix(s.LastError, "another node holds this node's key") {
			t.Errorf("the other's state: %+v", s)
		}

		stop()
		gone := time.Now()
		<-others
		if took := time.Since(gone); took > 4500*ms {
			t.Errorf("the other had a link %v after the first had gone", took)
		}
	})
}

// A process that was killed and runs again waits for its own old link no longer than a second.
func TestKilledProcessLosesItsPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dialer.Instance = wire.NewInstance()
		stop := w.dial()
		w.took(40*ms, 40*ms)
		old := <-w.accepted
		time.Sleep(time.Minute)
		w.network.Kill(linktest.DiallerHost, stop)

		again, log := w.rival(linktest.DiallerHost, w.links)
		w.network.Run(again.Run)
		w.took(sec, 1200*ms)
		<-old.Done()
		if closed, ok := errors.AsType[*link.ClosedError](old.Err()); !ok || closed.Code != wire.CloseContested || old.Reason() != link.EndSuperseded {
			t.Errorf("the old link ended with %v, %s", old.Err(), old.Reason())
		}
		if strings.Contains(log.String(), "another node") {
			t.Errorf("the log:\n%s", log)
		}
	})
}

// A process whose packets come too late loses its place, and has it back when the other has gone.
func TestSlowProcessIsBackSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dialer.Instance = wire.NewInstance()
		w.dial()
		first := w.took(40*ms, 40*ms)
		time.Sleep(time.Minute)
		w.network.Cut(linktest.DiallerHost)
		others := make(chan *link.Link, 10)
		other, _ := w.rival("10.0.0.9", others)
		stop := w.network.Run(other.Run)
		<-others
		w.network.Heal(linktest.DiallerHost)
		<-first.Done()
		time.Sleep(time.Minute)
		if len(w.links) > 0 || w.dialer.State().Contested.IsZero() {
			t.Errorf("%d links; %+v", len(w.links), w.dialer.State())
		}
		stop()
		w.took(0, 4500*ms)
	})
}

// A new link of the same process replaces the old one at once.
func TestNewestLinkOfAProcessWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dialer.Instance = wire.NewInstance()
		w.dial()
		first := w.took(40*ms, 40*ms)
		second := w.newDialer("10.0.0.9", w.links)
		second.Instance = w.dialer.Instance
		w.network.Run(second.Run)
		w.took(40*ms, 40*ms)
		<-first.Done()
		if closed, ok := errors.AsType[*link.ClosedError](first.Err()); !ok || closed.Code != wire.CloseSuperseded {
			t.Error(first.Err())
		}
	})
}

// A process that leaves while the relay asks the holder of its place takes nothing. Any number of
// processes that come do the holder no harm.
func TestRivalsDoNoHarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.dialer.Instance = wire.NewInstance()
		w.dial()
		first := w.took(40*ms, 40*ms)
		accepted := <-w.accepted
		for i := range 200 {
			// Some leave while the relay asks the holder, a few of them while the answer is on
			// its way.
			other, _ := w.rival("10.0.0.9", make(chan *link.Link, 1))
			stop := w.network.Run(other.Run)
			time.Sleep(time.Duration(i) * ms)
			stop()
		}
		time.Sleep(time.Minute)
		if first.Err() != nil || accepted.Err() != nil || len(w.accepted) > 0 {
			t.Errorf("the first's link: %v, %v; %d others", first.Err(), accepted.Err(), len(w.accepted))
		}
	})
}
