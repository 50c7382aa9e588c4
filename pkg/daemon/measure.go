package daemon

import (
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ledger"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/session"
	"ptthqd/pkg/uplink"
	"ptthqd/pkg/wire"
)

// Measure fills in what a client knows.
func (r clientRole) Measure(s *sample) {
	now := r.Snapshot()
	mappings := make([]string, len(now.Mappings))
	for i, m := range now.Mappings {
		mappings[i] = m.Name
		if m.Enabled {
			s.is(listenerBound, truth(len(m.Listening) > 0), m.Name, m.Listen.String())
		}
	}
	s.links(now.Relays, now.Sessions)
	s.sessions(now.Counts.Mappings, now.Sessions, mappings)
	s.sessionMemory(now.Memory)
	s.budget("link_memory", now.LinkMemory, now.LinkMemoryLimit)
	s.limits(config.RoleClient, now.LimitsHit)
	s.is(connectionsHeld, float64(now.Held))
}

// Measure fills in what a server knows.
func (r serverRole) Measure(s *sample) {
	now := r.Snapshot()
	s.links(now.Relays, now.Sessions)
	s.sessions(map[string]ledger.Tally{"": now.Counts.Tally}, now.Sessions, []string{""})
	s.sessionMemory(now.Memory)
	s.budget("link_memory", now.LinkMemory, now.LinkMemoryLimit)
	s.limits(config.RoleServer, now.LimitsHit)
	s.is(connectionsDialling, float64(now.Dials))
}

// What can be counted is shown from the beginning, with 0: where a series begins with 1, Prometheus sees no increase.
var (
	sessionStates = []string{string(session.Opening), string(session.Attached), string(session.Detached), string(session.Closing)}
	sessionEnds   = []session.End{
		session.EndClosed, session.EndRefused, session.EndResetByP1, session.EndResetByP5, session.EndExpired, session.EndRevoked,
		session.EndStopped, session.EndRestarted, session.EndProtocol, session.EndRemoved, session.EndUnattached,
	}
	refusals = []wire.Status{
		wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusNotNewest, wire.StatusNoSession, wire.StatusTooMany,
		wire.StatusRefused, wire.StatusNotConnected, wire.StatusTimeout, wire.StatusVersion,
		wire.StatusLoop,
	}
	limitsOf = map[config.Role][]string{
		config.RoleClient: {
			"held_connections", "pending_tips", "pending_tips_total", "retained_memory", "session_memory", "sessions",
			"sessions_per_mapping", "spare_descriptors",
		},
		config.RoleServer: {
			"detached_per_client", "dials", "dials_per_target", "opens_per_second", "pending_tips", "pending_tips_total",
			"retained_memory", "session_memory", "sessions", "sessions_per_client", "spare_descriptors",
		},
		config.RoleRelay: {
			"auth_penalty", "handshakes", "handshakes_per_source", "links", "opens_per_second", "parked_resumes", "pending_tips",
			"pending_tips_total", "retry_rate", "streams", "streams_per_peer",
		},
	}
)

// sessions tells of the connections of a client or server, which has no mappings but "".
func (s *sample) sessions(ended map[string]ledger.Tally, running []session.Info, mappings []string) {
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
		n.states[string(i.State)]++
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
			if granted(status) {
				n.opened += count
			}
		}
		for _, status := range refusals {
			s.counts(connectionsRefused, tally.Status[status], mapping, code(status))
		}
		for _, end := range sessionEnds {
			s.counts(connectionsEnded, tally.Ends[end], mapping, string(end))
		}
		s.counts(connectionsOpened, n.opened, mapping)
		s.counts(connectionsResumed, n.resumes+tally.Resumes, mapping)
		s.counts(forwardedBytes, n.up+tally.Up, mapping, "up")
		s.counts(forwardedBytes, n.down+tally.Down, mapping, "down")
	}
}

func (s *sample) budget(name string, used, limit int64) {
	s.is(budgetUsed, float64(used), name)
	s.is(budgetLimit, float64(limit), name)
}

func (s *sample) sessionMemory(m session.Memory) {
	s.budget("session_memory", m.Promised, m.PromisedLimit)
	s.budget("retained_memory", m.Retained, m.RetainedLimit)
}

// granted tells whether a server has opened the connection.
func granted(s wire.Status) bool { return 200 <= s && s < 300 }

func (s *sample) limits(of config.Role, hit map[string]uint64) {
	for _, limit := range limitsOf[of] {
		s.counts(limitsHit, hit[limit], limit)
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
			ParitySent: t.ParitySent, Restored: t.Restored,
			BytesSent: t.BytesSent, BytesReceived: t.BytesReceived,
		}, at, "")
		for _, reason := range link.DialReasons {
			s.counts(dialsFailed, t.Failed[reason], at, string(reason))
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
	s.counts(linkParity, t.ParitySent, at, peer)
	s.counts(linkRestored, t.Restored, at, peer)
	for _, reason := range link.EndReasons {
		s.counts(linkEnded, t.Ended[reason], at, peer, string(reason))
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
	opened := uint64(0)
	for status, n := range c.Replies {
		if granted(status) {
			opened += n
		}
	}
	for _, status := range refusals {
		s.counts(connectionsRefused, c.Refused[status]+c.Replies[status], "", code(status))
	}
	s.counts(connectionsOpened, opened, "")
	s.counts(connectionsResumed, c.Resumed, "")
	s.counts(forwardedBytes, c.BytesUp, "", "up")
	s.counts(forwardedBytes, c.BytesDown, "", "down")
	s.counts(parked, c.Parked)
	s.counts(stalled, c.Stalled)
	s.limits(config.RoleRelay, c.LimitsHit)
	s.budget("link_memory", r.windows.Used(), r.windows.Limit())
	s.peers(now.Peers)
	refused := r.links.StrangerTries()
	s.is(keysWaiting, float64(len(r.waiting())))
	s.counts(keysRefused, refused)
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
	all := make(map[string]carrier.Stats)
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
	for _, l := range r.listen {
		s.is(listenerBound, truth(r.vacant[l] == nil), "", l.String())
	}
	for place, seen := range all {
		s.counts(udpPackets, seen.Received, place)
		s.counts(udpDropped, seen.Dropped, place)
		s.counts(udpSendFailures, seen.SendFailures, place)
		s.is(udpReceiveBuffer, float64(seen.ReceiveBuffer), place)
		s.is(udpGRO, truth(seen.GRO), place)
	}
}
