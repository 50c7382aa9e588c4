// Package parity is forward error correction for QUIC packets, on paths that lose packets without
// being full: radio, bad lines. QUIC's NewReno takes each such loss for a full queue, and falls to
// a fraction of what the path carries.
//
// The one idea: QUIC's packets leave unchanged. Behind each group of packets a Maker sends their
// Reed-Solomon parity; from it and the other packets of the group the peer's Restorer rebuilds the
// packets that are missing, and gives them to QUIC as if they had arrived. A rebuilt packet is late
// and out of order. quic-go notices that, undoes the reduction of its window, and becomes more
// patient, so nothing waits for the order. A Watch decides from a link's losses and round trips
// when to send parity, and how much.
//
//	maker.Protect(packet, len(packet), send) // sender: call it for each packet that has left
//	restorer.Keep(packet)                    // receiver: call it for each QUIC packet
//	restorer.Take(datagram)                  // receiver: call it for each datagram that begins with FirstByte,
//	n := restorer.Next(buf)                  // and then this, until it returns 0
//
// The package does no I/O and knows no clock. The format is in PROTOCOL.md, section 2.
package parity

import "encoding/binary"

const (
	// FirstByte is the first byte of a parity datagram. RFC 9443 leaves the values 4 to 15 to
	// nobody, and quic-go drops them, so a peer without parity is not disturbed.
	FirstByte = 8
	// MaxPacket is the size in bytes of quic-go's largest packet.
	MaxPacket = 1452

	// groupSize is the number of packets in the largest group. Losses come by chance: at 1 % loss a
	// group of 32 with parity of 4 packets stays incomplete once in 10,000 times, four groups of 8
	// with 1 each once in 70.
	groupSize = 32
	// maxParity is the number of parity datagrams of a group at most. A datagram has half a packet:
	// a whole one with its header would exceed the largest packet that the path is known to carry.
	maxParity = 16
	// minCovered is the size in bytes of the smallest covered packet. Smaller packets carry
	// acknowledgements, heartbeats and short answers. They are sent twice instead.
	minCovered = 200

	lengthSize = 2 // before each packet, in what is encoded
	idSize     = 4
	fixedSize  = 1 + 1 + 1 // type, index, packets
	// maxHalf is the size in bytes of half of the largest packet with its length.
	maxHalf = (lengthSize + MaxPacket + 1) / 2
)

// isShort reports whether a packet has a short header of QUIC, so that it is none of a handshake.
func isShort(packet []byte) bool { return len(packet) > 0 && packet[0]&0xc0 == 0x40 }

// covered reports whether groups cover a packet. Sender and receiver decide it alike.
func covered(packet []byte) bool {
	return isShort(packet) && len(packet) >= minCovered && len(packet) <= MaxPacket
}

// halfOf returns the size of half a packet in a group whose longest packet has so many bytes.
func halfOf(longest int) int { return (lengthSize + longest + 1) / 2 }

// An id names a packet among a few: its last bytes, which are of its authentication tag.
type id uint32

func idOf(packet []byte) id { return readID(packet[len(packet)-idSize:]) }

func readID(b []byte) id { return id(binary.BigEndian.Uint32(b)) }

// A datagram is one piece of a group's parity.
type datagram struct {
	index int    // of the piece
	ids   []byte // of the group's packets
	piece []byte // half a packet long
}

func (d *datagram) packets() int { return len(d.ids) / idSize }

// append appends the encoded datagram to dst.
func (d *datagram) append(dst []byte) []byte {
	dst = append(dst, FirstByte, byte(d.index), byte(d.packets()))
	dst = append(dst, d.ids...)
	return append(dst, d.piece...)
}

// parseDatagram decodes a datagram that anyone may have sent. The result refers to b.
func parseDatagram(b []byte) (d datagram, ok bool) {
	if len(b) < fixedSize || b[0] != FirstByte || b[1] >= maxParity ||
		b[2] == 0 || b[2] > groupSize {
		return datagram{}, false
	}
	rest := b[fixedSize:]
	ids := int(b[2]) * idSize
	if half := len(rest) - ids; half < halfOf(minCovered) || half > maxHalf {
		return datagram{}, false
	}
	return datagram{index: int(b[1]), ids: rest[:ids], piece: rest[ids:]}, true
}

// A block is a packet as it is encoded: its length, its bytes, and zeros.
type block [2 * maxHalf]byte

// set puts a packet into the block. size is how much of the block another packet has used before.
func (b *block) set(packet []byte, size int) {
	binary.BigEndian.PutUint16(b[:], uint16(len(packet)))
	n := lengthSize + copy(b[lengthSize:], packet)
	if used := lengthSize + size; used > n {
		clear(b[n:used])
	}
}

// packet returns the packet in the block, nil if the block doesn't have one of a group whose halves
// have so many bytes.
func (b *block) packet(half int) []byte {
	n := int(binary.BigEndian.Uint16(b[:]))
	if n < minCovered || n > MaxPacket || lengthSize+n > 2*half {
		return nil
	}
	return b[lengthSize:][:n]
}

// halves returns the two shards of the block.
func (b *block) halves(half int) (first, second []byte) {
	return b[:half:half], b[half : 2*half : 2*half]
}
