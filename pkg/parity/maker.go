package parity

import (
	"sync"
	"sync/atomic"
)

// A Maker makes the parity of the packets that leave to one peer. Its methods may be called from
// any goroutine.
type Maker struct {
	sent   [2]*atomic.Uint64 // parity datagrams: of the link, of its socket
	paused atomic.Bool
	loss   atomic.Uint32 // share of packets that the path loses, in millionths

	mu     sync.Mutex // held while parity is sent, from this Maker's buffers
	bound  int        // parity may be so many percent of the covered bytes
	credit int        // bytes of parity that may be sent, in hundredths
	last   int        // size of the last packet
	proved int        // see mayCoverLocked
	group  group
	pieces [maxParity][maxHalf]byte
	shards [][]byte // of the group that is being sent; refers to blocks and pieces
	out    []byte   // the datagram that is being sent
}

// A group is packets whose parity is yet to be sent.
type group struct {
	number  uint64 // from 1
	tries   int    // calls of Flush so far
	longest int    // size of the longest packet
	count   int    // packets
	sizes   [groupSize]int
	ids     [groupSize * idSize]byte
	blocks  [groupSize]block
}

// maxCredit is the parity in bytes that a Maker may send ahead of what it covers: enough for the
// first group, and for single packets of a link that sends little.
const maxCredit = 48 << 10

// NewMaker returns a Maker whose parity is at most so many percent of what it covers. It counts the
// datagrams it has sent in both counters: the link's and its socket's.
func NewMaker(percent int, ofLink, ofSocket *atomic.Uint64) *Maker {
	return &Maker{
		sent:   [2]*atomic.Uint64{ofLink, ofSocket},
		bound:  percent,
		credit: 100 * maxCredit,
		group:  group{number: 1},
		out:    make([]byte, 0, MaxPacket),
	}
}

// SetLoss tells which share of its packets the path loses, from 0 to 1.
func (m *Maker) SetLoss(share float64) { m.loss.Store(uint32(1e6 * min(max(share, 0), 1))) }

// Protect takes packets that have left in one call: pieces of the given size, of which the last may
// be shorter. When a group is full, Protect calls send once for each datagram of its parity; it
// sends small packets again. It returns the number of the group that is left open, for which
// Flush is to be called within a few milliseconds; 0 if none is. Calls of send never overlap. send
// must not keep its argument.
func (m *Maker) Protect(packets []byte, size int, send func(datagram []byte)) (open uint64) {
	if m.paused.Load() {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(packets) > 0 {
		packet := packets[:min(size, len(packets))]
		packets = packets[len(packet):]
		mayCover := m.mayCoverLocked(packet)
		switch {
		case isShort(packet) && len(packet) < minCovered:
			m.repeatLocked(packet, send)
		case mayCover:
			m.addLocked(packet)
			if m.group.count == groupSize {
				m.sendLocked(send)
			}
		}
	}
	return m.openLocked()
}

// Flush sends the parity of a group, if that is still open. It leaves a group open that may not
// have as much parity as it wants by the bound, until it has been called so many times for it: a
// larger group may. It returns the number of the group that is open then; 0 if none is.
func (m *Maker) Flush(group uint64, times int, send func(datagram []byte)) (open uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	g := &m.group
	if g.number == group && g.count > 0 && !m.paused.Load() {
		g.tries++
		if want, may, _ := m.piecesLocked(); g.tries >= times || may >= want {
			m.sendLocked(send)
		}
	}
	return m.openLocked()
}

func (m *Maker) openLocked() uint64 {
	if m.group.count == 0 {
		return 0
	}
	return m.group.number
}

// piecesLocked returns how many pieces of parity the group wants, how many it may have, and what a
// piece costs of the credit.
func (m *Maker) piecesLocked() (want, may, cost int) {
	g := &m.group
	cost = 100 * (fixedSize + g.count*idSize + halfOf(g.longest))
	return piecesFor(g.count, float64(m.loss.Load())/1e6), m.credit / cost, cost
}

// mayCoverLocked reports whether a group may cover a packet. It must see each packet.
//
// Path MTU discovery must notice the loss of its probes, so a probe is not covered. Only its size
// tells a probe apart: no packet so large was sent before. quic-go sends the next probe only when
// the last one, or a later packet, has arrived. So two large packets in a row prove that packets
// of the smaller one's size arrive.
func (m *Maker) mayCoverLocked(packet []byte) bool {
	m.proved = max(m.proved, min(m.last, len(packet)))
	m.last = len(packet)
	return covered(packet) && len(packet) <= m.proved
}

// addLocked adds a packet to the group.
func (m *Maker) addLocked(packet []byte) {
	g := &m.group
	i := g.count
	g.count++
	g.blocks[i].set(packet, g.sizes[i])
	g.sizes[i] = len(packet)
	copy(g.ids[i*idSize:], packet[len(packet)-idSize:])
	g.longest = max(g.longest, len(packet))
	m.credit = min(m.credit+m.bound*len(packet), 100*maxCredit)
}

// repeatLocked sends a small packet again, as far as the credit goes. QUIC ignores a packet that it
// has.
func (m *Maker) repeatLocked(packet []byte, send func(datagram []byte)) {
	m.credit = min(m.credit+smallBound*len(packet), 100*maxCredit)
	if cost := 100 * len(packet); m.credit >= cost {
		m.credit -= cost
		send(packet)
	}
}

// smallBound is the share in percent of small packets that are sent again where no credit is left:
// half of the acknowledgements of a download are spared.
const smallBound = 50

// sendLocked sends the parity of the group, and begins a new one.
func (m *Maker) sendLocked(send func(datagram []byte)) {
	g := &m.group
	half := halfOf(g.longest)
	want, may, cost := m.piecesLocked()
	if n := min(want, may); n > 1 { // one piece restores nothing
		m.credit -= n * cost
		m.encodeLocked(half, n)
		for i := range n {
			d := datagram{index: i, ids: g.ids[:g.count*idSize], piece: m.pieces[i][:half]}
			m.out = d.append(m.out[:0])
			send(m.out)
			for _, sent := range m.sent {
				sent.Add(1)
			}
		}
	}
	g.renew()
}

// encodeLocked makes the first n pieces of the group's parity.
func (m *Maker) encodeLocked(half, n int) {
	g := &m.group
	m.shards = m.shards[:0]
	for i := range g.count {
		first, second := g.blocks[i].halves(half)
		m.shards = append(m.shards, first, second)
	}
	for i := range n {
		m.shards = append(m.shards, m.pieces[i][:half])
	}
	if err := codeFor(g.count, n).Encode(m.shards); err != nil {
		panic("internal error: encode parity: " + err.Error())
	}
}

// renew begins a new group in the place of g.
func (g *group) renew() { g.number, g.tries, g.count, g.longest = g.number+1, 0, 0, 0 }

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
	m.group.renew()
}

const (
	// minLoss is the loss that a Maker reckons with at least: the first losses say little.
	minLoss = 0.001
	// unrestored is how often a group may stay incomplete. NewReno at 200 Mbit/s and 40 ms needs
	// fewer than one loss in 100,000 packets to keep the path full.
	unrestored = 1e-5
)

// piecesFor returns how many pieces of parity a group of n packets wants on a path that loses a
// share of what is sent. Half a piece's worth of packets may be lost with them: two pieces restore
// one packet, and a lost piece restores nothing.
func piecesFor(n int, loss float64) int {
	loss = max(loss, minLoss)
	most := min(maxParity, 2*(n+1)) // enough if all are lost, and two pieces
	for pieces := 2; pieces < most; pieces += 2 {
		// Losses of independent packets are close to Poisson's distribution.
		mean := loss * float64(n+pieces)
		if poissonTail(mean, pieces/2) <= unrestored {
			return pieces
		}
	}
	return most
}
