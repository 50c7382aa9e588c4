package carrier

import (
	"errors"
	"log/slog"
	"net"
	"sync/atomic"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// A sandbox (a seccomp filter, or what plays a kernel, such as gVisor) may refuse calls that Linux
// itself never refuses. A filter stays as long as the process does, and covers all of its sockets.
var (
	sandboxSaid atomic.Uint32 // bits of what was logged: each dial has a socket of its own
	noBatches   atomic.Bool   // recvmmsg is refused
)

// tellOfSandbox logs a warning unless the process has logged it before.
func (s *Socket) tellOfSandbox(what uint32, msg string, attrs ...slog.Attr) {
	if sandboxSaid.Or(what)&what == 0 {
		s.logOnce(what, slog.LevelWarn, msg, attrs...)
	}
}

// A refusedOption is a socket option that quic-go insists on, and that the system refuses.
type refusedOption struct {
	name string
	lost string // what else goes without it
	err  error
}

// What the administrator can do about a sandbox.
const (
	letPass = "let it pass in the seccomp profile of the container, " +
		"or in the service's SystemCallFilter="
	listenByName = "on a host with several addresses, listen on one by name; "
)

// setOptions sets what quic-go will set, and returns the first option that is refused for both
// families: quic-go would give up the socket.
func setOptions(fd int, at net.Addr) *refusedOption {
	options := []struct {
		refusedOption
		v4, value4 int
		v6, value6 int
	}{
		{
			refusedOption{name: "IP_PKTINFO", lost: listenByName},
			unix.IP_PKTINFO, 1, unix.IPV6_RECVPKTINFO, 1,
		},
		{refusedOption{name: "IP_RECVTOS"}, unix.IP_RECVTOS, 1, unix.IPV6_RECVTCLASS, 1},
		// The last one: without the others no packet may have DF.
		{
			refusedOption{name: "IP_MTU_DISCOVER"},
			unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE,
			unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE,
		},
	}
	if udp, ok := at.(*net.UDPAddr); ok && !udp.IP.IsUnspecified() {
		options = options[1:] // packets are sent from the address that the socket is bound to
	}
	for _, o := range options {
		err4 := unix.SetsockoptInt(fd, unix.IPPROTO_IP, o.v4, o.value4)
		err6 := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, o.v6, o.value6)
		if err4 != nil && err6 != nil {
			o.err = err4
			return &o.refusedOption
		}
	}
	return nil
}

// take is rawUDP.receive. Where a sandbox refuses recvmmsg, it goes on with recvmsg.
func (c *udpConn) take(ms []ipv4.Message) (int, error) {
	c.raw.single = noBatches.Load()
	n, err := c.raw.receive(ms)
	refused := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) ||
		errors.Is(err, unix.ENOSYS)
	if !refused || c.raw.single {
		return n, err
	}
	noBatches.Store(true)
	c.socket.tellOfSandbox(saidBatch, "a sandbox around this process refuses recvmmsg(2), "+
		"so packets are received one by one with recvmsg(2), which costs processor time; "+letPass,
		slog.Any("error", err))
	c.raw.single = true
	return c.raw.receive(ms)
}
