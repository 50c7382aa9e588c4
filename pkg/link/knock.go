package link

import (
	"crypto/rand"
	"net"
	"net/netip"

	"github.com/quic-go/quic-go"
)

// knockSize is the size of a knock: above the 42 bytes that a stateless reset has, as quic-go answers nothing smaller, and far below
// every path's MTU.
const knockSize = 64

// knockAt sends each address a packet of a connection that is not there. A relay answers it with a stateless reset (RFC 9000,
// section 10.3). QUIC's handshake takes packets of 1,200 bytes; where those are lost and small ones are not, this answer
// is all that arrives, and tells a path with too small an MTU from one that is closed.
func knockAt(transport *quic.Transport, addresses []netip.AddrPort) {
	packet := make([]byte, knockSize)
	_, _ = rand.Read(packet)          // never fails
	packet[0] = packet[0]&0x3f | 0x40 // a short header
	for _, to := range addresses {
		_, _ = transport.WriteTo(packet, net.UDPAddrFromAddrPort(to)) // what can't be sent the handshake tells of
	}
}
