package session

import (
	"time"

	"ptthqd/pkg/wire"
)

// ackEveryLocked is after how many bytes the peer hears what it may send: a quarter
// of a small window, but of a large one less, so that all of it can be used. On a
// short path a window is worth little, and what an acknowledgement costs (a packet
// and a wake-up at three nodes) counts: there it is half of the window, up to 128 KiB;
// and where a window lasts for many round trips, as many share what there is, most of it. A peer that asks on a long path may
// have stopped short of its window, with no more than the floor under way: for a while it hears of each quarter of that. Not while the
// window still grows: at the beginning of a bulk transfer that cost a sixth of the first 0.3 s at 200 Mbit/s and 40 ms.
func (s *session) ackEveryLocked() uint64 {
	window := s.in.window
	switch {
	case s.at.minRTT == 0 || s.at.minRTT >= minStandRTT:
	case s.in.lasts >= slowWindow && window == wire.InitialWindow:
		return window
	default:
		return min(window/2, max(window/16, 128<<10))
	}
	if s.in.settled && s.in.asked > 0 && s.in.acked < s.in.asked+2*wire.InitialWindow {
		return wire.InitialWindow / 4
	}
	return min(window/4, max(window/16, 32<<10))
}

// startLocked lets the window of a long path follow QUIC's own start, as it must not hold that up, and tells whether it is
// in charge. QUIC doubles within the round trip of each link, which is a part of the session's. So the window grows as
// soon as half of it has come within a round trip, and not when all has: to twice what a round trip carries at the rate of that half.
// It is doubled at most, as QUIC's start loses what it sends too early, or made fourfold where that is over. With three times
// what the path holds, fourfold, it lost 740 packets on links of 200 Mbit/s with a queue of 50 ms.
func (s *session) startLocked() bool {
	in := &s.in
	if in.settled || in.epochBytes < in.window/4 || 0 < s.at.minRTT && s.at.minRTT < minStandRTT {
		return false
	}
	now := time.Now()
	rtt := s.growthRTTLocked(now)
	known := rtt > 0
	if !known {
		rtt = s.at.route.RTT // a part of it
	}
	if rtt < minStandRTT {
		return false
	}
	if s.at.minRTT == 0 {
		s.probeLocked(now)
	}
	if in.epoch.IsZero() {
		in.epoch, in.epochBytes, in.stood = now, 0, 0 // nobody knows how long that took
		return true
	}
	elapsed := max(now.Sub(in.epoch), minEpoch)
	carries := uint64(float64(in.epochBytes) * float64(rtt) / float64(elapsed)) // a round trip, at this rate
	if min(carries, in.epochBytes) > in.window/2 && s.mayGrowLocked(now) {
		most := 2 * in.window
		if s.host.paths.filled(s.pathLocked(), s.at.route.Link) {
			most *= 2
		}
		s.widenLocked(min(2*carries, most)-in.window, rtt)
	}
	if elapsed >= rtt {
		s.judgeLocked(now, rtt, known)
	}
	return true
}

// judgeLocked ends a round trip of the start. Where no more has come in it than in the last one, the path is full, and the window
// is trimmed to 1.3 times what the path has shown to hold; but not while there still comes what a smaller window has allowed.
func (s *session) judgeLocked(now time.Time, rtt time.Duration, known bool) {
	in := &s.in
	elapsed, bytes, stood, last := now.Sub(in.epoch), in.epochBytes, in.stood, in.rate
	in.epoch, in.epochBytes, in.stood = now, 0, 0
	in.rate = float64(bytes) / float64(elapsed)
	switch {
	case !known || elapsed > 32*rtt || !s.mayGrowLocked(now):
		in.rate = 0 // the peer has little to send, or the TCP side is slow, which says nothing of the path
	case in.rate < 1.2*last && in.acked-bytes >= in.epochFrom:
		in.settled = true
		s.host.paths.fill(s.pathLocked(), s.at.route.Link)
		least := uint64(wire.InitialWindow)
		if stood >= elapsed/5 {
			least = lossyWindow
		}
		if trim := max(uint64(1.3*in.rate*float64(rtt)), least); trim < in.window {
			in.trim = trim
		}
		return
	}
	s.probeLocked(now)
}

// mayGrowLocked tells whether the TCP side keeps up, and there is more to be had.
// Who has stood still keeps up only after a while: a kernel lets a slow reader's
// connection be written to in bursts of megabytes, which say nothing of the reader.
func (s *session) mayGrowLocked(now time.Time) bool {
	in := &s.in
	return in.trim == 0 && in.queued <= int(in.window/4) && in.window < s.host.maxWindow.Load() && !now.Before(in.keepsUp) &&
		s.at != nil && !s.ending.reset() && !s.closed
}

// growLocked makes the window larger if the path can use it, the TCP side keeps
// up, and the budget allows: by half while what is delivered in a round trip is
// most of it, or half of it and the last time has paid, as on paths whose round
// trips vary. More would be a queue, in which everything beside it waits.
func (s *session) growLocked() {
	in := &s.in
	now := time.Now()
	elapsed, bytes := now.Sub(in.epoch), in.epochBytes
	first := in.epoch.IsZero()
	if !first && elapsed < minEpoch {
		return // what comes in a burst is not a rate
	}
	in.epoch, in.epochBytes, in.stood = now, 0, 0
	in.lasts = 0
	if !first {
		in.lasts = time.Duration(float64(elapsed) * float64(in.window) / float64(bytes))
	}
	if !s.mayGrowLocked(now) {
		return
	}
	if s.at.minRTT == 0 {
		s.probeLocked(now)
	}
	if first {
		return
	}
	rtt := s.growthRTTLocked(now)
	if rtt == 0 {
		if elapsed > minGrowthRTT {
			return
		}
		rtt = minGrowthRTT
	}
	rate := float64(bytes) / float64(elapsed)
	used := rate * float64(rtt) / float64(in.window)
	paid := 1.2
	if rtt >= minStandRTT {
		paid = 1.35
	}
	if used <= 0.85 && (used <= 0.5 || rate < paid*in.rate) || !s.widenLocked(in.window/2, rtt) {
		return
	}
	in.rate = rate
	s.probeLocked(now)
}

// widenLocked makes the window larger by so much, or by what the peer's share of the budget has. It tells whether it did.
func (s *session) widenLocked(by uint64, rtt time.Duration) bool {
	in := &s.in
	by = min(by, s.host.maxWindow.Load()-in.window)
	if by = s.takeWindowLocked(by); by == 0 {
		return false
	}
	in.window += by
	if rtt >= minStandRTT {
		in.epochFrom = s.at.limitSaid
	}
	return true
}

// takeWindowLocked reserves so much of the budget, or what part of it there is, and returns how much that is.
func (s *session) takeWindowLocked(by uint64) uint64 {
	for !s.windows.take(int64(by)) {
		if by /= 2; by < minGrowth {
			s.refusedLocked(&s.windows)
			return 0
		}
	}
	return by
}

// takeBackLocked takes back what the peer may send above the floor and hasn't sent. It is for when nothing is read from a stream
// any more: the next one begins with the limit that is said then.
func (s *session) takeBackLocked() {
	in := &s.in
	if in.window == wire.InitialWindow || s.ending.reset() || s.closed {
		return
	}
	in.before = max(in.before, in.window)
	in.limit = max(in.received, in.acked+wire.InitialWindow)
	in.trim = wire.InitialWindow
	s.trimLocked()
}

// regainLocked has the window be again as it was before takeBackLocked, or what the peer's share of the budget has of that. It
// grows anew if the session was idle, or waited for long.
func (s *session) regainLocked(now time.Time) {
	in := &s.in
	before := in.before
	in.before = 0
	if before > in.window && now.Sub(s.lastData) <= idleBeforeYield {
		if by := s.takeWindowLocked(before - in.window); by > 0 {
			in.window += by
			in.limit = max(in.limit, in.acked+in.window)
			in.trim = 0
			return
		}
	}
	if before > 0 {
		in.settled, in.rate, in.epochFrom = false, 0, 0
	}
}

// trimLocked takes back what of the window was too much, once it isn't promised any more.
func (s *session) trimLocked() {
	in := &s.in
	if window := max(in.trim, in.limit-in.acked); window < in.window {
		s.windows.give(int64(in.window - window))
		in.window = window
	}
	if in.window <= in.trim {
		in.trim = 0
	}
}
