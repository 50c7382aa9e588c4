package link

import (
	"crypto/subtle"
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Parity is a little error correction under QUIC, for paths that lose packets without being full: radio, bad lines. QUIC's
// NewReno takes each such loss for a full queue, and falls to a fraction of what the path carries.
//
// QUIC's packets leave as they are. Behind each group of them goes their exclusive or, from which the receiving Socket makes
// the one that is missing. It arrives late and out of order, which quic-go notices: it stops taking a gap in the packet numbers
// for a loss, is more patient, and takes the cutback back. So nothing has to wait for order. The format is in PROTOCOL.md,
// section 2; when a link wants parity, lossWatch says.
const (
	// parityType is the first byte of a parity datagram. Of the values that RFC 9443 leaves to nobody (4 to 15) and which quic-go
	// drops, as neither 0x40 nor 0x80 is set: a peer that knows no parity isn't disturbed.
	parityType = 8
	// parityGroup is how many packets a group has. At 1 % loss, one group in 13 misses a packet; one in 240 misses two, or one and a
	// part of its parity, and is what is left. Over two such links, 40 ms in all (TestBulkOverLossyPaths), groups of 4 carry 3.3 to 3.6
	// MiB/s, of 8 2.8 to 3.3, of 16 2.4 to 2.6; parity adds 13 % to what is sent with 8, and twice as much with 4.
	parityGroup = 8
	// parityGroupMost is how many packets of a group are understood.
	parityGroupMost = 16
	// parityParts is into how many datagrams a group's parity is split: with its header it would be larger than the largest
	// packet that the path is known to carry.
	parityParts = 2
	// parityLeast is the size of the smallest packet that is covered. Below are acknowledgements and heartbeats, which the next
	// one makes up for. From here on half a packet with the header is smaller than the packet.
	parityLeast = 100
	// packetMost is the size of the largest packet of quic-go.
	packetMost = 1452

	parityIDSize   = 4
	parityFixed    = 1 + 1 + 1 + 2 // type, part, packets, lengths
	parityPartMost = packetMost / parityParts
)

// covered tells whether a packet is one of those that parity covers, as far as its receiver can tell, too: of QUIC's with a
// short header, and not small.
func covered(packet []byte) bool { return len(packet) >= parityLeast && packet[0]&0xc0 == 0x40 }

// packetID names a packet among a few: its end is that of a cipher's authentication tag.
func packetID(packet []byte) uint32 {
	return binary.BigEndian.Uint32(packet[len(packet)-parityIDSize:])
}

// A parityPart is a parity datagram.
type parityPart struct {
	index   int    // of the part
	lengths uint16 // exclusive or of the packets' lengths
	ids     []byte // of the packets
	sum     []byte // its part of the packets' exclusive or
}

func (p *parityPart) packets() int    { return len(p.ids) / parityIDSize }
func (p *parityPart) id(i int) uint32 { return binary.BigEndian.Uint32(p.ids[i*parityIDSize:]) }

// append appends the datagram to dst.
func (p *parityPart) append(dst []byte) []byte {
	dst = append(dst, parityType, byte(p.index), byte(p.packets()))
	dst = binary.BigEndian.AppendUint16(dst, p.lengths)
	dst = append(dst, p.ids...)
	return append(dst, p.sum...)
}

// parseParity takes a datagram apart, of which it keeps pieces. Anyone may have sent it.
func parseParity(b []byte) (p parityPart, ok bool) {
	if len(b) < parityFixed || b[0] != parityType || b[1] >= parityParts || b[2] == 0 || b[2] > parityGroupMost {
		return parityPart{}, false
	}
	ids := b[parityFixed:]
	count := int(b[2]) * parityIDSize
	if sum := len(ids) - count; sum < parityLeast/parityParts || sum > parityPartMost {
		return parityPart{}, false
	}
	return parityPart{
		index:   int(b[1]),
		lengths: binary.BigEndian.Uint16(b[3:]),
		ids:     ids[:count],
		sum:     ids[count:],
	}, true
}

// A parityMaker makes the parity of what leaves to one peer.
type parityMaker struct {
	sent   [2]*atomic.Uint64 // parity datagrams: of the link, of its socket
	paused atomic.Bool

	// mu is held while parity is sent, from this peer's buffers: whoever waits has a packet for the same peer.
	mu      sync.Mutex
	last    int // size of the last packet
	proved  int // see addLocked
	longest int // of the group
	lengths uint16
	ids     []byte
	sum     [packetMost]byte
	part    []byte // the datagram that is being sent
	control []byte // its control messages
}

func newParityMaker(sent ...*atomic.Uint64) *parityMaker {
	return &parityMaker{
		sent: [2]*atomic.Uint64(sent),
		ids:  make([]byte, 0, parityGroup*parityIDSize),
		part: make([]byte, 0, packetMost),
	}
}

// protect notes packets of a size, the last of which may be shorter, that have left in one call. Where they fill a group, send
// is called with its parity; it must not keep it.
func (m *parityMaker) protect(packets []byte, size int, send func(parity []byte)) {
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

// addLocked adds a packet to the group, if it is to be covered, and tells whether the group is full.
//
// Path MTU discovery sends a large packet to learn whether it arrives, so its loss must not be made up for. It looks like any
// other one, but for its size: none so large was sent before. As quic-go sends the next such packet only when the last one has
// arrived, or a later packet has, two in a row prove that the size of the smaller one arrives.
func (m *parityMaker) addLocked(packet []byte) (full bool) {
	m.proved = max(m.proved, min(m.last, len(packet)))
	m.last = len(packet)
	if !covered(packet) || len(packet) > min(m.proved, packetMost) {
		return false
	}
	subtle.XORBytes(m.sum[:], m.sum[:], packet)
	m.lengths ^= uint16(len(packet))
	m.longest = max(m.longest, len(packet))
	m.ids = append(m.ids, packet[len(packet)-parityIDSize:]...)
	return len(m.ids) == parityGroup*parityIDSize
}

// sendLocked sends the group's parity, and begins a new group.
func (m *parityMaker) sendLocked(send func(parity []byte)) {
	size := (m.longest + parityParts - 1) / parityParts
	for i := range parityParts {
		p := parityPart{index: i, lengths: m.lengths, ids: m.ids, sum: m.sum[i*size:][:size]}
		m.part = p.append(m.part[:0])
		send(m.part)
		for _, n := range m.sent {
			n.Add(1)
		}
	}
	m.resetLocked()
}

// pause has it send nothing for a while, or go on.
func (m *parityMaker) pause(paused bool) {
	if m.paused.Swap(paused) && !paused {
		m.reset() // what was sent before is forgotten by the peer, too
	}
}

// reset begins anew.
func (m *parityMaker) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last, m.proved = 0, 0
	m.resetLocked()
}

func (m *parityMaker) resetLocked() {
	m.longest, m.lengths, m.ids = 0, 0, m.ids[:0]
	clear(m.sum[:])
}

// peers is a table by remote address that is looked at for each packet, and hardly ever changes. Where it is empty, as on
// all good paths, a look costs a load.
type peers[T any] struct {
	table atomic.Pointer[map[netip.AddrPort]*T]
	mu    sync.Mutex // of those who change it
}

// any tells whether there is anything, for any address.
func (p *peers[T]) any() bool {
	table := p.table.Load()
	return table != nil && len(*table) > 0
}

// at returns what there is for an address, or nil.
func (p *peers[T]) at(addr net.Addr) *T {
	table := p.table.Load()
	if table == nil {
		return nil
	}
	return (*table)[addrPort(addr)]
}

// put sets what there is for an address, unless it would be one more than most.
func (p *peers[T]) put(at netip.AddrPort, value *T, most int) bool {
	return p.change(func(table map[netip.AddrPort]*T) bool {
		table[at] = value
		return len(table) <= most
	})
}

// remove takes value out again. What another link has put there meanwhile stays.
func (p *peers[T]) remove(at netip.AddrPort, value *T) {
	p.change(func(table map[netip.AddrPort]*T) bool {
		if table[at] != value {
			return false
		}
		delete(table, at)
		return true
	})
}

// change replaces the table by one that f has changed, if f says so, which it returns.
func (p *peers[T]) change(f func(map[netip.AddrPort]*T) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := make(map[netip.AddrPort]*T)
	if table := p.table.Load(); table != nil {
		maps.Copy(changed, *table)
	}
	if !f(changed) {
		return false
	}
	if len(changed) == 0 {
		p.table.Store(nil)
	} else {
		p.table.Store(&changed)
	}
	return true
}
