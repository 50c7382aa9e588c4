package parity

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"sync/atomic"
)

const (
	// keptPackets is the number of packets that a Restorer keeps. A group's parity can arrive behind
	// two segmented sends of 14 packets each, and as many packets again can overtake it.
	keptPackets = 64
	// openGroups is the number of groups whose second part of the parity may still arrive.
	openGroups = 4
)

// A Restorer rebuilds missing packets of one peer from their parity. Only one goroutine may use it,
// the one that reads from the socket.
type Restorer struct {
	restored [2]*atomic.Uint64 // packets: of the link, of its socket

	ids    [keptPackets]uint32
	kept   [keptPackets]keptPacket
	next   int  // index in kept of the oldest packet, which the next one replaces
	ready  bool // a first packet of a group was found: packets are kept for long enough
	groups [openGroups]openGroup
	opened int // groups so far
}

// A keptPacket has arrived or was restored.
type keptPacket struct {
	size     int // 0: none
	restored bool
	data     [MaxPacket]byte
}

// An openGroup lacks packets, and a part of its parity has arrived.
type openGroup struct {
	ids     []byte // of its packets; empty: no group
	lengths uint16
	part    int // size of a part
	have    [partsPerGroup]bool
	sum     [MaxPacket]byte
}

// NewRestorer returns a Restorer that counts the packets it has restored in both counters: the
// link's and its socket's.
func NewRestorer(ofLink, ofSocket *atomic.Uint64) *Restorer {
	return &Restorer{restored: [2]*atomic.Uint64{ofLink, ofSocket}}
}

// Keep copies a packet that has arrived, if parity covers it.
func (r *Restorer) Keep(packet []byte) {
	if !covered(packet) || len(packet) > MaxPacket {
		return
	}
	if known := r.find(packetID(packet)); known != nil {
		known.restored = false // it was late, not lost
		return
	}
	r.insert(packet, false)
}

// find returns the packet with an ID, or nil.
func (r *Restorer) find(id uint32) *keptPacket {
	for i := range r.ids {
		if r.ids[i] == id && r.kept[i].size > 0 {
			return &r.kept[i]
		}
	}
	return nil
}

// insert replaces the oldest packet by a new one. A restored packet is counted when it is replaced:
// only then is it certain that the original was lost and not late. The peer adds the count to its
// losses.
func (r *Restorer) insert(packet []byte, restored bool) {
	k := &r.kept[r.next]
	if k.restored {
		for _, n := range r.restored {
			n.Add(1)
		}
	}
	r.ids[r.next] = packetID(packet)
	k.size, k.restored = copy(k.data[:], packet), restored
	r.next = (r.next + 1) % keptPackets
}

// Restore takes a parity datagram, the first n bytes of buf, and puts the packet that it restores,
// if any, in its place. It returns the size of that packet, or 0. Forged parity can only give a
// packet that QUIC refuses, as packets are authenticated.
func (r *Restorer) Restore(buf []byte, n int) int {
	part, ok := parseDatagram(buf[:n])
	if !ok {
		return 0
	}
	// The first packets of the first group may have arrived before this Restorer was made.
	r.ready = r.ready || r.find(part.id(0)) != nil
	missing, id := r.missing(&part)
	if missing == 0 || !r.ready {
		return 0
	}
	g := r.group(&part)
	g.have[part.index] = true
	copy(g.sum[part.index*g.part:], part.sum)
	for _, have := range g.have {
		if !have {
			return 0
		}
	}
	if missing > 1 {
		g.ids = g.ids[:0]
		return 0
	}
	packet := r.rebuild(g, id)
	if packet == nil {
		return 0
	}
	r.insert(packet, true)
	return copy(buf, packet)
}

// missing returns the number of a group's packets that have not arrived, and the ID of the last.
func (r *Restorer) missing(part *datagram) (count int, id uint32) {
	for i := range part.packets() {
		if r.find(part.id(i)) == nil {
			count++
			id = part.id(i)
		}
	}
	return count, id
}

// group returns the open group of a part. For the first part of a group it opens one, in the place
// of the oldest.
func (r *Restorer) group(part *datagram) *openGroup {
	for i := range r.groups {
		g := &r.groups[i]
		if bytes.Equal(g.ids, part.ids) && g.lengths == part.lengths && g.part == len(part.sum) {
			return g
		}
	}
	g := &r.groups[r.opened%openGroups]
	r.opened++
	g.ids = append(g.ids[:0], part.ids...)
	g.lengths = part.lengths
	g.part = len(part.sum)
	g.have = [partsPerGroup]bool{}
	return g
}

// rebuild makes the packet with the given ID from its group's parity and other packets, and closes
// the group. It returns nil where they contradict each other.
func (r *Restorer) rebuild(g *openGroup, missing uint32) []byte {
	ids := g.ids
	g.ids = g.ids[:0]
	longest := partsPerGroup * g.part
	size := int(g.lengths)
	for ; len(ids) > 0; ids = ids[idSize:] {
		other := r.find(binary.BigEndian.Uint32(ids))
		if other == nil {
			continue
		}
		if other.size > longest {
			return nil
		}
		size ^= other.size
		subtle.XORBytes(g.sum[:], g.sum[:], other.data[:other.size])
	}
	if size < minCovered || size > longest {
		return nil
	}
	packet := g.sum[:size]
	if !covered(packet) || packetID(packet) != missing {
		return nil
	}
	return packet
}
