package link_test

import (
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
)

// A dial error tells a path that loses large packets from one that is closed.
func TestOnlySmallPacketsPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.network.Drop(func(p linktest.Packet) bool { return len(p.Data) > 1150 })
		w.dial()
		time.Sleep(5 * time.Minute)
		if s := w.dialer.State(); !strings.Contains(s.LastError, "answers small packets, but not QUIC's handshake: packets of 1200 bytes are lost on the way") {
			t.Errorf("state %+v", s)
		}
		if n := w.dialer.Totals().Failed; n[link.DialUnfinished] == 0 || len(n) != 1 {
			t.Errorf("counted %v", n)
		}
		w.network.Drop(nil)
		w.took(0, 41*sec)
	})
}

// A path with IPv6's least MTU, 1,280 bytes, carries a link.
func TestLeastMTU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		w.network.Drop(func(p linktest.Packet) bool { return len(p.Data) > 1280-48 })
		w.dial()
		w.took(40*ms, 40*ms)
	})
}

func TestTotals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.dial()
		time.Sleep(10 * sec)
		failed := w.dialer.Totals().Failed[link.DialNoAnswer]
		if want := uint64(w.dialer.State().Attempts); failed == 0 || failed != want {
			t.Errorf("%d dials failed, want %d", failed, want)
		}
		w.start()
		first := w.took(0, 2*sec)
		time.Sleep(20 * sec)
		synctest.Wait() // what else is at this moment is over
		live, totals := first.Stats(), w.dialer.Totals()
		if totals.BytesSent != live.BytesSent || totals.PacketsSent != live.PacketsSent || totals.BytesReceived != live.BytesReceived || live.BytesSent == 0 {
			t.Errorf("counted %+v, the link has %+v", totals, live)
		}
		w.kill()
		w.start()
		second := w.took(0, 30*sec)
		time.Sleep(sec)
		synctest.Wait()
		totals = w.dialer.Totals()
		if now := second.Stats(); totals.BytesSent < live.BytesSent+now.BytesSent || totals.BytesReceived < live.BytesReceived+now.BytesReceived {
			t.Errorf("counted %+v, the links have %+v and %+v", totals, live, now)
		}
		if want := map[link.Reason]uint64{link.EndRestarted: 1}; !maps.Equal(totals.Ended, want) {
			t.Errorf("links ended %v, want %v", totals.Ended, want)
		}
		if second.Reason() != "" {
			t.Errorf("a live link has ended: %v", second.Reason())
		}
		w.stop()
		<-second.Done()
		time.Sleep(sec)
		if got := w.dialer.Totals().Ended[link.EndClosing]; got != 1 {
			t.Errorf("%d links were closed by the relay, want 1: %v", got, w.dialer.Totals().Ended)
		}
	})
}
