package daemon

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/wire"
)

// relayView is what a relay knows.
type relayView struct {
	relay.Snapshot
	sockets []socketView
	listen  []config.Listen
	vacant  map[config.Listen]error // those that are not bound
	waiting []link.Stranger
	knocks  uint64 // handshakes with an unknown key

	linkMemory, linkMemoryLimit int64

	// Sums over the snapshot.
	states  map[relay.State]int
	opened  uint64
	refused map[wire.Status]uint64 // by this relay and by servers
}

type socketView struct {
	carrier.Stats
	place, address string
}

func (r *relayRole) View() view {
	v := &relayView{
		Snapshot: r.Snapshot(),
		waiting:  r.waiting(),
		states:   make(map[relay.State]int),
	}
	v.linkMemory, v.linkMemoryLimit = r.windows.State()
	v.knocks = r.links.StrangerTries()
	r.mu.Lock()
	v.listen, v.vacant = r.listen, maps.Clone(r.vacant)
	for _, s := range r.sockets {
		v.sockets = append(v.sockets, socketView{s.Stats(), s.place, s.LocalAddr().String()})
	}
	r.mu.Unlock()
	for _, c := range v.Connections {
		v.states[c.State]++
	}
	v.refused = maps.Clone(v.Counters.Refused)
	for status, n := range v.Counters.Replies {
		if granted(status) {
			v.opened += n
		} else {
			v.refused[status] += n
		}
	}
	return v
}

func (v *relayView) status(s *control.Status) {
	v.statusOfListeners(s)
	for _, w := range v.waiting {
		s.Waiting = append(s.Waiting, control.Waiting{
			Key: w.Key.String(), Address: w.Address, Since: w.Since, Last: w.Last, Tries: w.Tries,
		})
	}
	for _, p := range v.Peers {
		s.Peers = append(s.Peers, statusOfPeer(p))
	}
	for _, c := range v.Connections {
		s.Connections = append(s.Connections, statusOfForwarded(c))
	}
	slices.SortFunc(s.Connections, func(a, b control.Connection) int {
		return cmp.Or(a.Opened.Compare(b.Opened), strings.Compare(a.ID, b.ID))
	})
	c := &s.Counters
	c.Opened, c.Resumed = v.opened, v.Counters.Resumed
	c.BytesUp, c.BytesDown = v.Counters.BytesUp, v.Counters.BytesDown
	c.LimitsHit = v.Counters.LimitsHit
	c.Refused = make(map[string]uint64)
	for status, n := range v.refused {
		c.Refused[code(status)] = n
	}
}

func (v *relayView) statusOfListeners(s *control.Status) {
	for _, socket := range v.sockets {
		s.Listeners = append(s.Listeners, control.Listener{
			Listen:        socket.place,
			Address:       socket.address,
			GRO:           socket.GRO,
			ReceiveBuffer: socket.ReceiveBuffer,
			SendBuffer:    socket.SendBuffer,
			Packets:       socket.Received,
			Dropped:       socket.Dropped,
			SendFailures:  socket.SendFailures,
		})
	}
	for _, l := range v.listen {
		if err := v.vacant[l]; err != nil {
			problem, hint := bind.Problem(err)
			s.Listeners = append(s.Listeners, control.Listener{
				Listen: l.String(), Problem: problem, Hint: hint,
			})
		}
	}
}

func statusOfPeer(p relay.Peer) control.Peer {
	peer := control.Peer{
		ID: p.ID, OtherNames: p.Others, Role: string(p.Role), Source: p.Source.String(),
		LastSeen: p.LastSeen,
	}
	if p.Link != nil {
		peer.Connected, peer.Since, peer.Address = true, p.Link.Since, p.Link.Address.String()
		peer.Figures, peer.Connections = figures(p.Link.Stats), p.Link.Connections
	}
	if len(p.Rivals) > 0 {
		peer.Problem = "several nodes hold its key, at " + addresses(p.Rivals)
	}
	return peer
}

func statusOfForwarded(c relay.Connection) control.Connection {
	return control.Connection{
		ID:        c.ID,
		State:     string(c.State),
		Since:     c.Since,
		Opened:    c.Since,
		Age:       control.Seconds(time.Since(c.Since)),
		Client:    c.Client,
		Source:    c.Source,
		Server:    c.Server,
		Target:    c.Target,
		BytesUp:   c.BytesUp,
		BytesDown: c.BytesDown,
		Resumes:   int(max(c.Attempt, 1) - 1),
	}
}

// addresses lists addresses: "10.0.0.1 and 10.0.0.2".
func addresses(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.Unmap().String()
	}
	return strings.Join(texts, " and ")
}

// relayStates are shown even while no connection is in them.
var relayStates = []relay.State{
	relay.StateAdmitted, relay.StateParked, relay.StateOpening, relay.StateOpen, relay.StateRefused,
}

func (v *relayView) measure(s *sample) {
	for _, state := range relayStates {
		s.is(connections, float64(v.states[state]), "", string(state))
	}
	for _, status := range refusals {
		s.counts(connectionsRefused, v.refused[status], "", code(status))
	}
	c := v.Counters
	s.counts(connectionsOpened, v.opened, "")
	s.counts(connectionsResumed, c.Resumed, "")
	s.counts(forwardedBytes, c.BytesUp, "", "up")
	s.counts(forwardedBytes, c.BytesDown, "", "down")
	s.counts(parked, c.Parked)
	s.counts(stalled, c.Stalled)
	s.limits(config.RoleRelay, c.LimitsHit)
	s.budget("link_memory", v.linkMemory, v.linkMemoryLimit)
	s.is(keysWaiting, float64(len(v.waiting)))
	s.counts(keysRefused, v.knocks)
	v.measurePeers(s)
	v.measureListeners(s)
}

func (v *relayView) measurePeers(s *sample) {
	known, connected := make(map[policy.Role]int), make(map[policy.Role]int)
	for _, p := range v.Peers {
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

// measureListeners prints the sockets. Two that systemd hands over under one name count as one.
func (v *relayView) measureListeners(s *sample) {
	for _, l := range v.listen {
		s.is(listenerBound, truth(v.vacant[l] == nil), "", l.String())
	}
	places := make(map[string]carrier.Stats)
	for _, socket := range v.sockets {
		sum := socket.Stats
		if first, more := places[socket.place]; more {
			sum.ReceiveBuffer = min(sum.ReceiveBuffer, first.ReceiveBuffer)
			sum.GRO = sum.GRO && first.GRO
			sum.Received += first.Received
			sum.Dropped += first.Dropped
			sum.SendFailures += first.SendFailures
		}
		places[socket.place] = sum
	}
	for place, sum := range places {
		s.counts(udpPackets, sum.Received, place)
		s.counts(udpDropped, sum.Dropped, place)
		s.counts(udpSendFailures, sum.SendFailures, place)
		s.is(udpReceiveBuffer, float64(sum.ReceiveBuffer), place)
		s.is(udpGRO, truth(sum.GRO), place)
	}
}
