package link

import (
	"bytes"
	"crypto/subtle"
	"encoding/binary"
	"sync/atomic"
)

const (
	// keptPackets is how many packets a restorer keeps: a group, the parity of which may come behind two segmented sends of 14
	// packets each, and as many again that have overtaken it.
	keptPackets = 64
	// openGroups is of how many groups one part of the parity may wait for the other.
	openGroups = 4
)

// A restorer makes what is missing of one peer's packets from their parity. It is used by the goroutine that reads from the socket.
type restorer struct {
	restored [2]*atomic.Uint64 // packets: of the link, of its socket

	ids    [keptPackets]uint32
	kept   [keptPackets]keptPacket
	next   int  // of kept, where the next one goes: the oldest
	ready  bool // it keeps packets for longer than a group takes
	groups [openGroups]openGroup
	opened int // groups so far
}

// keptPacket is a packet that has arrived, or was restored.
type keptPacket struct {
	size     int // 0: none
	restored bool
	data     [packetMost]byte
}

// openGroup is a group that misses packets, and of which a part of the parity has arrived.
type openGroup struct {
	ids     []byte // of its packets; empty: no group
	lengths uint16
	part    int // size of a part
	have    [parityParts]bool
	sum     [packetMost]byte
}

func newRestorer(restored ...*atomic.Uint64) *restorer {
	return &restorer{restored: [2]*atomic.Uint64(restored)}
}

// keep takes a copy of a packet that has arrived, if it is one that parity covers.
func (r *restorer) keep(packet []byte) {
	if !covered(packet) || len(packet) > packetMost {
		return
	}
	if known := r.find(packetID(packet)); known != nil {
		known.restored = false // it was late, not lost
		return
	}
	r.insert(packet, false)
}

// find returns the packet with an ID, or nil.
func (r *restorer) find(id uint32) *keptPacket {
	for i := range r.ids {
		if r.ids[i] == id && r.kept[i].size > 0 {
			return &r.kept[i]
		}
	}
	return nil
}

// insert puts a packet in the place of the oldest. A restored one counts only then, when it is sure that it was not merely late:
// the peer takes the count for its loss.
func (r *restorer) insert(packet []byte, restored bool) {
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

// restore takes a parity datagram, the first n bytes of buf, and replaces it by the packet that can be made with it now. It
// returns its size, 0 for none. What a forger sends can only give a packet that QUIC refuses, as it is authenticated.
func (r *restorer) restore(buf []byte, n int) int {
	part, ok := parseParity(buf[:n])
	if !ok {
		return 0
	}
	// The first packets of the first group may have come before there was a restorer: they are not missing.
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

// missing counts the packets of a group that have not arrived, and returns the ID of one of them.
func (r *restorer) missing(part *parityPart) (count int, id uint32) {
	for i := range part.packets() {
		if r.find(part.id(i)) == nil {
			count++
			id = part.id(i)
		}
	}
	return count, id
}

// group returns the group of a part, which it opens, in the place of the oldest, if this is the first one of it.
func (r *restorer) group(part *parityPart) *openGroup {
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
	g.have = [parityParts]bool{}
	return g
}

// rebuild makes the packet with an ID from its group's parity and other packets, and closes the group. It returns nil where they
// don't fit together.
func (r *restorer) rebuild(g *openGroup, missing uint32) []byte {
	ids := g.ids
	g.ids = g.ids[:0]
	longest := parityParts * g.part
	size := int(g.lengths)
	for ; len(ids) > 0; ids = ids[parityIDSize:] {
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
	if size < parityLeast || size > longest {
		return nil
	}
	packet := g.sum[:size]
	if !covered(packet) || packetID(packet) != missing {
		return nil
	}
	return packet
}
