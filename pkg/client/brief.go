package client

import "ptthqd/pkg/uplink"

// Brief is how a client stands in a few numbers. It takes less time than a Snapshot when there are
// many connections.
type Brief struct {
	Relays      []uplink.State // in the config's order
	Mappings    int            // that are enabled
	Connections int
	Detached    int // of those, the ones that wait for a link
}

// Brief returns how the client stands.
func (c *Client) Brief() Brief {
	b := Brief{
		Relays:      c.relays.States(),
		Connections: c.sessions.Count(),
		Detached:    c.sessions.Detached(),
	}
	for _, m := range c.settings.Load().Mappings {
		if m.Enabled {
			b.Mappings++
		}
	}
	return b
}

// Count returns the number of forwarded connections.
func (c *Client) Count() int { return c.sessions.Count() }
