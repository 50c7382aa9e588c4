package uplink

import (
	"net/netip"
	"slices"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
)

// Changed returns a channel that is closed when Live will next have changed, or a relay has
// withdrawn a right.
func (s *Set) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// Live returns the links over which new streams may be opened, the lowest smoothed round trip
// first. It leaves out links that are over, and those whose relay is closing or retiring.
func (s *Set) Live() []*link.Link {
	type ranked struct {
		link *link.Link
		rtt  time.Duration
	}
	s.mu.Lock()
	usable := make([]ranked, 0, len(s.live))
	for _, l := range s.live {
		if l.member.keep == nil && !isClosed(l.Done()) && !isClosed(l.PeerClosing()) {
			usable = append(usable, ranked{l.Link, l.RTT()})
		}
	}
	s.mu.Unlock()
	slices.SortStableFunc(usable, func(a, b ranked) int { return int(a.rtt - b.rtt) })
	links := make([]*link.Link, len(usable))
	for i, u := range usable {
		links[i] = u.link
	}
	return links
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Memory returns how many bytes the flow-control windows of all links have grown by, and how many
// they may grow by.
func (s *Set) Memory() (used, limit int64) { return s.windows.State() }

// State is the state of one relay of the config.
type State struct {
	config.Relay
	Up        bool
	Since     time.Time // when the link came up or went down, or dialling began
	Attempts  int       // dials since then, while there is no link
	LastError string    // why the last dial failed or the last link ended, for people
	Reason    link.Reason
	NextDial  time.Time       // the begin of the next dial, while it waits; otherwise zero
	Called    string          // what the relay calls this node; empty until it has said so
	Contested time.Time       // when another node with this key last took its place; zero for never
	Key       ident.PublicKey // the relay's key, of those in the config; zero while there is no link
	Remote    netip.AddrPort  // the source of the relay's packets; invalid while there is no link
	Closing   bool            // the relay has announced that it stops
	Stats     link.Stats      // of the live link
	Socket    carrier.Stats
	Totals    link.Totals // of all links and dials
}

// States returns the state of each relay, in the config's order.
func (s *Set) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, 0, len(s.order))
	for _, address := range s.order {
		m := s.members[address]
		d := m.dialer.State()
		state := State{
			Relay: m.relay, Since: d.Since, Attempts: d.Attempts, LastError: d.LastError,
			Reason: d.Reason, NextDial: d.NextDial, Called: m.called, Contested: d.Contested,
			Totals: m.dialer.Totals(),
		}
		if l := d.Link; l != nil {
			state.Up, state.Key, state.Remote = true, l.Key(), l.RemoteAddr()
			state.Closing = isClosed(l.PeerClosing())
			state.Stats, state.Socket = l.Stats(), l.Socket().Stats()
		}
		states = append(states, state)
	}
	return states
}
