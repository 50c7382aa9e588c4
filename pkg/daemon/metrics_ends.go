package daemon

import (
	"ptthqd/pkg/link"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/session"
)

// The states and ends of connections that are shown from the beginning, with 0.
var (
	sessionStates = []session.State{session.Opening, session.Attached, session.Detached, session.Closing}
	sessionEnds   = []session.Outcome{
		session.OutcomeClosed, session.OutcomeRefused, session.OutcomeResetByP1, session.OutcomeResetByP5,
		session.OutcomeExpired, session.OutcomeRevoked, session.OutcomeStopped, session.OutcomeRestarted,
		session.OutcomeProtocol, session.OutcomeRemoved, session.OutcomeUnattached,
	}
)

// measure prints what clients and servers have in common.
func (v *endView) measure(s *sample) {
	for mapping, t := range v.tallies {
		for _, state := range sessionStates {
			s.is(connections, float64(t.states[state]), mapping, string(state))
		}
		for _, status := range refusals {
			s.counts(connectionsRefused, t.Status[status], mapping, code(status))
		}
		for _, end := range sessionEnds {
			s.counts(connectionsEnded, t.Ends[end], mapping, string(end))
		}
		s.counts(connectionsOpened, t.opened, mapping)
		s.counts(connectionsResumed, t.Resumes, mapping)
		s.counts(forwardedBytes, t.Up, mapping, "up")
		s.counts(forwardedBytes, t.Down, mapping, "down")
	}
	v.measureLinks(s)
	s.budget("session_memory", v.memory.Promised, v.memory.PromisedLimit)
	s.budget("retained_memory", v.memory.Retained, v.memory.RetainedLimit)
	s.budget("link_memory", v.linkMemory, v.linkMemoryLimit)
}

// measureLinks prints the links and their sockets.
func (v *endView) measureLinks(s *sample) {
	for _, l := range v.links {
		at := l.Address
		s.is(linkUp, truth(l.Up), at, "")
		s.is(linkConnections, float64(v.over[at]), at, "")
		if l.Up {
			s.live(l.Stats, at, "")
			s.is(udpReceiveBuffer, float64(l.Socket.ReceiveBuffer), at)
			s.is(udpGRO, truth(l.Socket.GRO), at)
		}
		t := l.Totals
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
