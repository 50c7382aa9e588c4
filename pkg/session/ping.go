package session

import "time"

// probeLocked sends a ping to measure the round trip, at most once in two round trips (50 ms to 1
// s). The first ping may have waited behind data; while the window grows, better ones follow.
func (s *session) probeLocked(now time.Time) {
	at := s.at
	if at.pingSince.IsZero() && now.After(at.nextProbe) {
		s.pingLocked(now)
		at.nextProbe = now.Add(min(max(2*at.minRTT, 50*time.Millisecond), time.Second))
	}
}

// forgetPing gives up the ping that waits for its pong.
func (at *attachment) forgetPing() {
	at.pingDue, at.pingSince, at.pingSent = false, time.Time{}, time.Time{}
}

// pingLocked makes a ping due. The wait for its pong runs from now, not from when the ping leaves:
// on a dead path a ping may wait for ever behind data that the path doesn't take.
func (s *session) pingLocked(now time.Time) {
	s.at.pingDue, s.at.pingSince, s.at.waitsSince = true, now, 0
}

// noteRTTLocked takes a pong as a measurement of the path. It ignores the pong if data has come
// first that the peer could send only after it had read the ping: pongs go ahead of data, so the
// peer has kept this one back.
func (at *attachment) noteRTTLocked(now time.Time) {
	if at.pingLimit == 0 {
		return
	}
	rtt := max(now.Sub(at.pingSent), time.Microsecond)
	if at.minRTT == 0 || rtt < at.minRTT {
		at.minRTT = rtt
	}
	s := at.session
	s.shared.paths.Note(s.pathLocked(), at.route.Link, rtt, now)
}

// learnPathLocked measures the path if its round trip isn't known, before much is in flight.
func (s *session) learnPathLocked(now time.Time) {
	if s.shared.paths.Shortest(s.pathLocked(), s.at.route.Link, now) == 0 {
		s.probeLocked(now)
	}
}
