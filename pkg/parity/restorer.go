package parity

import (
	"bytes"
	"sync/atomic"
)

const (
	// keptPackets is the number of packets that a Restorer keeps. A group and its parity can arrive
	// behind two segmented sends of 14 packets each, and as many packets again can overtake them.
	keptPackets = 128
	// openGroups is the number of groups whose parity is being collected.
	openGroups = 4
)

// A Restorer rebuilds missing packets of one peer from their parity. Only one goroutine may use it,
// the one that reads from the socket.
type Restorer struct {
	restored [2]*atomic.Uint64 // packets: of the link, of its socket

	ids    [keptPackets]id
	kept   [keptPackets]keptPacket
	next   int  // index in kept of the oldest packet, which the next one replaces
	ready  bool // a first packet of a group was found: packets are kept for long enough
	groups [openGroups]openGroup
	opened int // groups so far
	shards [][]byte

	// Packets that were rebuilt and not taken yet; refer to kept.
	rebuilt []int
}

// A keptPacket has arrived or was restored.
type keptPacket struct {
	size     int // 0: none
	restored bool
	block    block
}

// An openGroup lacks packets, and a part of its parity has arrived.
type openGroup struct {
	ids    []byte // of its packets; empty: no group
	half   int    // size of a piece
	done   bool   // nothing is missing any more, or it can't be rebuilt
	have   int    // pieces
	pieces [maxParity][]byte
}

// NewRestorer returns a Restorer that counts the packets it has restored in both counters: the
// link's and its socket's.
func NewRestorer(ofLink, ofSocket *atomic.Uint64) *Restorer {
	return &Restorer{restored: [2]*atomic.Uint64{ofLink, ofSocket}}
}

// Keep copies a packet that has arrived, if parity covers it.
func (r *Restorer) Keep(packet []byte) {
	if !covered(packet) {
		return
	}
	if i := r.find(idOf(packet)); i >= 0 {
		r.kept[i].restored = false // it was late, not lost
		return
	}
	r.insert(packet, false)
}

// find returns the index of the packet with an ID, or -1.
func (r *Restorer) find(wanted id) int {
	for i := range r.ids {
		if r.ids[i] == wanted && r.kept[i].size > 0 {
			return i
		}
	}
	return -1
}

// insert replaces the oldest packet by a new one, and returns its index. A restored packet is
// counted when it is replaced: only then is it certain that the original was lost and not late. The
// peer adds the count to its losses.
func (r *Restorer) insert(packet []byte, restored bool) int {
	i := r.next
	k := &r.kept[i]
	if k.restored {
		for _, n := range r.restored {
			n.Add(1)
		}
	}
	r.ids[i] = idOf(packet)
	k.block.set(packet, k.size)
	k.size, k.restored = len(packet), restored
	r.next = (i + 1) % keptPackets
	return i
}

// Take takes a parity datagram. Next returns the packets that it restores. Forged parity can only
// give packets that QUIC refuses, as packets are authenticated.
func (r *Restorer) Take(b []byte) {
	d, ok := parseDatagram(b)
	if !ok {
		return
	}
	g := r.group(&d)
	if g.done {
		return
	}
	missing := 0
	for ids := d.ids; len(ids) > 0; ids = ids[idSize:] {
		if r.find(readID(ids)) < 0 {
			missing++
		}
	}
	// The first packets of the first group may have arrived before this Restorer was made.
	r.ready = r.ready || r.find(readID(d.ids)) >= 0
	if missing == 0 || !r.ready {
		g.done = missing == 0
		return
	}
	if len(g.pieces[d.index]) > 0 {
		return // it came twice
	}
	g.pieces[d.index] = append(g.pieces[d.index], d.piece...)
	g.have++
	if g.have >= 2*missing {
		g.done = true
		r.rebuild(g)
	}
}

// Next copies a packet that Take has restored to buf, and returns its size; 0 if there is none.
func (r *Restorer) Next(buf []byte) int {
	if len(r.rebuilt) == 0 {
		return 0
	}
	k := &r.kept[r.rebuilt[0]]
	r.rebuilt = r.rebuilt[1:]
	return copy(buf, k.block[lengthSize:][:k.size])
}

// group returns the open group of a datagram. For the first datagram of a group it opens one, in
// the place of the oldest.
func (r *Restorer) group(d *datagram) *openGroup {
	for i := range r.groups {
		g := &r.groups[i]
		if g.half == len(d.piece) && bytes.Equal(g.ids, d.ids) {
			return g
		}
	}
	g := &r.groups[r.opened%openGroups]
	r.opened++
	g.ids = append(g.ids[:0], d.ids...)
	g.half, g.done, g.have = len(d.piece), false, 0
	for i := range g.pieces {
		g.pieces[i] = g.pieces[i][:0]
	}
	return g
}

// rebuild makes the missing packets of a group from its other packets and its parity. It makes none
// where these contradict each other.
func (r *Restorer) rebuild(g *openGroup) {
	n := len(g.ids) / idSize
	highest := 0
	for i, piece := range g.pieces {
		if len(piece) > 0 {
			highest = i + 1
		}
	}
	r.shards = r.shards[:0]
	for i := range n {
		k := r.find(readID(g.ids[i*idSize:]))
		if k < 0 {
			r.shards = append(r.shards, nil, nil)
			continue
		}
		if lengthSize+r.kept[k].size > 2*g.half {
			return
		}
		first, second := r.kept[k].block.halves(g.half)
		r.shards = append(r.shards, first, second)
	}
	r.shards = append(r.shards, g.pieces[:highest]...)
	if codeFor(n, highest).ReconstructData(r.shards) != nil {
		return
	}
	var whole block
	for i := range n {
		wanted := readID(g.ids[i*idSize:])
		if r.find(wanted) >= 0 {
			continue
		}
		copy(whole[:], r.shards[2*i])
		copy(whole[g.half:], r.shards[2*i+1])
		packet := whole.packet(g.half)
		if packet == nil || !covered(packet) || idOf(packet) != wanted {
			return
		}
		r.rebuilt = append(r.rebuilt, r.insert(packet, true))
	}
}
