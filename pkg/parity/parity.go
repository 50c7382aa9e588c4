// Package parity is forward error correction for QUIC packets, on paths that lose packets without
// being full: radio, bad lines. QUIC's NewReno takes each such loss for a full queue, and falls to a
// fraction of what the path carries.
//
// The one idea: QUIC's packets leave unchanged. Behind each group of packets a Maker sends their
// exclusive or; from it and the other packets of the group the peer's Restorer rebuilds one packet
// that is missing, and gives it to QUIC as if it had arrived. The rebuilt packet is late and out of
// order. quic-go notices that, undoes the reduction of its window, and becomes more patient, so
// nothing waits for the order. A Watch decides from a link's losses and round trips when to send
// parity.
//
//	maker.Protect(packet, len(packet), send) // sender: call it for each packet that has left
//	restorer.Keep(packet)                    // receiver: call it for each QUIC packet
//	n := restorer.Restore(buf, n)            // receiver: call it for each datagram that begins with FirstByte
//
// The package does no I/O and knows no clock. The format is in PROTOCOL.md, section 2.
package parity

import (
	"crypto/subtle"
	"encoding/binary"
	"sync"
	"sync/atomic"
)

const (
	// FirstByte is the first byte of a parity datagram. RFC 9443 leaves the values 4 to 15 to
	// nobody, and quic-go drops them, so a peer without parity is not disturbed.
	FirstByte = 8
	// MaxPacket is the size in bytes of quic-go's largest packet.
	MaxPacket = 1452

	// groupSize is the number of packets in a group that a Maker makes. At 1 % loss, 1 of 13 groups
	// lacks a packet, and 1 of 240 lacks two or more datagrams and stays incomplete. Over two such
	// links, 40 ms in all (TestBulkOverLossyPaths), groups of 4 carry 3.3 to 3.6 MiB/s, of 8 2.8 to
	// 3.3 MiB/s, of 16 2.4 to 2.6 MiB/s. Parity adds 13 % to the traffic with 8, 26 % with 4.
	groupSize = 8
	// maxGroup is the number of packets in the largest group that a Restorer accepts.
	maxGroup = 16
	// partsPerGroup is the number of datagrams that carry a group's parity. One datagram with its
	// header would exceed the largest packet that the path is known to carry.
	partsPerGroup = 2
	// minCovered is the size in bytes of the smallest covered packet. Smaller packets carry
	// acknowledgements and heartbeats, and the next packet replaces those. From this size on, half
	// a packet with the header is smaller than the packet.
	minCovered = 100

	idSize    = 4
	fixedSize = 1 + 1 + 1 + 2 // type, part, packets, lengths
	maxPart   = MaxPacket / partsPerGroup
)

// covered reports whether parity covers a packet: it has a short header of QUIC, and is not small.
// Sender and receiver decide it alike.
func covered(packet []byte) bool { return len(packet) >= minCovered && packet[0]&0xc0 == 0x40 }

// packetID names a packet among a few. The last bytes of a packet are of its authentication tag.
func packetID(packet []byte) uint32 {
	return binary.BigEndian.Uint32(packet[len(packet)-idSize:])
}

// A datagram is one part of a group's parity.
type datagram struct {
	index   int    // of the part
	lengths uint16 // exclusive or of the packets' lengths
	ids     []byte // of the packets
	sum     []byte // this part of the packets' exclusive or
}

func (d *datagram) packets() int    { return len(d.ids) / idSize }
func (d *datagram) id(i int) uint32 { return binary.BigEndian.Uint32(d.ids[i*idSize:]) }

// append appends the encoded datagram to dst.
func (d *datagram) append(dst []byte) []byte {
	dst = append(dst, FirstByte, byte(d.index), byte(d.packets()))
	dst = binary.BigEndian.AppendUint16(dst, d.lengths)
	dst = append(dst, d.ids...)
	return append(dst, d.sum...)
}

// parseDatagram decodes a datagram that anyone may have sent. The result refers to b.
func parseDatagram(b []byte) (d datagram, ok bool) {
	if len(b) < fixedSize || b[0] != FirstByte || b[1] >= partsPerGroup ||
		b[2] == 0 || b[2] > maxGroup {
		return datagram{}, false
	}
	ids := b[fixedSize:]
	count := int(b[2]) * idSize
	if sum := len(ids) - count; sum < minCovered/partsPerGroup || sum > maxPart {
		return datagram{}, false
	}
	return datagram{
		index:   int(b[1]),
		lengths: binary.BigEndian.Uint16(b[3:]),
		ids:     ids[:count],
		sum:     ids[count:],
	}, true
}

// A Maker makes the parity of the packets that leave to one peer. Its methods may be called from
// any goroutine.
type Maker struct {
	sent   [2]*atomic.Uint64 // parity datagrams: of the link, of its socket
	paused atomic.Bool

	mu      sync.Mutex // held while parity is sent, from this Maker's buffers
	last    int        // size of the last packet
	proved  int        // see addLocked
	longest int        // of the group
	lengths uint16
	ids     []byte
	sum     [MaxPacket]byte
	part    []byte // the datagram that is being sent
}

// NewMaker returns a Maker that counts the datagrams it has sent in both counters: the link's and
// its socket's.
func NewMaker(ofLink, ofSocket *atomic.Uint64) *Maker {
	return &Maker{
		sent: [2]*atomic.Uint64{ofLink, ofSocket},
		ids:  make([]byte, 0, groupSize*idSize),
		part: make([]byte, 0, MaxPacket),
	}
}

// Protect takes packets that have left in one call: pieces of the given size, of which the last may
// be shorter. When a group is full, Protect calls send once for each datagram of its parity. Calls
// of send never overlap. send must not keep its argument.
func (m *Maker) Protect(packets []byte, size int, send func(parity []byte)) {
	if m.paused.Load() {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(packets) > 0 {
		packet := packets[:min(size, len(packets))]
		packets = packets[len(packet):]
		if m.addLocked(packet) {
			m.sendLocked(send)
		}
	}
}

// addLocked adds a covered packet to the group and reports whether the group is full.
//
// Path MTU discovery must notice the loss of its probes, so a probe is not covered. Only its size
// tells a probe apart: no packet so large was sent before. quic-go sends the next probe only when
// the last one, or a later packet, has arrived. So two large packets in a row prove that packets
// of the smaller one's size arrive.
func (m *Maker) addLocked(packet []byte) (full bool) {
	m.proved = max(m.proved, min(m.last, len(packet)))
	m.last = len(packet)
	if !covered(packet) || len(packet) > min(m.proved, MaxPacket) {
		return false
	}
	subtle.XORBytes(m.sum[:], m.sum[:], packet)
	m.lengths ^= uint16(len(packet))
	m.longest = max(m.longest, len(packet))
	m.ids = append(m.ids, packet[len(packet)-idSize:]...)
	return len(m.ids) == groupSize*idSize
}

// sendLocked sends the group's parity and begins a new group.
func (m *Maker) sendLocked(send func(parity []byte)) {
	size := (m.longest + partsPerGroup - 1) / partsPerGroup
	for i := range partsPerGroup {
		d := datagram{index: i, lengths: m.lengths, ids: m.ids, sum: m.sum[i*size:][:size]}
		m.part = d.append(m.part[:0])
		send(m.part)
		for _, n := range m.sent {
			n.Add(1)
		}
	}
	m.resetLocked()
}

// Pause stops the parity, or starts it again with a new group.
func (m *Maker) Pause(paused bool) {
	if m.paused.Swap(paused) && !paused {
		m.Reset() // the peer has forgotten what was sent before
	}
}

// Reset begins anew, as on a new path: nothing is proved of it.
func (m *Maker) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last, m.proved = 0, 0
	m.resetLocked()
}

func (m *Maker) resetLocked() {
	m.longest, m.lengths, m.ids = 0, 0, m.ids[:0]
	clear(m.sum[:])
}
