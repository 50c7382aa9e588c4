package session

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
