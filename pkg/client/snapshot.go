package client

import (
	"cmp"
	"syscall"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ledger"
	"ptthqd/pkg/session"
	"ptthqd/pkg/uplink"
)

// Snapshot is what a client knows at one moment. It shares nothing with the client.
type Snapshot struct {
	Relays   []uplink.State // in the config's order
	Mappings []Mapping      // in the config's order, disabled ones too
	Sessions []session.Info // the oldest first
	Held     int            // connections that wait for a link
	Counts   ledger.Counts  // of the connections that have ended
	Memory   session.Memory

	LinkMemory, LinkMemoryLimit int64 // bytes that the windows of links have, and may have, grown by

	LimitsHit map[string]uint64 // how often each limit of the config was reached
}

// Mapping is the state of a mapping.
type Mapping struct {
	config.Mapping
	Listening   []string // the addresses, as bound; empty for a disabled mapping
	Connections int      // running ones that came through its listener
	Failed      error    // why an enabled mapping does not listen; the client tries again
}

// Snapshot returns the state of the client. The counts are taken before the sessions, so that no
// session is in both.
func (c *Client) Snapshot() Snapshot {
	s := Snapshot{
		Relays:    c.relays.States(),
		Counts:    c.ledger.Counts(),
		Sessions:  c.sessions.Sessions(),
		Held:      c.held.count(),
		Memory:    c.sessions.Memory(),
		LimitsHit: c.hits.Counts(),
	}
	s.LinkMemory, s.LinkMemoryLimit = c.relays.Memory()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.settings.Load().Mappings {
		status := Mapping{Mapping: m, Failed: c.failedLocked(m)}
		if l := c.listeners[m.Listen]; l != nil && l.mapping.Load().Name == m.Name {
			status.Connections = l.gate.count()
			for _, socket := range l.sockets {
				address := cmp.Or(l.bound.Path, socket.Addr().String())
				status.Listening = append(status.Listening, address)
			}
		}
		s.Mappings = append(s.Mappings, status)
	}
	return s
}

// Failing returns the enabled mappings that cannot listen at the moment.
func (c *Client) Failing() (list []Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.settings.Load().Mappings {
		if err := c.failedLocked(m); err != nil {
			list = append(list, Mapping{Mapping: m, Failed: err})
		}
	}
	return list
}

// failedLocked returns why a mapping does not listen, nil if it does or should not.
func (c *Client) failedLocked(m config.Mapping) error {
	if v := c.vacant[m.Listen]; v != nil && v.mapping.Name == m.Name {
		return v.err
	}
	return nil
}

// Sockets returns the listening sockets, by the names with which Inherit will be called. The
// service manager can keep them over a restart. The client owns them: use a descriptor only within
// Control.
func (c *Client) Sockets() map[string][]syscall.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	sockets := make(map[string][]syscall.Conn)
	for _, l := range c.listeners {
		for _, s := range l.sockets {
			if conn, ok := s.Listener.(syscall.Conn); ok {
				sockets[s.name] = append(sockets[s.name], conn)
			}
		}
	}
	return sockets
}
