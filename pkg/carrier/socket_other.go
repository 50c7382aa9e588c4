//go:build !linux

package carrier

import (
	"net"

	"golang.org/x/net/ipv4"
)

// setUp prepares a UDP socket and returns what quic-go is given.
func (s *Socket) setUp(udp *net.UDPConn) (net.PacketConn, error) {
	// There is no portable way to read the sizes back, and some systems accept any size.
	_ = udp.SetReadBuffer(socketBuffer)
	_ = udp.SetWriteBuffer(socketBuffer)
	return &udpConn{UDPConn: udp, socket: s, batch: ipv4.NewPacketConn(udp)}, nil
}

// A udpConn is a UDP socket as quic-go sees it. quic-go reads by ReadBatch where it wants control
// messages, else by ReadFrom.
type udpConn struct {
	*net.UDPConn
	socket *Socket
	batch  *ipv4.PacketConn
}

func (c *udpConn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	for {
		n, err := c.batch.ReadBatch(ms, flags)
		if err != nil {
			return n, err
		}
		c.socket.received.Add(uint64(n))
		c.socket.reads.Add(uint64(n))
		if n = c.socket.arrivedAll(ms[:n]); n > 0 {
			return n, nil
		}
	}
}

func (c *udpConn) ReadFrom(p []byte) (int, net.Addr, error) {
	return c.socket.readFrom(c.UDPConn, p)
}

func (c *udpConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	return c.socket.writeTo(c.UDPConn, p, addr)
}

func (c *udpConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (int, int, error) {
	_, _, err := c.UDPConn.WriteMsgUDP(b, oob, addr)
	if err = c.socket.sent(err); err != nil {
		return len(b), len(oob), err
	}
	if m := c.socket.makers.at(addr); m != nil { // never segmented here
		m.Protect(b, len(b), func(parity []byte) {
			_, _, err := c.UDPConn.WriteMsgUDP(parity, oob, addr)
			_ = c.socket.sent(err)
		})
	}
	return len(b), len(oob), nil
}

// SetReadBuffer does nothing: the Socket has set the buffers.
func (*udpConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing, for the same reason.
func (*udpConn) SetWriteBuffer(int) error { return nil }
