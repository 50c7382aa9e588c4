// Package door is the admission of strangers at a relay: how many handshakes may be under way, from whom, and who is to
// wait as somebody there has failed to authenticate. It knows addresses and counts; what a handshake is, it does not know.
package door

import (
	"container/heap"
	"net/netip"
	"sync"
	"time"
)

// The limits that Enter tells of, as the config names them.
const (
	LimitHandshakes       = "handshakes"
	LimitSourceHandshakes = "handshakes_per_source"
	LimitPenalty          = "auth_penalty"
)

// Limits bound what strangers can make grow. No default: the caller sets each.
type Limits struct {
	// Handshakes and HandshakesPerSource are how many handshakes may be under way, in all and from one source; from that no more
	// than an eighth of those in all that are left, either.
	Handshakes, HandshakesPerSource int
	// AuthPenalty is for how long a source is refused after a failure; each further one adds as much, up to AuthPenaltyMax. Zero:
	// it is not.
	AuthPenalty, AuthPenaltyMax time.Duration
	// PenaltySources is how many sources with a penalty are remembered.
	PenaltySources int
}

// A Door lets handshakes in. It knows how many are under way from each source, and which sources are to wait as somebody
// there has failed to authenticate. What it remembers is bounded by the limits. The zero value is ready.
//
// A first packet costs its sender nothing, not even an address of its own, and may be a stale one besides, from a dialler
// that has given up long ago. So only a part of the room is for those who have proved nothing: who comes when that is taken
// proves its address first (Retry), of which the door keeps nothing, and finds the rest of the room free of them.
type Door struct {
	mu       sync.Mutex
	all      crowd
	sources  map[netip.Prefix]crowd
	punished map[netip.Prefix]*penalty
	ends     penalties // the same, by when they end
}

// A crowd is how many handshakes are under way, and how many of them with an address that is not proved.
type crowd struct{ inside, unproved int }

func (c crowd) plus(n int, proved bool) crowd {
	c.inside += n
	if !proved {
		c.unproved += n
	}
	return c
}

// The parts of the room: one in unprovedPart of it is for handshakes with an address that is not proved; a source may take
// one in sourcePart of what is free, so that those who are many can't fill it before the others.
const (
	unprovedPart = 4
	sourcePart   = 8
)

// A penalty is a time for which a source is refused.
type penalty struct {
	source netip.Prefix
	until  time.Time
	index  int // in the heap
}

// SourceOf is what one stranger has: an IPv4 address, or the /64 that a host of IPv6 has to itself.
func SourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	source, _ := a.Prefix(bits) // no address has fewer bits
	return source
}

// MustProve tells whether who comes from a source must prove its address first.
func (d *Door) MustProve(source netip.Prefix, l *Limits) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all.unproved >= max(1, l.Handshakes/unprovedPart) ||
		d.sources[source].unproved >= max(1, l.HandshakesPerSource/unprovedPart)
}

// Enter counts a handshake, or tells which limit keeps it out.
func (d *Door) Enter(source netip.Prefix, proved bool, l *Limits) (limit string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	free := l.Handshakes - d.all.inside
	p := d.punished[source]
	switch {
	case p != nil && time.Now().Before(p.until):
		return LimitPenalty
	case free <= 0:
		return LimitHandshakes
	case d.sources[source].inside >= min(l.HandshakesPerSource, max(1, free/sourcePart)):
		return LimitSourceHandshakes
	}
	if d.sources == nil {
		d.sources = make(map[netip.Prefix]crowd)
	}
	d.all = d.all.plus(1, proved)
	d.sources[source] = d.sources[source].plus(1, proved)
	return ""
}

// Leave ends a handshake that Enter has counted.
func (d *Door) Leave(source netip.Prefix, proved bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = d.all.plus(-1, proved)
	d.sources[source] = d.sources[source].plus(-1, proved)
	if d.sources[source].inside == 0 {
		delete(d.sources, source)
	}
}

// Punish has a source wait, longer if it waits already. Where too many do, the one that would end first is let off.
func (d *Door) Punish(source netip.Prefix, l *Limits) {
	if l.AuthPenalty <= 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for len(d.ends) > 0 && !now.Before(d.ends[0].until) {
		d.forgiveFirstLocked()
	}
	if p := d.punished[source]; p != nil {
		p.until = now.Add(min(p.until.Sub(now)+l.AuthPenalty, l.AuthPenaltyMax))
		heap.Fix(&d.ends, p.index)
		return
	}
	for len(d.ends) >= l.PenaltySources {
		d.forgiveFirstLocked()
	}
	if d.punished == nil {
		d.punished = make(map[netip.Prefix]*penalty)
	}
	p := &penalty{source: source, until: now.Add(min(l.AuthPenalty, l.AuthPenaltyMax))}
	d.punished[source] = p
	heap.Push(&d.ends, p)
}

func (d *Door) forgiveFirstLocked() {
	delete(d.punished, d.ends[0].source)
	heap.Pop(&d.ends)
}

// Forgive forgets which sources are punished: those of a config before.
func (d *Door) Forgive() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.punished, d.ends = nil, nil
}

// penalties are a heap.
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
