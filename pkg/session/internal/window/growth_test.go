package window

import (
	"testing"
	"time"

	"ptthqd/pkg/wire"
)

// A transfer delivers bytes at a rate, and applies what a Growth decides.
type transfer struct {
	t      *testing.T
	g      Growth
	now    time.Time
	acked  uint64
	window uint64
	c      Conditions
}

func newTransfer(t *testing.T, rtt time.Duration) *transfer {
	return &transfer{
		t: t, now: time.Now(), window: wire.InitialWindow,
		c: Conditions{MinRTT: rtt, RTT: rtt, LinkRTT: rtt / 2, MayGrow: true},
	}
}

// deliver delivers n bytes within d, in pieces of 1 KiB, and returns the ends of rounds.
func (x *transfer) deliver(n uint64, d time.Duration) (ends []RoundEnd) {
	const piece = 1 << 10
	for range n / piece {
		x.now = x.now.Add(time.Duration(uint64(d) * piece / n))
		x.acked += piece
		x.g.Delivered(piece, x.acked)
		if !x.g.Due(x.window, x.c.MinRTT) {
			continue
		}
		x.c.Window, x.c.Acked = x.window, x.acked
		step := x.g.Decide(x.now, x.c)
		if step.Widen > 0 {
			limit := x.acked + x.window
			x.window += step.Widen
			x.g.Widened(limit)
		}
		if step.RoundOver {
			x.c.Window = x.window
			ends = append(ends, x.g.EndRound(x.now, x.c))
		}
	}
	return ends
}

// TestStartOfALongPath asserts that the window follows a sender whose rate doubles within each round
// trip, and that the start is over, with a window of about 1.3 times what the path holds, once the
// rate stays.
func TestStartOfALongPath(t *testing.T) {
	const rtt = 40 * time.Millisecond
	x := newTransfer(t, rtt)
	rate := uint64(64 << 10) // bytes a round trip
	for range 5 {
		x.deliver(rate, rtt)
		if x.window < rate {
			t.Errorf("at %d bytes a round trip the window is %d", rate, x.window)
		}
		rate *= 2
	}
	var full *RoundEnd
	for range 10 {
		for _, end := range x.deliver(rate, rtt) {
			if end.Full && full == nil {
				full = &end
			}
		}
	}
	if full == nil {
		t.Fatal("the path is never full")
	}
	if want := float64(rate) * 1.3; full.Trim > 0 && (float64(full.Trim) < 0.9*want || float64(full.Trim) > 1.1*want) {
		t.Errorf("trimmed to %d bytes where the path holds %d", full.Trim, rate)
	}
}

// TestPauses asserts that a full path on which nothing came for a fifth of the time keeps a window
// of three floors: there, packets are lost.
func TestPauses(t *testing.T) {
	const rtt = 40 * time.Millisecond
	x := newTransfer(t, rtt)
	x.window = 4 * lossyWindow
	x.g.begin(x.now)
	x.g.rate = 1
	x.g.bytes = 32 << 10
	x.g.Stood(rtt / 4)
	x.c.Window, x.c.Acked = x.window, x.g.bytes
	end := x.g.EndRound(x.now.Add(rtt), x.c)
	if !end.Full || end.Trim != lossyWindow {
		t.Errorf("%+v, want a trim to %d", end, lossyWindow)
	}
}

// TestGrow asserts by what a window on a short path grows: by half where most of it is delivered in a
// round trip, not where less than half of it is, and not on a burst.
func TestGrow(t *testing.T) {
	const rtt = 2 * time.Millisecond
	for _, c := range []struct {
		name  string
		took  time.Duration // for one window
		widen bool
	}{
		{"all in a round trip", minEpoch, true},
		{"a burst", minEpoch - time.Microsecond, false},
		{"a third in a round trip", 60 * time.Millisecond, false},
	} {
		x := newTransfer(t, rtt)
		x.window = 256 << 10 // 64 KiB a round trip in 8 ms
		x.c.MinRTT, x.c.RTT = 8*time.Millisecond, 8*time.Millisecond
		x.g.settled = true
		x.g.begin(x.now)
		before := x.window
		x.g.bytes, x.acked = x.window, x.window
		x.c.Window, x.c.Acked = x.window, x.acked
		step := x.g.Decide(x.now.Add(c.took), x.c)
		if widens := step.Widen == before/2; widens != c.widen || !widens && step.Widen != 0 {
			t.Errorf("%s: widened by %d of %d", c.name, step.Widen, before)
		}
	}
}

func TestMayNotGrow(t *testing.T) {
	x := newTransfer(t, 40*time.Millisecond)
	x.c.MayGrow = false
	x.deliver(8<<20, time.Second)
	if x.window != wire.InitialWindow {
		t.Errorf("the window of a TCP side that doesn't keep up is %d", x.window)
	}
}

// TestAckEvery asserts the table of PROTOCOL.md, 5.2.
func TestAckEvery(t *testing.T) {
	const long, near = 40 * time.Millisecond, time.Millisecond
	for _, c := range []struct {
		window uint64
		rtt    time.Duration
		asked  bool
		g      Growth
		want   uint64
	}{
		{64 << 10, long, false, Growth{}, 16 << 10},
		{256 << 10, long, false, Growth{}, 32 << 10},
		{1 << 20, long, false, Growth{}, 64 << 10},
		{1 << 20, long, true, Growth{}, 64 << 10},
		{1 << 20, long, true, Growth{settled: true}, 16 << 10},
		{1 << 20, 0, false, Growth{}, 64 << 10},
		{64 << 10, near, false, Growth{}, 32 << 10},
		{64 << 10, near, false, Growth{lasts: slow}, 64 << 10},
		{1 << 20, near, false, Growth{lasts: slow}, 128 << 10},
		{4 << 20, near, false, Growth{}, 256 << 10},
	} {
		if got := c.g.AckEvery(c.window, c.rtt, c.asked); got != c.want {
			t.Errorf("window %d, rtt %v, asked %t: every %d bytes, want %d", c.window, c.rtt, c.asked, got, c.want)
		}
	}
}

func TestPaths(t *testing.T) {
	var ps Paths
	path, now := Path{"relay", "nas"}, time.Now()
	if ps.Shortest(path, 1, now) != 0 || ps.Filled(path, 1) {
		t.Error("something is known of a new path")
	}
	ps.Fill(path, 1)
	ps.Note(path, 1, 30*time.Millisecond, now)
	ps.Note(path, 1, 40*time.Millisecond, now)
	ps.Note(path, 1, 20*time.Millisecond, now)
	ps.Fill(path, 1)
	if got := ps.Shortest(path, 1, now); got != 20*time.Millisecond || !ps.Filled(path, 1) {
		t.Errorf("shortest: %v, filled: %t", got, ps.Filled(path, 1))
	}
	if ps.Shortest(path, 2, now) != 0 || ps.Filled(path, 2) {
		t.Error("one link's round trip is taken for another's")
	}
	if ps.Shortest(path, 1, now.Add(memory)) != 0 {
		t.Error("a round trip is remembered for ever")
	}
	ps.Note(path, 2, 50*time.Millisecond, now)
	if got := ps.Shortest(path, 2, now); got != 50*time.Millisecond || ps.Filled(path, 2) {
		t.Errorf("over a new link: shortest %v, filled: %t", got, ps.Filled(path, 2))
	}
	for i := range maxPaths + 10 {
		ps.Note(Path{"relay", string(rune(i))}, 1, time.Second, now)
	}
	if len(ps.by) > maxPaths {
		t.Errorf("%d paths are remembered", len(ps.by))
	}
}
