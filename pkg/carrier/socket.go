// Package carrier moves whole packets between this process and an address. It is the floor under
// QUIC: a Socket owns a UDP socket, and gives quic-go a net.PacketConn that makes the most of what
// the kernel offers.
//
// The one idea: one system call moves many packets. On Linux a Socket receives coalesced datagrams
// (UDP GRO) and splits them, and quic-go's segmented sends (UDP GSO) pass through. Elsewhere, or
// where the kernel refuses, a Socket moves datagram by datagram. Parity (pkg/parity) passes beside
// QUIC's packets, and quic-go never sees it.
//
//	socket, err := carrier.New(udpConn, log) // owns udpConn from now on
//	transport := quic.Transport{Conn: socket.PacketConn()}
package carrier

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"golang.org/x/net/ipv4"

	"ptthqd/pkg/parity"
)

// socketBuffer is the size in bytes of the kernel buffers that a Socket asks for, each way. quic-go
// wants 7 MiB (its wiki, "UDP Buffer Sizes"). The next power of two costs nothing until a burst
// fills it.
const socketBuffer = 8 << 20

// A Socket owns a UDP socket. All packets of the links over it pass through it. Its methods may be
// called from any goroutine.
type Socket struct {
	pc   net.PacketConn // what New was given
	conn net.PacketConn // what quic-go is given; quic-go looks at its methods
	log  *slog.Logger

	gro           bool
	receiveBuffer int // as the kernel counts; 0 if it doesn't tell
	sendBuffer    int

	received  atomic.Uint64 // packets
	reads     atomic.Uint64 // datagrams from the kernel: each is one packet or several coalesced
	dropped   atomic.Uint64 // packets that found the receive buffer full
	sendFails atomic.Uint64
	lastFail  atomic.Pointer[sendFailure]
	said      atomic.Uint32 // a bit for each remedy that was logged

	handlers [notQUIC]handler // by first byte; nil: the packet goes to quic-go

	makers      peers[parity.Maker]    // of the peers that get parity
	restorers   peers[parity.Restorer] // of the peers that send parity
	paritySent  atomic.Uint64          // datagrams
	parityStray atomic.Uint64          // datagrams of addresses without a Restorer
	restored    atomic.Uint64          // packets
}

type sendFailure struct{ err error }

// notQUIC is the first byte below which a datagram is not QUIC's: RFC 9443 gives 0 to 3 to STUN, and
// 4 to 15 to nobody.
const notQUIC = 16

// A handler takes a datagram of another kind than QUIC's, the first n bytes of buf. It returns the
// size of the packet for QUIC that it has put into buf, or 0.
type handler func(buf []byte, n int, from net.Addr) int

// Stats are the figures of a Socket since it was made.
type Stats struct {
	GRO           bool   // the kernel coalesces what arrives
	ReceiveBuffer int    // bytes, as the kernel counts (Linux doubles what is asked); 0: unknown
	SendBuffer    int    // bytes
	Received      uint64 // packets
	Reads         uint64 // datagrams from the kernel: fewer than packets where they came coalesced
	Dropped       uint64 // packets that the kernel dropped because the receive buffer was full
	SendFailures  uint64 // packets that the kernel refused to send; they count as lost on the way
	ParitySent    uint64 // datagrams
	ParityStray   uint64 // datagrams that were dropped: their sender has not announced parity
	Restored      uint64 // packets that were lost on the way here and made again from their parity
}

// New makes a Socket of pc, and owns pc from then on, also if it fails. A *net.UDPConn gets all that
// the system offers. Any other connection, such as a simulated one, works without. New enlarges the
// kernel's buffers, never shrinks them, and logs once how to get larger ones. A nil logger is silent.
func New(pc net.PacketConn, log *slog.Logger) (*Socket, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Socket{pc: pc, log: log}
	s.handlers[parity.FirstByte] = s.parityArrived
	udp, ok := pc.(*net.UDPConn)
	if !ok {
		s.conn = &plainConn{PacketConn: pc, socket: s}
		return s, nil
	}
	var err error
	if s.conn, err = s.setUp(udp); err != nil {
		err = fmt.Errorf("set up UDP socket %v: %w", pc.LocalAddr(), err)
		return nil, errors.Join(err, pc.Close())
	}
	if s.receiveBuffer > 0 && s.receiveBuffer < socketBuffer {
		// quic-go would print the same to stderr, but for its switch.
		if os.Getenv(bufferWarningSwitch) == "" {
			_ = os.Setenv(bufferWarningSwitch, "true")
		}
		s.logOnce(saidBuffer, slog.LevelInfo,
			"the UDP receive buffer is smaller than it should be for fast links; "+
				"raise it with `sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608`",
			slog.Int("bytes", s.receiveBuffer), slog.Int("wanted", socketBuffer))
	}
	return s, nil
}

const bufferWarningSwitch = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"

// PacketConn is what quic-go sends and receives with. Only one goroutine may read from it.
func (s *Socket) PacketConn() net.PacketConn { return s.conn }

// LocalAddr is where the socket is bound; the zero value if that is not an IP address.
func (s *Socket) LocalAddr() netip.AddrPort { return AddrPort(s.pc.LocalAddr()) }

// FindsMTU reports whether QUIC can discover the path's MTU over the socket.
func (s *Socket) FindsMTU() bool {
	_, plain := s.conn.(*plainConn)
	return !plain
}

// Received is the number of packets that have arrived.
func (s *Socket) Received() uint64 { return s.received.Load() }

// Stats returns the figures so far.
func (s *Socket) Stats() Stats {
	return Stats{
		GRO:           s.gro,
		ReceiveBuffer: s.receiveBuffer,
		SendBuffer:    s.sendBuffer,
		Received:      s.received.Load(),
		Reads:         s.reads.Load(),
		Dropped:       s.dropped.Load(),
		SendFailures:  s.sendFails.Load(),
		ParitySent:    s.paritySent.Load(),
		ParityStray:   s.parityStray.Load(),
		Restored:      s.restored.Load(),
	}
}

// Close closes the socket. Links over it die without a word.
func (s *Socket) Close() error { return s.pc.Close() }

// SendError is the last reason for which the kernel refused to send, or nil.
func (s *Socket) SendError() error {
	if f := s.lastFail.Load(); f != nil {
		return f.err
	}
	return nil
}

// maxParityPeers bounds the peers that get parity, and those that send it: each takes 100 KiB.
const maxParityPeers = 512

// NewMaker returns a Maker whose datagrams are counted in ofLink and in the socket's figures.
func (s *Socket) NewMaker(ofLink *atomic.Uint64) *parity.Maker {
	return parity.NewMaker(ofLink, &s.paritySent)
}

// NewRestorer returns a Restorer whose packets are counted in ofLink and in the socket's figures.
func (s *Socket) NewRestorer(ofLink *atomic.Uint64) *parity.Restorer {
	return parity.NewRestorer(ofLink, &s.restored)
}

// SendParity sends m's parity behind the packets for an address. It reports false, and does
// nothing, if maxParityPeers other addresses get parity.
func (s *Socket) SendParity(to netip.AddrPort, m *parity.Maker) bool {
	return s.makers.put(to, m, maxParityPeers)
}

// StopParity ends SendParity, unless another Maker serves the address by now.
func (s *Socket) StopParity(to netip.AddrPort, m *parity.Maker) { s.makers.remove(to, m) }

// TakeParity gives the packets and the parity from an address to r. It reports false, and does
// nothing, if maxParityPeers other addresses send parity.
func (s *Socket) TakeParity(from netip.AddrPort, r *parity.Restorer) bool {
	return s.restorers.put(from, r, maxParityPeers)
}

// DropParity ends TakeParity, unless another Restorer serves the address by now.
func (s *Socket) DropParity(from netip.AddrPort, r *parity.Restorer) { s.restorers.remove(from, r) }

// sent turns the outcome of a send into what quic-go is told. quic-go ends a connection when the
// kernel refuses a packet, but a missing route or a full queue pass, so a refusal counts as a loss.
// quic-go learns only of a closed socket and of a packet that is too large (MTU discovery).
func (s *Socket) sent(err error) error {
	if err == nil || errors.Is(err, net.ErrClosed) || tooLarge(err) {
		return err
	}
	s.sendFails.Add(1)
	s.lastFail.Store(&sendFailure{err})
	return nil
}

// arrived takes a packet off the network, the first n bytes of buf. It returns the size of the
// packet for QUIC that is in buf then: the same one, another one that a handler has put there, or
// none (0). Only the goroutine that reads from the socket may call it.
func (s *Socket) arrived(buf []byte, n int, from net.Addr) int {
	if n == 0 {
		return 0
	}
	if kind := buf[0]; kind < notQUIC && s.handlers[kind] != nil {
		return s.handlers[kind](buf, n, from)
	}
	if r := s.restorers.at(from); r != nil {
		r.Keep(buf[:n])
	}
	return n
}

// parityArrived is the handler of parity datagrams.
func (s *Socket) parityArrived(buf []byte, n int, from net.Addr) int {
	r := s.restorers.at(from)
	if r == nil {
		s.parityStray.Add(1)
		return 0
	}
	return r.Restore(buf, n)
}

// arrivedAll is arrived for a batch, and returns how many messages are left. The messages' buffers
// stay in place: quic-go knows them by their place.
func (s *Socket) arrivedAll(ms []ipv4.Message) int {
	left := 0
	for i := range ms {
		from := &ms[i]
		n := s.arrived(from.Buffers[0], from.N, from.Addr)
		if n == 0 {
			continue
		}
		to := &ms[left]
		left++
		if to != from {
			copy(to.Buffers[0], from.Buffers[0][:n])
			to.NN = copy(to.OOB, from.OOB[:from.NN])
			to.Flags, to.Addr = from.Flags, from.Addr
		}
		to.N = n
	}
	return left
}

const (
	saidBuffer = 1 << iota
	saidSegments
	saidECN
	saidOption
	saidBatch
)

// logOnce logs a line unless the bit what is set already.
func (s *Socket) logOnce(what uint32, level slog.Level, msg string, attrs ...slog.Attr) {
	if s.said.Or(what)&what == 0 {
		attrs = append(attrs, slog.Any("socket", s.pc.LocalAddr()))
		s.log.LogAttrs(context.Background(), level, msg, attrs...)
	}
}

// A plainConn serves connections without a kernel beneath them, and systems for which a Socket has
// nothing to add.
type plainConn struct {
	net.PacketConn
	socket *Socket
}

func (c *plainConn) ReadFrom(p []byte) (int, net.Addr, error) {
	return c.socket.readFrom(c.PacketConn, p)
}

func (c *plainConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	return c.socket.writeTo(c.PacketConn, p, addr)
}

// SetReadBuffer does nothing: New has set the buffers, and quic-go's attempt could shrink them.
func (*plainConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing, for the same reason.
func (*plainConn) SetWriteBuffer(int) error { return nil }

func (s *Socket) readFrom(pc net.PacketConn, p []byte) (int, net.Addr, error) {
	for {
		n, addr, err := pc.ReadFrom(p)
		if err != nil {
			return n, addr, err
		}
		s.received.Add(1)
		s.reads.Add(1)
		if n = s.arrived(p, n, addr); n > 0 {
			return n, addr, nil
		}
	}
}

func (s *Socket) writeTo(pc net.PacketConn, p []byte, addr net.Addr) (int, error) {
	_, err := pc.WriteTo(p, addr)
	if err = s.sent(err); err != nil {
		return len(p), err
	}
	if m := s.makers.at(addr); m != nil {
		m.Protect(p, len(p), func(parity []byte) {
			_, err := pc.WriteTo(parity, addr)
			_ = s.sent(err)
		})
	}
	return len(p), nil
}

// AddrPort returns the address of a UDP peer with IPv4 addresses unmapped, and the zero value for
// any other kind of address.
func AddrPort(a net.Addr) netip.AddrPort {
	if udp, ok := a.(*net.UDPAddr); ok {
		ap := udp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
