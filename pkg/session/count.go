package session

import (
	"slices"
	"time"
)

// What is asked often is counted here, without a copy of what each session is.

// Count returns how many sessions there are.
func (c *Client) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// Carries reports whether a session has a stream on a link, or is getting one.
func (c *Client) Carries(link any) bool { return c.shared.lines.use(link) }

// Moving reports whether a session has moved data within the last second. A stop waits only for
// that.
func (c *Client) Moving() bool { return moving(c.list()) }

// Count returns how many sessions there are.
func (v *Server) Count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.sessions)
}

// Moving reports whether a session has moved data within the last second. A stop waits only for
// that.
func (v *Server) Moving() bool { return moving(v.list()) }

// Detached returns how many sessions wait for another stream.
func (c *Client) Detached() int { return detached(c.list()) }

// Detached returns how many sessions wait for another stream.
func (v *Server) Detached() int { return detached(v.list()) }

func detached(sessions []*session) (n int) {
	for _, s := range sessions {
		s.mu.Lock()
		if s.info.State == Detached {
			n++
		}
		s.mu.Unlock()
	}
	return n
}

// quietTime is how long a session must have moved no data for a stop not to wait for it.
const quietTime = time.Second

// moving reports whether one of the sessions has moved data within quietTime.
func moving(sessions []*session) bool {
	return slices.ContainsFunc(sessions, func(s *session) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return time.Since(s.lastData) < quietTime
	})
}
