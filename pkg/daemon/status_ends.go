package daemon

import (
	"time"

	"ptthqd/pkg/control"
	"ptthqd/pkg/link"
	"ptthqd/pkg/session"
	"ptthqd/pkg/uplink"
)

// status prints what clients and servers have in common.
func (v *endView) status(s *control.Status) {
	for _, l := range v.links {
		s.Links = append(s.Links, statusOfLink(l, v.over[l.Address]))
	}
	for _, i := range v.sessions {
		s.Connections = append(s.Connections, statusOfSession(i))
	}
	v.statusOfCounters(&s.Counters)
	m := v.memory
	s.Process.MemoryUsed = m.Promised + m.Retained
	s.Process.MemoryLimit = m.PromisedLimit + m.RetainedLimit
	for _, short := range m.Short {
		s.Shortages = append(s.Shortages, control.Shortage{
			Limit: short.Budget, Peer: short.Peer, Held: short.Held, Free: short.Free,
		})
	}
}

func statusOfLink(u uplink.State, connections int) control.Link {
	key := u.Keys[0]
	if u.Up {
		key = u.Key
	}
	l := control.Link{
		Relay:     u.Address,
		PublicKey: key.String(),
		State:     control.LinkConnecting,
		Since:     u.Since,
		Attempts:  u.Attempts,
		Name:      u.Called,
		LastError: u.LastError, LastReason: string(u.Reason),
	}
	if at := u.Contested; !at.IsZero() && time.Since(at) < contestedTime {
		l.Problem = "another node holds this node's key: the two met at the relay at " +
			at.Format(time.TimeOnly)
	}
	switch {
	case u.Up:
		l.State, l.Address, l.Connections = control.LinkConnected, u.Remote.String(), connections
		l.Figures = figures(u.Stats)
		l.Socket = &control.Socket{
			GRO: u.Socket.GRO, ReceiveBuffer: u.Socket.ReceiveBuffer, Dropped: u.Socket.Dropped,
		}
	case !u.NextDial.IsZero():
		l.State, l.NextAttempt = control.LinkWaiting, u.NextDial
	}
	return l
}

// contestedTime is how long the status names another node with this node's key. The two meet again
// within it: a node that was superseded waits 5 minutes at most.
const contestedTime = 20 * time.Minute

// OwnKeyHint says what to do about nodes that share a key.
const OwnKeyHint = "give each node a key of its own, made with `ptthqd keygen`, " +
	"and name each in the relay's [[peers]]"

func figures(s link.Stats) *control.Figures {
	f := &control.Figures{
		RTT:           control.Seconds(s.RTT),
		PacketsSent:   s.PacketsSent,
		PacketsLost:   s.PacketsLost,
		BytesSent:     s.BytesSent,
		BytesReceived: s.BytesReceived,
		GSO:           s.GSO,
		ParitySent:    s.ParitySent,
		Restored:      s.Restored,
	}
	if s.PacketsSent > 0 {
		f.Loss = float64(s.PacketsLost) / float64(s.PacketsSent)
	}
	return f
}

func statusOfSession(s session.Info) control.Connection {
	return control.Connection{
		ID:        s.ID,
		State:     string(s.State),
		Since:     s.Since,
		Opened:    s.Opened,
		Age:       control.Seconds(time.Since(s.Opened)),
		Mapping:   s.Mapping,
		Client:    s.Client,
		Source:    s.Source,
		Server:    s.Server,
		Target:    s.Target,
		Peer:      s.Peer,
		BytesUp:   uint64(max(s.Up, 0)),
		BytesDown: uint64(max(s.Down, 0)),
		Resumes:   s.Resumes,
		Relay:     s.Relay,
	}
}

func (v *endView) statusOfCounters(c *control.Counters) {
	t := v.all
	c.Opened, c.BytesUp, c.BytesDown, c.Resumed = t.opened, t.Up, t.Down, t.Resumes
	c.LimitsHit = v.limitsHit
	for status, n := range t.Status {
		if status < 300 {
			continue // granted, or ended before it was answered
		}
		if c.Refused == nil {
			c.Refused = make(map[string]uint64)
		}
		c.Refused[code(status)] += n
	}
	for end, n := range t.Ends {
		if c.Ended == nil {
			c.Ended = make(map[string]uint64)
		}
		c.Ended[string(end)] += n
	}
}
