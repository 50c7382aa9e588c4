//go:build !linux

package link

import (
	"net"

	"golang.org/x/net/ipv4"
)

// setUp prepares a UDP socket and returns what quic-go is given of it.
func (s *Socket) setUp(udp *net.UDPConn) (net.PacketConn, error) {
	// What was got can't be read back in one way on all systems, and asking for too much is no error on some.
	_ = udp.SetReadBuffer(socketBuffer)
	_ = udp.SetWriteBuffer(socketBuffer)
	return &udpConn{UDPConn: udp, socket: s, batch: ipv4.NewPacketConn(udp)}, nil
}

// udpConn is a UDP socket as quic-go sees it: it reads by ReadBatch where it reads control messages, else by ReadFrom.
type udpConn struct {
	*net.UDPConn
	socket *Socket
	batch  *ipv4.PacketConn
}

func (c *udpConn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	n, err := c.batch.ReadBatch(ms, flags)
	c.socket.received.Add(uint64(max(n, 0)))
	c.socket.reads.Add(uint64(max(n, 0)))
	return n, err
}

func (c *udpConn) ReadFrom(p []byte) (int, net.Addr, error) {
	n, addr, err := c.UDPConn.ReadFrom(p)
	if err == nil {
		c.socket.received.Add(1)
		c.socket.reads.Add(1)
	}
	return n, addr, err
}

func (c *udpConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	_, err := c.UDPConn.WriteTo(p, addr)
	return len(p), c.socket.sent(err)
}

func (c *udpConn) WriteMsgUDP(b, oob []byte, addr *net.UDPAddr) (int, int, error) {
	_, _, err := c.UDPConn.WriteMsgUDP(b, oob, addr)
	return len(b), len(oob), c.socket.sent(err)
}

// SetReadBuffer does nothing: the Socket has set the buffers.
func (*udpConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing, for the same reason.
func (*udpConn) SetWriteBuffer(int) error { return nil }
