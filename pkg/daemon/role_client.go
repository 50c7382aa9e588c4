package daemon

import (
	"cmp"
	"fmt"
	"strings"
	"syscall"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/client"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
	"ptthqd/pkg/ledger"
	"ptthqd/pkg/link"
	"ptthqd/pkg/session"
	"ptthqd/pkg/uplink"
)

type clientRole struct{ *client.Client }

func newClientRole(d *daemon, c *config.Config) (role, error) {
	p2, err := client.New(client.Config{
		Settings:         c,
		Identity:         d.identity,
		Logger:           d.log,
		RuntimeDirectory: control.RuntimeDir(c.Path),
		Inherit:          d.inheritStreams,
		KeepSockets:      d.service.Listens(),
		Rebound:          d.keepSockets,
		Opened:           d.metrics.opened,
	})
	if err != nil {
		return nil, err
	}
	return clientRole{p2}, nil
}

func (r clientRole) Sockets() map[string][]syscall.Conn {
	kept := make(map[string][]syscall.Conn)
	for place, sockets := range r.Client.Sockets() {
		if !host.OfUnit(place) { // those of socket units systemd has already
			kept[host.FDName("stream", place)] = sockets
		}
	}
	return kept
}

func (r clientRole) Unbound() (texts []string) {
	for _, m := range r.Failing() {
		problem, _ := bind.Problem(m.Failed)
		texts = append(texts, m.Name+": "+problem)
	}
	return texts
}

func (r clientRole) Describe(s *control.Status) {
	now := r.Snapshot()
	s.Connections = sessions(now.Sessions)
	s.Links = links(now.Relays, s.Connections)
	var failed []string
	for _, m := range now.Mappings {
		problem, hint := "", ""
		if m.Failed != nil {
			problem, hint = bind.Problem(m.Failed)
			failed = append(failed, m.Name+": "+problem)
		}
		s.Mappings = append(s.Mappings, control.Mapping{
			Problem:     problem,
			Hint:        hint,
			Name:        m.Name,
			Listen:      m.Listen.String(),
			Server:      m.Server,
			Target:      m.Target.String(),
			Enabled:     m.Enabled,
			Connections: m.Connections,
			Source:      m.Source.String(),
		})
	}
	count(&s.Counters, now.Counts, s.Connections)
	remember(s, now.Memory)
	s.Counters.LimitsHit = now.LimitsHit
	listening := 0
	for _, m := range s.Mappings {
		if m.Enabled {
			listening++
		}
	}
	s.Summary = fmt.Sprintf("%s; %s, %s%s", linkSummary(s.Links), plural(listening, "mapping"), connectionSummary(s.Connections), failedSummary(failed))
}

// links converts the state of a client's or server's links.
func links(states []uplink.State, connections []control.Connection) []control.Link {
	over := make(map[string]int)
	for _, c := range connections {
		if c.State != string(session.Detached) {
			over[c.Relay]++
		}
	}
	list := make([]control.Link, len(states))
	for i, s := range states {
		key := s.Keys[0]
		if s.Up {
			key = s.Key
		}
		l := control.Link{
			Relay:     s.Address,
			PublicKey: key.String(),
			State:     control.LinkConnecting,
			Since:     s.Since,
			Attempts:  s.Attempts,
			Name:      s.Called,
			LastError: s.LastError, LastReason: string(s.Reason),
		}
		if at := s.Contested; !at.IsZero() && time.Since(at) < contestedTime {
			l.Problem = "another node holds this node's key: the two met at the relay at " + at.Format(time.TimeOnly)
		}
		switch {
		case s.Up:
			l.State, l.Address, l.Figures, l.Connections = control.LinkConnected, s.Remote.String(), figures(s.Stats), over[s.Address]
			l.Socket = &control.Socket{GRO: s.Socket.GRO, ReceiveBuffer: s.Socket.ReceiveBuffer, Dropped: s.Socket.Dropped}
		case !s.NextDial.IsZero():
			l.State, l.NextAttempt = control.LinkWaiting, s.NextDial
		}
		list[i] = l
	}
	return list
}

// contestedTime is how long another node with this one's key is told of. It comes back within it: who was
// superseded by a relay of before waits 5 minutes at most.
const contestedTime = 20 * time.Minute

// OwnKeyHint says what to do about nodes that share a key.
const OwnKeyHint = "give each node a key of its own, made with `ptthqd keygen`, and name each in the relay's [[peers]]"

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

// sessions converts the sessions of a client or server.
func sessions(infos []session.Info) []control.Connection {
	list := make([]control.Connection, len(infos))
	for i, s := range infos {
		list[i] = control.Connection{
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
	return list
}

// count converts the counters of a client or server; those of the connections that still run are added.
func count(c *control.Counters, ended ledger.Counts, running []control.Connection) {
	c.BytesUp, c.BytesDown, c.Resumed = ended.Up, ended.Down, ended.Resumes
	for status, n := range ended.Status {
		if granted(status) {
			c.Opened += n
		}
		if status < 300 {
			continue // or it ended before it was answered
		}
		if c.Refused == nil {
			c.Refused = make(map[string]uint64)
		}
		c.Refused[fmt.Sprint(uint64(status))] += n
	}
	for end, n := range ended.Ends {
		if c.Ended == nil {
			c.Ended = make(map[string]uint64)
		}
		c.Ended[string(end)] += n
	}
	for _, s := range running {
		if s.State != string(session.Opening) {
			c.Opened++
		}
		c.BytesUp += s.BytesUp
		c.BytesDown += s.BytesDown
		c.Resumed += uint64(s.Resumes)
	}
}

func remember(s *control.Status, m session.Memory) {
	s.Process.MemoryUsed, s.Process.MemoryLimit = m.Promised+m.Retained, m.PromisedLimit+m.RetainedLimit
	for _, short := range m.Short {
		s.Shortages = append(s.Shortages, control.Shortage{Limit: short.Budget, Peer: short.Peer, Held: short.Held, Free: short.Free})
	}
}

// linkSummary says in a few words how the links stand.
func linkSummary(links []control.Link) string {
	var up, down []string
	for _, l := range links {
		if l.State == control.LinkConnected {
			up = append(up, fmt.Sprintf("%s (%s)", l.Relay, roundTrip(l.Figures.RTT)))
			continue
		}
		down = append(down, l.Relay+": "+cmp.Or(l.LastError, "being dialled"))
	}
	switch {
	case len(down) == 0:
		return "connected to " + strings.Join(up, ", ")
	case len(up) == 0:
		return "not connected: " + strings.Join(down, "; ")
	}
	return "connected to " + strings.Join(up, ", ") + ", not to " + strings.Join(down, "; ")
}

// failedSummary says which listeners are not bound: the first in words, the others by their number.
func failedSummary(failed []string) string {
	switch len(failed) {
	case 0:
		return ""
	case 1:
		return "; " + failed[0]
	}
	return fmt.Sprintf("; %s; and %d more", failed[0], len(failed)-1)
}

func roundTrip(rtt control.Seconds) string {
	d := time.Duration(rtt)
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func connectionSummary(connections []control.Connection) string {
	detached := 0
	for _, c := range connections {
		if c.State == string(session.Detached) {
			detached++
		}
	}
	text := plural(len(connections), "connection")
	if detached > 0 {
		text += fmt.Sprintf(" (%d waiting for a link)", detached)
	}
	return text
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

var _ role = clientRole{}
