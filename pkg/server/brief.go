package server

import "ptthqd/pkg/uplink"

// Brief is how a server stands in a few numbers. It takes less time than a Snapshot when there are
// many connections.
type Brief struct {
	Relays      []uplink.State // in the config's order
	Services    int
	Connections int
	Detached    int // of those, the ones that wait for a link
}

// Brief returns how the server stands.
func (s *Server) Brief() Brief {
	return Brief{
		Relays:      s.relays.States(),
		Services:    len(s.services.Load().All()),
		Connections: s.sessions.Count(),
		Detached:    s.sessions.Detached(),
	}
}

// Count returns the number of forwarded connections.
func (s *Server) Count() int { return s.sessions.Count() }
