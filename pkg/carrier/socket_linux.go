package carrier

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

const (
	// batchReads is the number of datagrams, coalesced or not, that one system call takes at most,
	// as in quic-go.
	batchReads = 8
	// groSize is the size in bytes of the largest coalesced datagram: the kernel stops below 64
	// KiB.
	groSize = 64 << 10
	// oobSize is room for the control messages that are asked for: ECN, packet info of IPv6, GRO,
	// drops.
	oobSize = 160
)

// setUp prepares a UDP socket and returns what quic-go is given.
func (s *Socket) setUp(udp *net.UDPConn) (net.PacketConn, error) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	v6 := false
	var refused *refusedOption
	err = raw.Control(func(fd uintptr) {
		family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		v6 = err == nil && family == unix.AF_INET6
		s.receiveBuffer = growBuffer(int(fd), unix.SO_RCVBUF, unix.SO_RCVBUFFORCE)
		s.sendBuffer = growBuffer(int(fd), unix.SO_SNDBUF, unix.SO_SNDBUFFORCE)
		if refused = setOptions(int(fd), udp.LocalAddr()); refused != nil {
			return // also without GRO: quic-go would take coalesced packets for one
		}
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
		s.gro = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1) == nil
	})
	if err != nil {
		return nil, err
	}
	if refused != nil {
		s.tellOfSandbox(saidOption, "a sandbox around this process refuses a socket option "+
			"that QUIC needs, so packets go one by one, without ECN and of the least size; "+
			refused.lost+letPass,
			slog.String("option", refused.name), slog.Any("error", refused.err))
		return &plainConn{PacketConn: udp, socket: s}, nil
	}
	c := &udpConn{UDPConn: udp, socket: s, raw: newRawUDP(raw, v6)}
	c.controls.New = func() any { return new([]byte) }
	return c, nil
}

// growBuffer raises a kernel buffer to socketBuffer, if it is smaller, and returns its size then.
// FORCE goes beyond net.core.rmem_max and needs CAP_NET_ADMIN. The plain option stops there, and
// could shrink a buffer that FORCE made.
func growBuffer(fd, option, force int) int {
	size, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
	if err != nil || size >= socketBuffer {
		return size
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
		before := size
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, socketBuffer)
		if size, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); size < before {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, option, before/2) // the kernel doubles it
		}
	}
	size, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, option)
	return size
}

// A udpConn is a UDP socket as quic-go sees it. Its ReadBatch returns the pieces of what the kernel
// has coalesced.
type udpConn struct {
	*net.UDPConn
	socket *Socket
	raw    *rawUDP

	controls sync.Pool // of *[]byte, the control messages of parity

	// What was read and not handed out yet. quic-go reads from one goroutine.
	reads   []ipv4.Message // made at the first read
	next    int            // index in reads[:filled] of the one that is being split
	filled  int
	offset  int    // in that one's data
	segment int    // its packets' size; the last one may be shorter
	oob     []byte // its control messages that are for quic-go
	drops   uint32 // the kernel's count so far
}

// ReadBatch waits for a packet, fills ms with one packet each, and returns how many. The messages'
// buffers are quic-go's, so each packet is copied: that costs less than the system call it spares.
func (c *udpConn) ReadBatch(ms []ipv4.Message, _ int) (int, error) {
	for { // until one of the packets is for QUIC
		n, err := c.read(ms)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (c *udpConn) read(ms []ipv4.Message) (int, error) {
	if c.socket.gro {
		return c.readCoalesced(ms)
	}
	return c.readPlain(ms)
}

func (c *udpConn) readPlain(ms []ipv4.Message) (int, error) {
	n, err := c.take(ms)
	if err != nil {
		return n, err
	}
	for i := range n {
		c.examine(ms[i].OOB[:ms[i].NN], nil)
	}
	c.socket.reads.Add(uint64(n))
	c.socket.received.Add(uint64(n))
	return c.socket.arrivedAll(ms[:n]), nil
}

func (c *udpConn) readCoalesced(ms []ipv4.Message) (int, error) {
	if c.next == c.filled {
		if err := c.receive(); err != nil {
			return 0, err
		}
	}
	n, packets := 0, 0
	for n < len(ms) && c.next < c.filled {
		read := &c.reads[c.next]
		data := read.Buffers[0][c.offset:read.N]
		if len(data) > c.segment {
			data = data[:c.segment]
		}
		c.offset += len(data)
		packets++
		m := &ms[n]
		m.N = copy(m.Buffers[0], data) // no QUIC packet is longer than quic-go's buffer
		if m.N = c.socket.arrived(m.Buffers[0], m.N, read.Addr); m.N > 0 {
			m.NN = copy(m.OOB, c.oob)
			m.Flags = read.Flags
			m.Addr = read.Addr
			n++
		}
		if c.offset >= read.N {
			c.next++
			c.open()
		}
	}
	c.socket.received.Add(uint64(packets))
	return n, nil
}

// receive waits for datagrams and takes all that one system call gives.
func (c *udpConn) receive() error {
	if c.reads == nil {
		c.reads = make([]ipv4.Message, batchReads)
		for i := range c.reads {
			c.reads[i].Buffers = [][]byte{make([]byte, groSize)}
			c.reads[i].OOB = make([]byte, oobSize)
		}
		c.oob = make([]byte, 0, oobSize)
	}
	n, err := c.take(c.reads)
	c.next, c.filled = 0, max(n, 0)
	if err != nil {
		return err
	}
	c.socket.reads.Add(uint64(n))
	c.open()
	return nil
}

// open begins to split the read at c.next, if there is one.
func (c *udpConn) open() {
	if c.next == c.filled {
		return
	}
	read := &c.reads[c.next]
	c.offset = 0
	c.oob = c.oob[:0]
	c.segment = c.examine(read.OOB[:read.NN], &c.oob)
	if c.segment <= 0 {
		c.segment = max(read.N, 1)
	}
}

// examine reads the control messages of one datagram. It returns the size of the packets in it (0
// for a single packet), counts the kernel's drops, and appends quic-go's messages to rest.
func (c *udpConn) examine(oob []byte, rest *[]byte) (segment int) {
	for len(oob) > 0 {
		header, body, remainder, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return segment
		}
		switch {
		case header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_GRO && len(body) >= 4:
			segment = int(int32(binary.NativeEndian.Uint32(body)))
		case header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_GRO && len(body) >= 2:
			segment = int(binary.NativeEndian.Uint16(body))
		case header.Level == unix.SOL_SOCKET && header.Type == unix.SO_RXQ_OVFL && len(body) >= 4:
			drops := binary.NativeEndian.Uint32(body)
			c.socket.dropped.Add(uint64(drops - c.drops)) // it wraps around
			c.drops = drops
		case rest != nil:
			*rest = append(*rest, oob[:len(oob)-len(remainder)]...)
		}
		oob = remainder
	}
	return segment
}

// WriteMsgUDP sends one packet, or several of equal size where oob says so, and their parity. Each
// link has a goroutine of quic-go that does nothing else. Its first stack of 2 KiB is enough for
// this function; rare cases are in functions of their own. A test holds that: a stack of 4 KiB
// would cost each idle peer 2 KiB more.
func (c *udpConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (int, int, error) {
	if err := c.raw.send(b, oob, addr); err != nil {
		return c.sendOtherwise(b, oob, addr, err)
	}
	if c.socket.makers.any() {
		c.protect(b, oob, addr)
	}
	return len(b), len(oob), nil
}

// protect sends the parity of packets that have left, if the peer gets any, with the same ECN mark
// and from the same local address.
//
//go:noinline
func (c *udpConn) protect(b, oob []byte, addr *net.UDPAddr) {
	m := c.socket.makers.at(addr)
	if m == nil {
		return
	}
	size := segmentSize(oob)
	if size == 0 {
		size = len(b)
	}
	control := c.controls.Get().(*[]byte)
	m.Protect(b, size, func(parity []byte) {
		*control = appendUnsegmented((*control)[:0], oob)
		if err := c.raw.send(parity, *control, addr); err != nil {
			_, _, _ = c.sendOtherwise(parity, *control, addr, err)
		}
	})
	c.controls.Put(control)
}

// sendOtherwise sends what was refused with err. Some hosts, containers above all, refuse segmented
// or ECN-marked sends: those packets go without.
//
//go:noinline
func (c *udpConn) sendOtherwise(b, oob []byte, addr *net.UDPAddr, err error) (int, int, error) {
	send := c.raw.send
	if errors.Is(err, errAddress) {
		send = func(b, oob []byte, addr *net.UDPAddr) error {
			_, _, err := c.UDPConn.WriteMsgUDP(b, oob, addr)
			return err
		}
		if err = send(b, oob, addr); err == nil {
			return len(b), len(oob), nil
		}
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) {
		segmented, marked, plain := splitControl(oob)
		if marked {
			if again := send(b, plain, addr); again == nil {
				c.socket.logOnce(saidECN, slog.LevelWarn,
					"this host refuses to send packets with an ECN mark, so they go without; "+
						"QUIC_GO_DISABLE_ECN=true in the environment spares the attempt",
					slog.Any("error", err))
				return len(b), len(oob), nil
			}
		}
		if segmented {
			c.socket.logOnce(saidSegments, slog.LevelInfo,
				"this host refuses to send packets in segments (GSO), so they go one by one, "+
					"which costs processor time; "+
					"QUIC_GO_DISABLE_GSO=true in the environment spares the attempt",
				slog.Any("error", err))
			// At EIO quic-go sends the packets one by one, for the rest of the connection. At
			// EINVAL it would end the connection. EINVAL also comes when the path's MTU falls below
			// the segment.
			return 0, 0, os.NewSyscallError("sendmsg", unix.EIO)
		}
	}
	if _, ok := errors.AsType[*net.OpError](err); !ok {
		err = &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Addr: addr, Err: err}
	}
	return len(b), len(oob), c.socket.sent(err)
}

// SetReadBuffer does nothing: the Socket has set the buffers, and quic-go's own attempt could
// shrink them.
func (*udpConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing, for the same reason.
func (*udpConn) SetWriteBuffer(int) error { return nil }

// splitControl reports whether the control messages of a send ask for segments and for an ECN mark,
// and returns the messages without the mark.
func splitControl(oob []byte) (segmented, marked bool, unmarked []byte) {
	for len(oob) > 0 {
		header, _, remainder, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return segmented, marked, unmarked
		}
		message := oob[:len(oob)-len(remainder)]
		oob = remainder
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_TOS,
			header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_TCLASS:
			marked = true
			continue
		case isSegment(header):
			segmented = true
		}
		unmarked = append(unmarked, message...)
	}
	return segmented, marked, unmarked
}

// segmentSize returns the size of the segments that the control messages of a send ask for, or 0.
func segmentSize(oob []byte) int {
	for len(oob) > 0 {
		header, body, remainder, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return 0
		}
		if isSegment(header) && len(body) >= 2 {
			return int(binary.NativeEndian.Uint16(body))
		}
		oob = remainder
	}
	return 0
}

// appendUnsegmented appends the control messages of a send to dst, without the one that asks for
// segments.
func appendUnsegmented(dst, oob []byte) []byte {
	for len(oob) > 0 {
		header, _, remainder, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return dst
		}
		if !isSegment(header) {
			dst = append(dst, oob[:len(oob)-len(remainder)]...)
		}
		oob = remainder
	}
	return dst
}

func isSegment(header unix.Cmsghdr) bool {
	return header.Level == unix.IPPROTO_UDP && header.Type == unix.UDP_SEGMENT
}

func tooLarge(err error) bool { return errors.Is(err, syscall.EMSGSIZE) }
