// Package window decides how large the receive window of a session is, as a pure calculation.
//
// A window that is too small leaves the path idle; one that is too large is a queue, in which
// everything beside it waits. So a window begins with the floor (wire.InitialWindow) and grows
// while what is delivered in a round trip shows that the path can use more.
//
//	g.Delivered(n, acked)            // at each delivery
//	if g.Due(window, minRTT) {       // seldom
//		step := g.Decide(now, c)       // by how much to widen, whether to measure the path
//		… take step.Widen of the memory budget, and if there was any:
//		g.Widened(limit)
//		if step.RoundOver {
//			end := g.EndRound(now, c)    // is the path full?
//		}
//	}
//
// A Growth belongs to one direction of one session. Paths remember what sessions have learned of a
// path for those that follow. A Growth has no lock; Paths are safe for concurrent use.
package window

import (
	"time"

	"ptthqd/pkg/wire"
)

const (
	// LongRTT is the shortest round trip of a long path. On a long path a pause of a quarter of a
	// round trip says something of the path, and windows follow QUIC's own start. On a short one
	// the processors had something else to do.
	LongRTT = 10 * time.Millisecond
	// minRTT is the shortest round trip that a window is made for: less leaves the processors idle
	// between two of them. On two cores, 4 uploads at once with 1.2 and 1.5 ms move 145 and 159
	// MiB/s, and a message beside them takes 3.6 and 4.2 ms; one upload alone 182 and 170 MiB/s.
	minRTT = 1200 * time.Microsecond
	// maxRTT is the longest: a peer may keep a pong back, to get a large window for little data.
	// Two hops over geostationary satellites take 1.2 s; their windows grow more slowly.
	maxRTT = time.Second
	// slow is for how long a window of the floor lasts, at least, so that it is acknowledged nearly
	// as a whole: the sender's wait for that is a small part of the time in between.
	slow = 50 * time.Millisecond
	// lossyWindow is what a window is not trimmed below where packets are lost: while one of both
	// links repairs, there is something to send on the other. It leaves room in a first link quota.
	lossyWindow = 3 * wire.InitialWindow
	// minEpoch is how long a rate is measured at least.
	minEpoch = 8 * time.Millisecond
)

// A Growth decides when and by how much one window grows. The zero value is that of a window of
// wire.InitialWindow.
type Growth struct {
	epoch   time.Time     // when the current measurement began; zero if none has
	bytes   uint64        // delivered since then
	stood   time.Duration // for how long nothing came since then
	from    uint64        // data before this offset doesn't count: a smaller window allowed it
	lasts   time.Duration // for how long the window lasted of late, on a short path; 0 if unknown
	settled bool          // the window has once been larger than the path could use
	rate    float64       // bytes/ns when the window last grew; until settled, of the last round

	wanted struct { // by the last Decide
		rtt  time.Duration
		rate float64 // 0 during the start
	}
}

// Conditions are what a decision depends on besides deliveries.
type Conditions struct {
	Window  uint64        // in bytes
	Acked   uint64        // the offset up to which data is delivered
	MinRTT  time.Duration // the shortest ping on the current stream; 0 if there was none
	RTT     time.Duration // the shortest round trip that is known of the path; 0 if unknown
	LinkRTT time.Duration // of this end's link, which is a part of the path
	Filled  bool          // a session has filled the path before: QUIC's own start on it is over
	MayGrow bool          // the TCP side keeps up, and the window is below its bound
}

// rtt returns the round trip that the window is made for, 0 if none is known.
func (c *Conditions) rtt() time.Duration {
	rtt := c.MinRTT
	if c.RTT > 0 && (rtt == 0 || c.RTT < rtt) {
		rtt = c.RTT
	}
	if rtt == 0 {
		return 0
	}
	return min(max(rtt, minRTT), maxRTT)
}

// Restart forgets what the window has learned, as when the sender was idle.
func (g *Growth) Restart() { g.settled, g.rate, g.from = false, 0, 0 }

// Stood notes that nothing came for that long.
func (g *Growth) Stood(d time.Duration) { g.stood += d }

// Delivered notes that n bytes were delivered, up to the offset acked.
func (g *Growth) Delivered(n int, acked uint64) {
	if acked > g.from || !g.settled {
		g.bytes += uint64(n)
	} else {
		g.epoch, g.stood = time.Now(), 0
	}
}

// begin begins a measurement.
func (g *Growth) begin(now time.Time) { g.epoch, g.bytes, g.stood = now, 0, 0 }

// short reports whether the path is known to be a short one.
func short(rtt time.Duration) bool { return 0 < rtt && rtt < LongRTT }

// starting reports whether the start of a long path may be in charge of the window.
func (g *Growth) starting(window uint64, minRTT time.Duration) bool {
	return !g.settled && g.bytes >= window/4 && !short(minRTT)
}

// Due reports whether there is something to decide: a quarter of the window was delivered at the
// start of a long path, or all of it later.
func (g *Growth) Due(window uint64, minRTT time.Duration) bool {
	return g.starting(window, minRTT) || g.bytes >= window
}

// A Step is what Decide decides.
type Step struct {
	Widen     uint64 // bytes by which the window should grow; 0 for none
	Probe     bool   // the round trip should be measured
	RoundOver bool   // EndRound is to be called, after the window has grown
}

// Decide is called when a decision is due.
func (g *Growth) Decide(now time.Time, c Conditions) Step {
	if g.starting(c.Window, c.MinRTT) {
		if step, inCharge := g.start(now, c); inCharge {
			return step
		}
	}
	if g.bytes < c.Window {
		return Step{}
	}
	return g.grow(now, c)
}

// startRTT returns the round trip that the start of a path goes by, and whether the whole path's is
// known.
func (c *Conditions) startRTT() (rtt time.Duration, known bool) {
	if rtt := c.rtt(); rtt > 0 {
		return rtt, true
	}
	return c.LinkRTT, false
}

// start lets the window of a long path follow QUIC's own start, which it must not hold up, and
// reports whether it is in charge. QUIC doubles its window within the round trip of each link,
// which is a part of the path's. So the window grows as soon as half of it has come within a round
// trip, to twice what a round trip carries at the rate of that half. It is doubled at most, as
// QUIC's start loses what it sends too early, or made fourfold where that start is over.
func (g *Growth) start(now time.Time, c Conditions) (step Step, inCharge bool) {
	rtt, _ := c.startRTT()
	if rtt < LongRTT {
		return Step{}, false
	}
	step.Probe = c.MinRTT == 0
	if g.epoch.IsZero() {
		g.begin(now) // how long the first bytes took is not known
		return step, true
	}
	elapsed := max(now.Sub(g.epoch), minEpoch)
	carries := uint64(float64(g.bytes) * float64(rtt) / float64(elapsed)) // a round trip, at this rate
	if min(carries, g.bytes) > c.Window/2 && c.MayGrow {
		most := 2 * c.Window
		if c.Filled {
			most *= 2
		}
		step.Widen = min(2*carries, most) - c.Window
		g.wanted.rtt, g.wanted.rate = rtt, 0
	}
	step.RoundOver = elapsed >= rtt
	return step, true
}

// grow makes the window larger by half if the path can use that: what is delivered in a round trip
// is most of the window, or half of it and the last growth has paid, as on paths whose round trips
// vary.
func (g *Growth) grow(now time.Time, c Conditions) (step Step) {
	elapsed, bytes := now.Sub(g.epoch), g.bytes
	first := g.epoch.IsZero()
	if !first && elapsed < minEpoch {
		return step // a burst is not a rate
	}
	g.begin(now)
	g.lasts = 0
	if !first {
		g.lasts = time.Duration(float64(elapsed) * float64(c.Window) / float64(bytes))
	}
	if !c.MayGrow {
		return step
	}
	step.Probe = c.MinRTT == 0
	if first {
		return step
	}
	rtt := c.rtt()
	if rtt == 0 {
		if elapsed > minRTT {
			return step
		}
		rtt = minRTT
	}
	rate := float64(bytes) / float64(elapsed)
	used := rate * float64(rtt) / float64(c.Window)
	paid := 1.2
	if rtt >= LongRTT {
		paid = 1.35
	}
	if used > 0.85 || used > 0.5 && rate >= paid*g.rate {
		step.Widen = c.Window / 2
		g.wanted.rtt, g.wanted.rate = rtt, rate
	}
	return step
}

// Widened notes that the window has grown, as the last Step wanted, while limit was the highest
// offset that the peer had been allowed. It reports whether the round trip should be measured
// again.
func (g *Growth) Widened(limit uint64) (probe bool) {
	if g.wanted.rtt >= LongRTT {
		g.from = limit
	}
	if g.wanted.rate == 0 {
		return false
	}
	g.rate = g.wanted.rate
	return true
}

// A RoundEnd is what EndRound decides.
type RoundEnd struct {
	Full  bool   // the path is full; the start is over
	Trim  uint64 // what the window should shrink to; 0 if it should stay
	Probe bool   // the round trip should be measured
}

// EndRound ends a round trip of the start. Where no more has come in it than in the last one, the
// path is full, and the window should be 1.3 times what the path has shown to hold; but not while
// data still comes that a smaller window has allowed.
func (g *Growth) EndRound(now time.Time, c Conditions) RoundEnd {
	rtt, known := c.startRTT()
	elapsed, bytes, stood, last := now.Sub(g.epoch), g.bytes, g.stood, g.rate
	g.begin(now)
	g.rate = float64(bytes) / float64(elapsed)
	if !known || elapsed > 32*rtt || !c.MayGrow {
		g.rate = 0 // the peer has little to send, or the TCP side is slow: not the path
		return RoundEnd{Probe: true}
	}
	if g.rate >= 1.2*last || c.Acked-bytes < g.from {
		return RoundEnd{Probe: true}
	}
	g.settled = true
	end := RoundEnd{Full: true}
	least := uint64(wire.InitialWindow)
	if stood >= elapsed/5 {
		least = lossyWindow
	}
	if trim := max(uint64(1.3*g.rate*float64(rtt)), least); trim < c.Window {
		end.Trim = trim
	}
	return end
}

// AckEvery returns after how many delivered bytes the peer is told what it may send (PROTOCOL.md,
// 5.2): a quarter of a small window, less of a large one, so that all of it can be used. On a short
// path, where an acknowledgement costs more than the window is worth, it is half of the window, up
// to 128 KiB, or all of a window that lasts for slow. A peer on a long path that has asked of late
// may have stopped short of its window, with no more than the floor in flight: it hears of each
// quarter of that.
func (g *Growth) AckEvery(window uint64, minRTT time.Duration, askedOfLate bool) uint64 {
	switch {
	case short(minRTT) && g.lasts >= slow && window == wire.InitialWindow:
		return window
	case short(minRTT):
		return min(window/2, max(window/16, 128<<10))
	case g.settled && askedOfLate: // not at the start, which it would slow down by a sixth
		return wire.InitialWindow / 4
	}
	return min(window/4, max(window/16, 32<<10))
}
