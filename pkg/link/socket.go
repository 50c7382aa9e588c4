package link

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
)

// socketBuffer is the kernel buffer, in bytes each way, that a Socket tries to get. quic-go wants 7 MiB (its wiki,
// "UDP Buffer Sizes"); the power of two above costs nothing until a burst fills it.
const socketBuffer = 8 << 20

// Socket owns a UDP socket: everything that a link sends and receives passes through it, and it alone knows what the
// kernel does for it (coalesced receives, segmented sends, buffer sizes, drops), and that parity passes beside QUIC's packets.
//
// On Linux it receives coalesced datagrams (UDP GRO), as many as the kernel has at once, and splits them again. Elsewhere,
// or where the kernel refuses, it reads datagram by datagram.
type Socket struct {
	pc   net.PacketConn // what the socket was made from
	quic net.PacketConn // what quic-go is given: it looks at the methods that this has
	log  *slog.Logger

	gro           bool
	receiveBuffer int // as the kernel counts, 0 if it doesn't say
	sendBuffer    int

	received  atomic.Uint64 // packets
	reads     atomic.Uint64 // datagrams that the kernel handed out, each one packet or several coalesced
	dropped   atomic.Uint64 // packets that found the receive buffer full
	sendFails atomic.Uint64
	lastFail  atomic.Pointer[sendFailure]
	said      atomic.Uint32 // a bit for each remedy that was logged

	makers      peers[parityMaker] // of the peers that parity is sent to
	restorers   peers[restorer]    // of those that send it
	paritySent  atomic.Uint64      // datagrams
	parityStray atomic.Uint64      // datagrams of anyone else
	restored    atomic.Uint64      // packets
}

type sendFailure struct{ err error }

// SocketStats is what a Socket has seen and got.
type SocketStats struct {
	GRO           bool   // the kernel coalesces what arrives
	ReceiveBuffer int    // bytes, as the kernel counts (Linux doubles what is asked); 0 if it doesn't say
	SendBuffer    int    // bytes
	Received      uint64 // packets
	Reads         uint64 // datagrams from the kernel: fewer than packets where they came coalesced
	Dropped       uint64 // packets that the kernel dropped because the receive buffer was full
	SendFailures  uint64 // packets that the kernel refused to send, which count as lost on the way
	ParitySent    uint64 // datagrams
	ParityStray   uint64 // datagrams, dropped: of nobody who has said on a link that it sends them
	Restored      uint64 // packets that were lost on the way here and made again from their parity
}

// NewSocket makes a Socket of pc, and owns it from now on, also if it fails. A *net.UDPConn gets all that the system
// has to offer; any other connection, such as a simulated one, works without. Buffer sizes that are larger already,
// as a socket unit of systemd can give them, are left alone; what is missing is logged once with its remedy. A nil
// logger is silent.
func NewSocket(pc net.PacketConn, log *slog.Logger) (*Socket, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Socket{pc: pc, log: log}
	udp, ok := pc.(*net.UDPConn)
	if !ok {
		s.quic = &plainConn{PacketConn: pc, socket: s}
		return s, nil
	}
	var err error
	if s.quic, err = s.setUp(udp); err != nil {
		return nil, errors.Join(fmt.Errorf("set up UDP socket %v: %w", pc.LocalAddr(), err), pc.Close())
	}
	if s.receiveBuffer > 0 && s.receiveBuffer < socketBuffer {
		// quic-go would print the same to stderr by itself, but for its own switch.
		if os.Getenv(bufferWarningSwitch) == "" {
			_ = os.Setenv(bufferWarningSwitch, "true")
		}
		s.sayOnce(saidBuffer, slog.LevelInfo, "the UDP receive buffer is smaller than it should be for fast links; "+
			"raise it with `sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608`",
			slog.Int("bytes", s.receiveBuffer), slog.Int("wanted", socketBuffer))
	}
	return s, nil
}

const bufferWarningSwitch = "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING"

// LocalAddr is where the socket is bound; the zero value if that is not an IP address.
func (s *Socket) LocalAddr() netip.AddrPort { return addrPort(s.pc.LocalAddr()) }

// Stats may be called at any time, from any goroutine.
func (s *Socket) Stats() SocketStats {
	return SocketStats{
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

// Close closes the socket; links over it die without a word.
func (s *Socket) Close() error { return s.pc.Close() }

// sendError is the last reason for which the kernel refused to send, or nil.
func (s *Socket) sendError() error {
	if f := s.lastFail.Load(); f != nil {
		return f.err
	}
	return nil
}

// sent turns the outcome of sending one packet into what quic-go should hear of it. quic-go ends a connection at once when
// the kernel refuses a packet, but a missing route or a full queue pass, and QUIC is built to lose packets: so a refusal
// counts as a loss. Only a closed socket and a packet that is too large (which is how path MTU discovery learns) are told.
func (s *Socket) sent(err error) error {
	if err == nil || errors.Is(err, net.ErrClosed) || tooLarge(err) {
		return err
	}
	s.sendFails.Add(1)
	s.lastFail.Store(&sendFailure{err})
	return nil
}

// arrived takes a packet off the network, the first n bytes of buf, and returns the size of what is there for QUIC in its place:
// itself, or the one that it restores, or nothing, 0. Only the goroutine that reads from the socket may call it.
func (s *Socket) arrived(buf []byte, n int, from net.Addr) int {
	if n == 0 {
		return 0
	}
	r := s.restorers.at(from)
	switch {
	case buf[0] != parityType:
		if r != nil {
			r.keep(buf[:n])
		}
		return n
	case r == nil:
		s.parityStray.Add(1)
		return 0
	default:
		return r.restore(buf, n)
	}
}

// sift does the same for a batch, of which it returns how many are left. The buffers of messages stay where they are, as quic-go
// knows them by their place.
func (s *Socket) sift(ms []ipv4.Message) int {
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
)

func (s *Socket) sayOnce(what uint32, level slog.Level, msg string, attrs ...slog.Attr) {
	if s.said.Or(what)&what == 0 {
		s.log.LogAttrs(context.Background(), level, msg, append(attrs, slog.Any("socket", s.pc.LocalAddr()))...)
	}
}

// plainConn is for connections without a kernel beneath them, and for systems where a Socket has nothing to add.
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

// SetReadBuffer does nothing: the Socket has set the buffers, and quic-go's own attempt could shrink them.
func (*plainConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing, for the same reason.
func (*plainConn) SetWriteBuffer(int) error { return nil }

// readFrom is a ReadFrom for quic-go.
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

// writeTo is a WriteTo for quic-go.
func (s *Socket) writeTo(pc net.PacketConn, p []byte, addr net.Addr) (int, error) {
	_, err := pc.WriteTo(p, addr)
	if err = s.sent(err); err != nil {
		return len(p), err
	}
	if m := s.makers.at(addr); m != nil {
		m.protect(p, len(p), func(parity []byte) {
			_, err := pc.WriteTo(parity, addr)
			_ = s.sent(err)
		})
	}
	return len(p), nil
}

func addrPort(a net.Addr) netip.AddrPort {
	if udp, ok := a.(*net.UDPAddr); ok {
		ap := udp.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
