package session

import "time"

// probeLocked asks for a ping, once in two round trips at most. The first one
// may have waited behind data; while the window grows, better ones follow.
func (s *session) probeLocked(now time.Time) {
	if s.pingSince.IsZero() && now.After(s.nextProbe) {
		s.pingLocked(now)
		s.nextProbe = now.Add(min(max(2*s.minRTT, 50*time.Millisecond), time.Second))
	}
}

// pingLocked asks the peer for a sign of life. The time runs from now on, not
// from when the ping leaves: on a path that is dead, what is to be sent may
// wait for ever behind what nobody takes.
func (s *session) pingLocked(now time.Time) {
	s.pingDue, s.pingSince, s.waitsSince = true, now, 0
}
