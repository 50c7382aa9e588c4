package carrier

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"

	"ptthqd/pkg/parity"
)

// maxParityPeers bounds the peers that get parity, and those that send it: each takes up to 250
// KiB.
const maxParityPeers = 256

// groupTime is how long a group of packets stays open for more of them, at least; it may be twice
// as long. A repair of a link that sends little is late by so much. Where the bound of parity keeps
// a group from what it wants, the group stays open for up to a round trip: QUIC forgives a repair
// that is late by two.
const groupTime = 3 * time.Millisecond

// A Maker makes the parity for one peer, and closes its groups by time.
type Maker struct {
	*parity.Maker
	groupTime time.Duration
	patience  atomic.Int64 // time.Duration for which a group may stay open

	mu      sync.Mutex
	timer   *time.Timer
	armed   bool   // the timer runs, or its function does
	group   uint64 // the open group when the timer was set
	control []byte // control messages of the group's packets
	send    sendParity
}

// A sendParity sends a datagram behind packets that were sent with the same control messages.
type sendParity func(datagram, control []byte)

// NewMaker returns a Maker whose parity is at most so many percent of what it covers, and is
// counted in ofLink and in the socket's figures.
func (s *Socket) NewMaker(percent int, ofLink *atomic.Uint64) *Maker {
	return &Maker{Maker: parity.NewMaker(percent, ofLink, &s.paritySent), groupTime: groupTime}
}

// NewRestorer returns a Restorer whose packets are counted in ofLink and in the socket's figures.
func (s *Socket) NewRestorer(ofLink *atomic.Uint64) *parity.Restorer {
	return parity.NewRestorer(ofLink, &s.restored)
}

// SendParity sends m's parity behind the packets for an address. It reports false, and does
// nothing, if maxParityPeers other addresses get parity.
func (s *Socket) SendParity(to netip.AddrPort, m *Maker) bool {
	return s.makers.put(to, m, maxParityPeers)
}

// StopParity ends SendParity, unless another Maker serves the address by now.
func (s *Socket) StopParity(to netip.AddrPort, m *Maker) { s.makers.remove(to, m) }

// TakeParity gives the packets and the parity from an address to r. It reports false, and does
// nothing, if maxParityPeers other addresses send parity.
func (s *Socket) TakeParity(from netip.AddrPort, r *parity.Restorer) bool {
	return s.restorers.put(from, r, maxParityPeers)
}

// DropParity ends TakeParity, unless another Restorer serves the address by now.
func (s *Socket) DropParity(from netip.AddrPort, r *parity.Restorer) { s.restorers.remove(from, r) }

// SetPatience sets how long a group may stay open: about a round trip.
func (m *Maker) SetPatience(d time.Duration) { m.patience.Store(int64(d)) }

// protect sends what parity adds to packets that have left in one call: pieces of the given size,
// of which the last may be shorter. It keeps neither packets nor control.
func (m *Maker) protect(packets []byte, size int, control []byte, send sendParity) {
	open := m.Protect(packets, size, func(datagram []byte) { send(datagram, control) })
	if open == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.armed {
		return
	}
	m.armed, m.group, m.send = true, open, send
	m.control = append(m.control[:0], control...)
	if m.timer == nil {
		m.timer = time.AfterFunc(m.groupTime, m.expire)
	} else {
		m.timer.Reset(m.groupTime)
	}
}

// expire closes the group for which the timer was set, or sets the timer again for a newer one.
func (m *Maker) expire() {
	m.mu.Lock()
	group := m.group
	m.mu.Unlock()
	times := int(time.Duration(m.patience.Load()) / m.groupTime)
	open := m.Flush(group, times, func(datagram []byte) { m.send(datagram, m.control) })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.group, m.armed = open, open != 0
	if m.armed {
		m.timer.Reset(m.groupTime)
	}
}

// parityArrived is the handler of parity datagrams. The first packet that one restores takes its
// place, others wait in the socket.
func (s *Socket) parityArrived(buf []byte, n int, from net.Addr) int {
	r := s.restorers.at(from)
	if r == nil {
		s.parityStray.Add(1)
		return 0
	}
	r.Take(buf[:n])
	n = r.Next(buf)
	for more := n > 0; more; {
		packet := make([]byte, parity.MaxPacket)
		if size := r.Next(packet); size > 0 {
			s.waiting = append(s.waiting, waitingPacket{data: packet[:size], from: from})
		} else {
			more = false
		}
	}
	return n
}

// A waitingPacket was restored and is yet to be read by QUIC.
type waitingPacket struct {
	data []byte
	oob  []byte // the control messages of the parity that has restored it
	from net.Addr
}

// markWaiting sets the control messages of the packets that wait since there were before of them.
func (s *Socket) markWaiting(before int, oob []byte) {
	for i := before; i < len(s.waiting); i++ {
		s.waiting[i].oob = append([]byte(nil), oob...)
	}
}

// takeWaiting moves restored packets into ms, and returns how many.
func (s *Socket) takeWaiting(ms []ipv4.Message) (n int) {
	for n < len(ms) && len(s.waiting) > 0 {
		w := &s.waiting[0]
		m := &ms[n]
		m.N, m.NN = copy(m.Buffers[0], w.data), copy(m.OOB, w.oob)
		m.Flags, m.Addr = 0, w.from
		s.waiting = s.waiting[1:]
		n++
	}
	if len(s.waiting) == 0 {
		s.waiting = nil
	}
	return n
}
