package daemon

import (
	"ptthqd/pkg/account"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/session"
	"ptthqd/pkg/uplink"
)

// Measure fills in what a client knows.
func (r clientRole) Measure(s *sample) {
	now := r.Snapshot()
	mappings := make([]string, len(now.Mappings))
	for i, m := range now.Mappings {
		mappings[i] = m.Name
	}
	s.links(now.Relays, now.Sessions)
	s.sessions(now.Counts.Mappings, now.Sessions, mappings)
	s.memory(now.Memory)
	s.limits(now.LimitsHit)
	s.is(connectionsHeld, float64(now.Held))
}

// Measure fills in what a server knows.
func (r serverRole) Measure(s *sample) {
	now := r.Snapshot()
	s.links(now.Relays, now.Sessions)
	s.sessions(map[string]account.Tally{"": now.Counts.Tally}, now.Sessions, []string{""})
	s.memory(now.Memory)
	s.limits(now.LimitsHit)
	s.is(connectionsDialling, float64(now.Dials))
}

// sessionStates are shown even while no connection is in them.
var sessionStates = []string{session.Opening, session.Attached, session.Detached, session.Closing}

// sessions tells of the connections of a client or server, which has no mappings but "".
func (s *sample) sessions(ended map[string]account.Tally, running []session.Info, mappings []string) {
	type now struct {
		states                    map[string]int
		opened, up, down, resumes uint64
	}
	of := make(map[string]*now)
	at := func(mapping string) *now {
		if of[mapping] == nil {
			of[mapping] = &now{states: make(map[string]int)}
		}
		return of[mapping]
	}
	for _, mapping := range mappings {
		at(mapping)
	}
	for mapping := range ended { // also of mappings that are gone
		at(mapping)
	}
	for _, i := range running {
		n := at(i.Mapping)
		n.states[i.State]++
		if i.State != session.Opening {
			n.opened++
		}
		n.up += uint64(max(i.Up, 0))
		n.down += uint64(max(i.Down, 0))
		n.resumes += uint64(max(i.Resumes, 0))
	}
	for mapping, n := range of {
		for _, state := range sessionStates {
			s.is(connections, float64(n.states[state]), mapping, state)
		}
		tally := ended[mapping]
		for status, count := range tally.Status {
			switch {
			case status >= 300:
				s.counts(connectionsRefused, count, mapping, code(status))
			case status >= 200:
				n.opened += count
			}
		}
		for end, count := range tally.Ends {
			s.counts(connectionsEnded, count, mapping, string(end))
		}
		s.counts(connectionsOpened, n.opened, mapping)
		s.counts(connectionsResumed, n.resumes+tally.Resumes, mapping)
		s.counts(forwardedBytes, n.up+tally.Up, mapping, "up")
		s.counts(forwardedBytes, n.down+tally.Down, mapping, "down")
	}
}

func (s *sample) memory(m session.Memory) {
	s.is(memory, float64(m.Promised), "promised")
	s.is(memory, float64(m.Retained), "retained")
	s.is(memoryLimit, float64(m.PromisedLimit), "promised")
	s.is(memoryLimit, float64(m.RetainedLimit), "retained")
}

func (s *sample) limits(hit map[string]uint64) {
	for limit, n := range hit {
		s.counts(limitsHit, n, limit)
	}
}

// links tells of the links of a client or server, and of their sockets.
func (s *sample) links(relays []uplink.State, running []session.Info) {
	over := make(map[string]int)
	for _, i := range running {
		if i.State != session.Detached {
			over[i.Relay]++
		}
	}
	for _, r := range relays {
		at := r.Address
		s.is(linkUp, truth(r.Up), at, "")
		s.is(linkConnections, float64(over[at]), at, "")
		if r.Up {
			s.live(r.Stats, at, "")
			s.is(udpReceiveBuffer, float64(r.Socket.ReceiveBuffer), at)
			s.is(udpGRO, truth(r.Socket.GRO), at)
		}
		t := r.Totals
		s.link(relay.LinkTotals{
			Ended:       t.Ended,
			PacketsSent: t.PacketsSent, PacketsLost: t.PacketsLost,
			BytesSent: t.BytesSent, BytesReceived: t.BytesReceived,
		}, at, "")
		for reason, n := range t.Failed {
			s.counts(dialsFailed, n, at, string(reason))
		}
		s.counts(udpDropped, t.Dropped, at)
		s.counts(udpSendFailures, t.SendFailures, at)
	}
}

// live tells of a link that is up.
func (s *sample) live(stats link.Stats, at, peer string) {
	s.is(linkRTT, stats.RTT.Seconds(), at, peer)
	s.is(linkGSO, truth(stats.GSO), at, peer)
}

// link tells what all links to a neighbour have counted.
func (s *sample) link(t relay.LinkTotals, at, peer string) {
	s.counts(linkBytes, t.BytesSent, at, peer, "sent")
	s.counts(linkBytes, t.BytesReceived, at, peer, "received")
	s.counts(linkPackets, t.PacketsSent, at, peer)
	s.counts(linkLost, t.PacketsLost, at, peer)
	for reason, n := range t.Ended {
		s.counts(linkEnded, n, at, peer, string(reason))
	}
}

// relayStates are shown even while no connection is in them.
var relayStates = []relay.State{relay.StateAdmitted, relay.StateParked, relay.StateOpening, relay.StateOpen, relay.StateRefused}

// Measure fills in what a relay knows.
func (r *relayRole) Measure(s *sample) {
	now := r.Snapshot()
	states := make(map[relay.State]int)
	for _, c := range now.Connections {
		states[c.State]++
	}
	for _, state := range relayStates {
		s.is(connections, float64(states[state]), "", string(state))
	}
	c := now.Counters
	refused := make(map[string]uint64)
	opened := uint64(0)
	for status, n := range c.Refused {
		refused[code(status)] += n
	}
	for status, n := range c.Replies {
		if status < 300 {
			opened += n
			continue
		}
		refused[code(status)] += n
	}
	for code, n := range refused {
		s.counts(connectionsRefused, n, "", code)
	}
	s.counts(connectionsOpened, opened, "")
	s.counts(connectionsResumed, c.Resumed, "")
	s.counts(forwardedBytes, c.BytesUp, "", "up")
	s.counts(forwardedBytes, c.BytesDown, "", "down")
	s.counts(parked, c.Parked)
	s.counts(stalled, c.Stalled)
	s.limits(c.LimitsHit)
	s.peers(now.Peers)
	s.listeners(r)
}

func (s *sample) peers(peers []relay.Peer) {
	known, connected := make(map[policy.Role]int), make(map[policy.Role]int)
	for _, p := range peers {
		known[p.Role]++
		s.is(linkUp, truth(p.Link != nil), "", p.ID)
		s.link(p.Totals, "", p.ID)
		if p.Link == nil {
			continue
		}
		connected[p.Role]++
		s.is(linkConnections, float64(p.Link.Connections), "", p.ID)
		s.live(p.Link.Stats, "", p.ID)
	}
	for _, role := range []policy.Role{policy.RoleClient, policy.RoleServer} {
		s.is(peersKnown, float64(known[role]), string(role))
		s.is(peersConnected, float64(connected[role]), string(role))
	}
}

// listeners tells of a relay's sockets. Two that systemd hands over under one name count as one.
func (s *sample) listeners(r *relayRole) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]link.SocketStats)
	for _, socket := range r.sockets {
		seen, first := socket.Stats(), all[socket.place]
		if first.ReceiveBuffer > 0 {
			seen.ReceiveBuffer = min(seen.ReceiveBuffer, first.ReceiveBuffer)
			seen.GRO = seen.GRO && first.GRO
		}
		seen.Received += first.Received
		seen.Dropped += first.Dropped
		seen.SendFailures += first.SendFailures
		all[socket.place] = seen
	}
	for place, seen := range all {
		s.counts(udpPackets, seen.Received, place)
		s.counts(udpDropped, seen.Dropped, place)
		s.counts(udpSendFailures, seen.SendFailures, place)
		s.is(udpReceiveBuffer, float64(seen.ReceiveBuffer), place)
		s.is(udpGRO, truth(seen.GRO), place)
	}
}
