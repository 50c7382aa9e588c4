package relay

import (
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

// Snapshot is what a relay knows at one moment. It shares nothing with the relay.
type Snapshot struct {
	Closing     bool         // a drain has begun
	Peers       []Peer       // all of the policy, in its order
	Connections []Connection // in no order
	Counters    Counters
}

// Peer is a peer of the policy, connected or not.
type Peer struct {
	ID       string
	Others   []string // its other names
	Role     policy.Role
	Source   policy.Source
	Link     *Link     // nil while it is not connected
	LastSeen time.Time // when its last link ended; zero if there was none, or if Link is set
	Totals   LinkTotals
	// Rivals are the addresses of the nodes if several seem to hold the peer's key: their links
	// supersede each other. Otherwise nil.
	Rivals []netip.Addr
}

// LinkTotals are the sums of all links of a peer since the relay began, the live one included.
type LinkTotals struct {
	Ended                    map[link.Reason]uint64 // links, by why they ended
	PacketsSent, PacketsLost uint64
	ParitySent, Restored     uint64
	BytesSent, BytesReceived uint64 // whole UDP payloads
}

// Link is the live link of a peer.
type Link struct {
	Address     netip.AddrPort
	Since       time.Time
	Connections int // streams joined over it
	Stats       link.Stats
}

// Connection is one stream of a client that the relay serves.
type Connection struct {
	ID        string // the same at the client and the server
	Client    string
	Source    string // P1's address
	Server    string
	Target    string
	Attempt   uint64 // the number of streams that the session has had
	State     State
	Since     time.Time
	BytesUp   uint64 // from the client, with the session's framing
	BytesDown uint64 // to the client
}

// Counters are counted since the relay began. Up is from clients to servers.
type Counters struct {
	Refused   map[wire.Status]uint64 // by the relay
	Replies   map[wire.Status]uint64 // of the servers, without granted resumes
	Resumed   uint64                 // resumes that the servers have granted
	LimitsHit map[string]uint64      // how often each limit of the config was reached
	Parked    uint64                 // requests that had to wait for their server
	Stalled   uint64                 // streams reset because they stalled others
	BytesUp   uint64
	BytesDown uint64
}

// Count returns how many connections there are.
func (r *Relay) Count() int { return r.table.len() }

// Snapshot returns the state of the relay.
func (r *Relay) Snapshot() Snapshot {
	s := Snapshot{Closing: r.closing.Load(), Counters: r.counts.snapshot()}
	s.Counters.LimitsHit = r.hits.Counts()
	s.Connections, s.Counters.BytesUp, s.Counters.BytesDown = r.table.snapshot()
	carried := r.table.carried()
	for _, known := range r.rules.Load().policy.Peers() {
		p := Peer{ID: known.ID, Others: known.Others, Role: known.Role, Source: known.Source}
		n, lastSeen, totals, rivals := r.links.look(known.ID)
		p.LastSeen, p.Totals, p.Rivals = lastSeen, totals, rivals
		if n != nil {
			p.Link = &Link{
				Address:     n.link.RemoteAddr(),
				Since:       n.link.Since(),
				Connections: carried[n],
				Stats:       n.link.Stats(),
			}
		}
		s.Peers = append(s.Peers, p)
	}
	return s
}

// snapshot returns the connections, and the bytes of all connections, also of those that have
// ended.
func (t *table) snapshot() (all []Connection, up, down uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all, up, down = make([]Connection, 0, t.streams), t.up, t.down
	for _, attempts := range t.sessions {
		for _, c := range attempts {
			forth, back := c.join.Forth.Bytes(), c.join.Back.Bytes()
			up, down = up+forth, down+back
			all = append(all, Connection{
				ID:        c.id,
				Client:    c.client,
				Source:    c.source,
				Server:    c.server,
				Target:    c.target,
				Attempt:   c.attempt,
				State:     c.state,
				Since:     c.since,
				BytesUp:   forth,
				BytesDown: back,
			})
		}
	}
	return all, up, down
}

// counts has the counters of answers.
type counts struct {
	parked, stalled, resumed atomic.Uint64

	mu      sync.Mutex
	refused map[wire.Status]uint64
	replies map[wire.Status]uint64
}

func newCounts() counts {
	return counts{refused: make(map[wire.Status]uint64), replies: make(map[wire.Status]uint64)}
}

func (c *counts) refuse(s wire.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused[s]++
}

func (c *counts) reply(s wire.Status, resume bool) {
	if resume && granted(s) {
		c.resumed.Add(1)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies[s]++
}

func (c *counts) snapshot() Counters {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Counters{
		Refused: maps.Clone(c.refused),
		Replies: maps.Clone(c.replies),
		Resumed: c.resumed.Load(),
		Parked:  c.parked.Load(),
		Stalled: c.stalled.Load(),
	}
}
