package relay_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/wire"
)

// hold asks for a new connection, as a client that has no other relay.
func (n *node) hold(server string, inner []byte) *link.Stream {
	n.w.t.Helper()
	s, err := n.live().Open(wire.Append(nil, &wire.Connect{Server: server, Inner: inner, Hold: true}))
	if err != nil {
		n.w.t.Fatal(err)
	}
	return s
}

// answered returns the answer to a held request, and how long it took.
func (w *world) answered(s *link.Stream) (wire.Status, time.Duration) {
	w.t.Helper()
	begun := time.Now()
	status := w.reply(s).Status
	s.Reset(wire.CodeLost)
	return status, (time.Since(begun) - 2*hop).Round(10 * time.Millisecond)
}

// A new connection waits for a server that is expected back: one that was here within the last
// minute, and any server in the relay's first minute.
func TestHoldsAnOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "laptop may nas", "nas", "db")
		laptop := w.client("laptop")
		check := func(what string, s *link.Stream, status wire.Status, after time.Duration) {
			t.Helper()
			if got, took := w.answered(s); got != status || took != after {
				t.Errorf("%s: %v after %v, want %v after %v", what, got, took, status, after)
			}
		}
		ask := func() *link.Stream { return laptop.hold("nas", open(1, ":22")) }
		check("young relay", ask(), wire.StatusNotConnected, 12*time.Second)
		check("young relay, of a client that can ask elsewhere", laptop.connect("nas", open(1, ":22"), ""), wire.StatusNotConnected, 0)
		check("not allowed", laptop.hold("db", open(1, ":22")), wire.StatusNotAllowed, 0)

		s := ask()
		time.Sleep(10 * time.Second)
		if c := w.relay.Snapshot().Connections; len(c) != 1 || c[0].State != relay.StateParked {
			t.Errorf("the table says %+v, want one that is parked", c)
		}
		nas := w.server("nas", echo)
		if got, _ := w.answered(s); got != wire.StatusOpen {
			t.Errorf("when the server has come: %v", got)
		}

		time.Sleep(10 * time.Minute)
		nas.stop()
		time.Sleep(time.Second)
		check("server away", ask(), wire.StatusNotConnected, 5*time.Second)
		time.Sleep(50 * time.Second)
		s = ask()
		time.Sleep(4 * time.Second)
		nas = w.server("nas", echo)
		if got, _ := w.answered(s); got != wire.StatusOpen {
			t.Errorf("when the server is back: %v", got)
		}
		nas.stop()
		time.Sleep(61 * time.Second)
		check("server away for long", ask(), wire.StatusNotConnected, 0)
	})
}

// The new connections that wait are bounded per client and in all. Resumes have slots of their own.
func TestHoldsAFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{Parked: 32}, "laptop may nas", "greedy may nas", "nas")
		laptop, greedy := w.client("laptop"), w.client("greedy")
		for i := range byte(2) {
			defer greedy.hold("nas", open(i, ":22")).Reset(wire.CodeLost)
		}
		time.Sleep(time.Second)
		s := greedy.hold("nas", open(3, ":22"))
		if got := w.reply(s); got.Status != wire.StatusNotConnected || !strings.Contains(got.Text, "2 new connections of greedy wait for servers already") {
			t.Errorf("one too many: %+v", got)
		}
		s.Reset(wire.CodeLost)
		if n := w.relay.Snapshot().Counters.LimitsHit["parked_resumes"]; n != 1 {
			t.Errorf("counted %d hits", n)
		}
		others := []*link.Stream{laptop.hold("nas", open(1, ":22"))}
		for i := range byte(8) {
			others = append(others, greedy.connect("nas", resume(10+i, 2, ":22"), ""))
		}
		time.Sleep(time.Second)
		w.server("nas", echo)
		for i, s := range others {
			if got := w.reply(s); got.Status != wire.StatusOpen {
				t.Errorf("request %d beside it: %+v", i, got)
			}
			s.Reset(wire.CodeLost)
		}
	})
}

// A relay that is about to stop sends waiting requests to other relays, and gives no final answer.
func TestDrainSendsElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		laptop := w.client("laptop")
		s := laptop.hold("nas", open(1, ":22"))
		time.Sleep(time.Second)
		w.relay.Drain(t.Context())
		_, err := read(s)
		w.wantReset("what was held", err, wire.CodeClosing)
	})
}
