package session

import "time"

// probeLocked asks for a ping, once in two round trips at most. The first one
// may have waited behind data; while the window grows, better ones follow.
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

// pingLocked asks the peer for a sign of life. The time runs from now on, not
// from when the ping leaves: on a path that is dead, what is to be sent may
// wait for ever behind what nobody takes.
func (s *session) pingLocked(now time.Time) {
	s.at.pingDue, s.at.pingSince, s.at.waitsSince = true, now, 0
}

// noteRTTLocked takes the pong for a measurement of the path. It is none if data has come before it which the peer could not send
// before it had read the ping: pongs go ahead of data, so this one was kept back.
func (at *attachment) noteRTTLocked(now time.Time) {
	if at.pingLimit == 0 {
		return
	}
	rtt := max(now.Sub(at.pingSent), time.Microsecond)
	if at.minRTT == 0 || rtt < at.minRTT {
		at.minRTT = rtt
	}
	s := at.session
	s.host.paths.Note(s.pathLocked(), at.route.Link, rtt, now)
}

// learnPathLocked asks for a ping if nobody knows the path yet: before there is
// much on it.
func (s *session) learnPathLocked(now time.Time) {
	if s.host.paths.Shortest(s.pathLocked(), s.at.route.Link, now) == 0 {
		s.probeLocked(now)
	}
}
