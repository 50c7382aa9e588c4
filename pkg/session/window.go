package session

import (
	"time"

	"ptthqd/pkg/session/internal/window"
	"ptthqd/pkg/wire"
)

const (
	// minGrowth is the least by which a window grows when the budget is short, in bytes.
	minGrowth = 16 << 10
	// standstill is how long a write to the TCP side must wait for it to count as a slow reader.
	// The TCP side then has to keep up for as long as that write waited, at most maxProbation,
	// before its window grows: a burst of 1.3 MiB takes 20 round trips at the floor.
	standstill   = 100 * time.Millisecond
	maxProbation = 5 * time.Second
)

func (s *session) pathLocked() window.Path {
	return window.Path{Relay: s.info.Relay, Peer: s.peerName()}
}

// growLocked lets the window grow, or plans to trim it, if a decision is due.
func (s *session) growLocked() {
	in, at := &s.in, s.at
	if !in.growth.Due(in.window, at.minRTT) {
		return
	}
	now := time.Now()
	step := in.growth.Decide(now, s.conditionsLocked(now))
	probe := step.Probe
	if by := s.widenLocked(step.Widen); by > 0 {
		probe = in.growth.Widened(at.limitSaid) || probe
	}
	if step.RoundOver {
		end := in.growth.EndRound(now, s.conditionsLocked(now))
		if end.Full {
			s.shared.paths.Fill(s.pathLocked(), at.route.Link)
		}
		if end.Trim > 0 {
			in.trim = end.Trim
		}
		probe = probe || end.Probe
	}
	if probe {
		s.probeLocked(now)
	}
}

func (s *session) conditionsLocked(now time.Time) window.Conditions {
	path, link := s.pathLocked(), s.at.route.Link
	return window.Conditions{
		Window: s.in.window, Acked: s.in.acked,
		MinRTT: s.at.minRTT, RTT: s.shared.paths.Shortest(path, link, now), LinkRTT: s.at.route.RTT,
		Filled: s.shared.paths.Filled(path, link), MayGrow: s.mayGrowLocked(now),
	}
}

// mayGrowLocked reports whether the TCP side keeps up, and the window is below its bound. A TCP
// side that has stood still counts as keeping up only after a while: the kernel takes data for a
// slow reader in bursts of megabytes, which say nothing of the reader.
func (s *session) mayGrowLocked(now time.Time) bool {
	in := &s.in
	return in.trim == 0 && in.queued <= int(in.window/4) && in.window < s.shared.maxWindow.Load() &&
		!now.Before(in.keepsUp) && !s.ending.reset() && !s.closed
}

// widenLocked makes the window larger by at most so many bytes, as the bound and the peer's share
// of the budget allow. It returns by how many.
func (s *session) widenLocked(by uint64) uint64 {
	in := &s.in
	if by = min(by, s.shared.maxWindow.Load()-in.window); by == 0 {
		return 0
	}
	by = s.takeWindowLocked(by)
	in.window += by
	return by
}

// takeWindowLocked reserves so many bytes of the budget, or half as many, and so on down to
// minGrowth. It returns how many it has reserved.
func (s *session) takeWindowLocked(by uint64) uint64 {
	for !s.windows.Take(int64(by)) {
		if by /= 2; by < minGrowth {
			s.refusedLocked(&s.windows)
			return 0
		}
	}
	return by
}

// takeBackLocked takes back what the peer may send above the floor and hasn't sent. It is called
// when nothing is read from a stream any more: the next stream begins with a new limit.
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

// regainLocked makes the window as large again as before takeBackLocked, as far as the peer's share
// of the budget allows. If the session has moved no data for idleBeforeYield, the window grows anew
// instead.
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
		in.growth.Restart()
	}
}

// trimLocked shrinks the window towards trim, by what the peer isn't promised any more.
func (s *session) trimLocked() {
	in := &s.in
	if left := max(in.trim, in.limit-in.acked); left < in.window {
		s.windows.Give(int64(in.window - left))
		in.window = left
	}
	if in.window <= in.trim {
		in.trim = 0
	}
}
