// Package door admits strangers to a relay: it decides which handshakes may be under way. It knows
// addresses and counts, and nothing of QUIC.
//
// The one idea: a first packet costs its sender nothing, not even an address of its own. So
// handshakes take places, which are bounded in all and for each source. Senders with an unproved
// address share a part of the places. When that part is full, a sender must prove its address, for
// which the door stores nothing, and finds the other places free. Failed authentications give a
// source a penalty.
//
//	if d.MustProve(source, limits) { ... } // ask for proof of the address (Retry)
//	visit, limit := d.Enter(source, proved, limits)
//	if limit != "" { ... }                 // refuse
//	visit.Succeed(peer)                    // or visit.Fail(punish, limits)
//
// A [Door] is shared by all listeners of a relay. All methods may be called from any goroutine.
package door

import (
	"container/heap"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The limits that Enter returns, by their names in the config.
const (
	LimitHandshakes       = "handshakes"
	LimitSourceHandshakes = "handshakes_per_source"
	LimitPenalty          = "auth_penalty"
)

// Limits bound what strangers can make grow. There are no defaults: the caller sets each field.
type Limits struct {
	// Handshakes and HandshakesPerSource are how many handshakes may be under way: in all and from
	// one source. One source takes no more than an eighth of the free places, or half of them if a
	// peer was there within a day.
	Handshakes, HandshakesPerSource int
	// AuthPenalty is what a failed authentication adds to its source's penalty. AuthPenaltyMax is
	// the longest penalty. Zero disables penalties.
	AuthPenalty, AuthPenaltyMax time.Duration
	// PenaltySources is how many sources with a penalty are remembered.
	PenaltySources int
	// Exempt lists the networks without penalties. A source that overlaps one of them is exempt.
	Exempt []netip.Prefix
}

// A Door lets handshakes in. It counts those under way from each source. It remembers which sources
// have failed to authenticate, and where peers were let in. The limits bound all of that. The zero
// value is ready.
//
// An address says little: behind a NAT, peers and strangers share one. The key says all, but only
// the handshake proves it. So a penalty leaves a source a few handshakes at a time. A source where
// a peer was let in within a day has no penalty, and has places that failures there do not take.
type Door struct {
	mu       sync.Mutex
	all      crowd
	sources  map[netip.Prefix]crowd
	punished map[netip.Prefix]*penalty
	ends     penalties // the same penalties, by their end
	homes    homes
}

// A crowd counts handshakes under way: all, those with an unproved address, and those that have
// failed and are still counted.
type crowd struct{ inside, unproved, failed int }

func (c crowd) plus(n int, proved bool) crowd {
	c.inside += n
	if !proved {
		c.unproved += n
	}
	return c
}

// Shares of the places. Handshakes with an unproved address share 1/unprovedPart. A source takes at
// most 1/sourcePart of the free places, or 1/homePart if a peer was there, so many sources can't
// take all places before others come.
const (
	unprovedPart = 4
	sourcePart   = 8
	homePart     = 2
	penaltyPart  = 8 // of HandshakesPerSource, for a source with a penalty
)

// holdFailed is how long a failed handshake counts as under way, from its beginning. A handshake
// costs a listener up to a millisecond, and the next might begin at once.
const holdFailed = time.Second

// leastEnforced is the penalty that a source must exceed before it has an effect: a node with a new
// key tries a few times while its administrator adds the key. sshd has the same (PerSourcePenalties
// min).
const leastEnforced = 15 * time.Second

// A penalty is a time for which a source is limited.
type penalty struct {
	source   netip.Prefix
	until    time.Time
	enforced bool // has exceeded leastEnforced; stays so until the penalty ends
	index    int  // in the heap
}

// SourceOf returns the network that one stranger has: an IPv4 address, or the /64 of an IPv6 host.
func SourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	source, _ := a.Prefix(bits) // no address has fewer bits
	return source
}

// MustProve reports whether a handshake from a source must prove its address first.
func (d *Door) MustProve(source netip.Prefix, l *Limits) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all.unproved >= max(1, l.Handshakes/unprovedPart) ||
		d.sources[source].unproved >= max(1, l.HandshakesPerSource/unprovedPart)
}

// Enter counts a handshake, or returns the limit that keeps it out. The caller ends the visit with
// Fail or Succeed.
func (d *Door) Enter(source netip.Prefix, proved bool, l *Limits) (_ *Visit, limit string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	free := l.Handshakes - d.all.inside
	c := d.sources[source]
	inside, most := c.inside, min(l.HandshakesPerSource, max(1, free/sourcePart))
	peers := d.homes.at(source, now)
	if peers > 0 {
		inside -= min(c.failed, l.HandshakesPerSource)
		most = min(l.HandshakesPerSource+peers, max(1, free/homePart))
	}
	p := d.punished[source]
	switch {
	case p != nil && p.enforced && now.Before(p.until) &&
		inside >= max(1, l.HandshakesPerSource/penaltyPart) && peers == 0:
		return nil, LimitPenalty
	case free <= 0:
		return nil, LimitHandshakes
	case inside >= most:
		return nil, LimitSourceHandshakes
	}
	if d.sources == nil {
		d.sources = make(map[netip.Prefix]crowd)
	}
	d.all = d.all.plus(1, proved)
	d.sources[source] = c.plus(1, proved)
	return &Visit{door: d, source: source, proved: proved, began: now}, ""
}

// A Visit is a handshake that was let in. Only the first call of Fail or Succeed counts.
type Visit struct {
	door   *Door
	source netip.Prefix
	proved bool
	began  time.Time
	over   bool
}

// Fail ends a handshake that has failed. punish adds a penalty: the key was not accepted.
func (v *Visit) Fail(punish bool, l *Limits) {
	d := v.door
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.over {
		return
	}
	v.over = true
	if punish {
		d.punishLocked(v.source, l)
	}
	rest := holdFailed - time.Since(v.began)
	if rest <= 0 {
		v.leaveLocked()
		return
	}
	c := d.sources[v.source]
	c.failed++
	d.sources[v.source] = c
	time.AfterFunc(rest, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		c := d.sources[v.source]
		c.failed--
		d.sources[v.source] = c
		v.leaveLocked()
	})
}

// Succeed ends a handshake that has proved the key of a peer.
func (v *Visit) Succeed(peer string) {
	d := v.door
	d.mu.Lock()
	defer d.mu.Unlock()
	if v.over {
		return
	}
	v.over = true
	d.homes.add(peer, v.source, time.Now())
	v.leaveLocked()
}

func (v *Visit) leaveLocked() {
	d := v.door
	d.all = d.all.plus(-1, v.proved)
	c := d.sources[v.source].plus(-1, v.proved)
	d.sources[v.source] = c
	if c.inside == 0 {
		delete(d.sources, v.source)
	}
}

// Seen notes that a peer is at a source now. Call it when a peer's link ends, which may have begun
// long ago.
func (d *Door) Seen(peer string, source netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.homes.add(peer, source, time.Now())
}

// Expel forgets where a peer was. Call it when the peer is removed.
func (d *Door) Expel(peer string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.homes.expel(peer)
}

// punishLocked adds to a source's penalty. If too many sources have one, the penalty that would end
// first is dropped.
func (d *Door) punishLocked(source netip.Prefix, l *Limits) {
	if l.AuthPenalty <= 0 || slices.ContainsFunc(l.Exempt, source.Overlaps) {
		return
	}
	now := time.Now()
	for len(d.ends) > 0 && !now.Before(d.ends[0].until) {
		d.forgiveFirstLocked()
	}
	p := d.punished[source]
	if p == nil {
		for len(d.ends) >= l.PenaltySources {
			d.forgiveFirstLocked()
		}
		if d.punished == nil {
			d.punished = make(map[netip.Prefix]*penalty)
		}
		p = &penalty{source: source, until: now}
		d.punished[source] = p
		heap.Push(&d.ends, p)
	}
	p.until = now.Add(min(p.until.Sub(now)+l.AuthPenalty, l.AuthPenaltyMax))
	p.enforced = p.enforced || p.until.Sub(now) > leastEnforced
	heap.Fix(&d.ends, p.index)
}

func (d *Door) forgiveFirstLocked() {
	delete(d.punished, d.ends[0].source)
	heap.Pop(&d.ends)
}

// Forgive forgets all penalties. Call it when the config changes.
func (d *Door) Forgive() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.punished, d.ends = nil, nil
}

// penalties is a heap by end.
type penalties []*penalty

func (h penalties) Len() int           { return len(h) }
func (h penalties) Less(i, j int) bool { return h[i].until.Before(h[j].until) }

func (h penalties) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *penalties) Push(x any) {
	p, ok := x.(*penalty)
	if !ok {
		panic("internal error: no penalty")
	}
	p.index = len(*h)
	*h = append(*h, p)
}

func (h *penalties) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return p
}
