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
