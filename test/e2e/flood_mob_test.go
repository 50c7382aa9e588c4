//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"ptthqd/pkg/ident"
)

// A mob is strangers on a host of their own in a lab, who send to a relay in the name of anybody. The network 10.92.0.0/16
// is theirs: what is sent there comes back to them.
type mob struct {
	t     *testing.T
	lab   *lab
	relay netip.AddrPort
	key   ident.PublicKey // the relay's
	raw   int             // a socket that sends whole IPv4 packets
	sent  atomic.Int64
}

const mobHost = "mallory"

func newMob(t *testing.T, w *world, relay string) *mob {
	t.Helper()
	l := w.lab
	m := &mob{
		t: t, lab: l, key: w.keys[relay].Public(),
		relay: netip.AddrPortFrom(netip.MustParseAddr(w.hosts[relay]), uint16(w.ports[relay])),
	}
	l.run("ip", "netns", "add", l.prefix+mobHost)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "delete", l.prefix+mobHost).Run() })
	l.in(mobHost, "ip", "link", "set", "lo", "up")
	l.in("hub", "ip", "link", "add", "to-"+mobHost, "type", "veth", "peer", "name", "eth0", "netns", l.prefix+mobHost)
	l.in("hub", "ip", "addr", "add", "10.91.3.1/24", "dev", "to-"+mobHost)
	l.in("hub", "ip", "link", "set", "to-"+mobHost, "up")
	l.in(mobHost, "ip", "link", "set", "eth0", "up")
	l.address(mobHost, "10.91.3.2")
	l.in("hub", "ip", "route", "add", "10.92.0.0/16", "via", "10.91.3.2")
	l.in(mobHost, "ip", "route", "add", "local", "10.92.0.0/16", "dev", "lo")
	err := l.do(mobHost, func() (err error) {
		m.raw, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(m.raw) })
	return m
}

// one is somebody of the mob's network.
func one() netip.AddrPort {
	r := rand.Uint64()
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 92, byte(r), byte(r >> 8)}), uint16(r>>16)|1024)
}

// send sends a UDP packet to the relay in the name of from.
func (m *mob) send(from netip.AddrPort, payload []byte) {
	const headers = 20 + 8
	p := make([]byte, headers, headers+len(payload))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	source, to := from.Addr().As4(), m.relay.Addr().As4()
	copy(p[12:], source[:])
	copy(p[16:], to[:])
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], m.relay.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	if unix.Sendto(m.raw, append(p, payload...), 0, &unix.SockaddrInet4{Addr: to}) == nil {
		m.sent.Add(1)
	}
}

// pour sends so many packets a second until ctx is done.
func (m *mob) pour(ctx context.Context, perSecond int, next func() (from netip.AddrPort, payload []byte)) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		due := int(time.Since(start).Seconds() * float64(perSecond))
		for n = max(n, due-perSecond/10); n < due; n++ { // what a busy host has missed by more than 0.1 s it doesn't make up for
			m.send(next())
		}
	}
}

func random(n int) []byte {
	p := make([]byte, (n+7)&^7)
	for i := 0; i < n; i += 8 {
		binary.NativeEndian.PutUint64(p[i:], rand.Uint64())
	}
	return p[:n]
}

// garbage is no packet at all, or a few bytes that look like the beginning of one.
func garbage() (netip.AddrPort, []byte) {
	p := random(1 + rand.N(1452))
	switch rand.N(4) {
	case 0: // as it is
	case 1:
		p[0] = 0x40 | p[0]&0x3f // a packet of a connection that is not there
	case 2:
		p[0] |= 0xc0 // one of another version
	default:
		if len(p) > 4 {
			copy(p, []byte{0xc0 | p[0]&0x3f, 0, 0, 0, 1}) // a handshake's, of any type and length
		}
	}
	return one(), p
}

// initial begins a handshake, as far as one sees without its keys.
func initial(to, token []byte) []byte {
	p := random(1200)
	p[0] = 0xc0 | p[0]&3
	binary.BigEndian.PutUint32(p[1:], 1)
	n := 5
	put := func(b ...byte) { n += copy(p[n:], b) }
	put(byte(len(to)))
	put(to...)
	put(8)
	n += 8
	put(0x40|byte(len(token)>>8), byte(len(token)))
	put(token...)
	rest := len(p) - n - 2
	put(0x40|byte(rest>>8), byte(rest))
	return p
}

// hellos are true first packets of so many handshakes.
func (m *mob) hellos(n int) (all [][]byte) {
	var mu sync.Mutex
	var work sync.WaitGroup
	config, err := ident.DialTLS(newKey(m.t), m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	for range n {
		work.Go(func() {
			ctx, cancel := context.WithCancel(m.t.Context())
			pc := &mute{first: func(p []byte) {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, p)
				cancel()
			}}
			pc.closed, pc.close = context.WithCancel(context.Background())
			transport := &quic.Transport{Conn: pc}
			_, _ = transport.Dial(ctx, net.UDPAddrFromAddrPort(m.relay), config, &quic.Config{})
			_ = transport.Close()
			_ = pc.Close()
		})
		work.Wait()
	}
	return all
}

// mute is a net.PacketConn that hears nothing and tells of the first packet that is sent.
type mute struct {
	once   sync.Once
	first  func([]byte)
	closed context.Context //nolint:containedctx // it is a channel with a way to close it twice
	close  func()
}

func (c *mute) WriteTo(p []byte, _ net.Addr) (int, error) {
	c.once.Do(func() { c.first(append([]byte(nil), p...)) })
	return len(p), nil
}

func (c *mute) ReadFrom([]byte) (int, net.Addr, error) {
	<-c.closed.Done()
	return 0, nil, net.ErrClosed
}

func (c *mute) Close() error                     { c.close(); return nil }
func (c *mute) LocalAddr() net.Addr              { return &net.UDPAddr{IP: net.IPv4zero, Port: 1} }
func (c *mute) SetDeadline(time.Time) error      { return nil }
func (c *mute) SetReadDeadline(time.Time) error  { c.close(); return nil }
func (c *mute) SetWriteDeadline(time.Time) error { return nil }

// A captured packet is one that somebody honest has sent.
type captured struct {
	from    netip.AddrPort
	payload []byte
}

// eavesdrop keeps what a host sends to the relay while f runs.
func (m *mob) eavesdrop(host string, f func()) (all []captured) {
	m.t.Helper()
	const ip = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xff<<8 // in network order
	var fd int
	err := m.lab.do("hub", func() (err error) {
		via, err := net.InterfaceByName("to-" + host)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ip); err != nil {
			return err
		}
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ip, Ifindex: via.Index})
	})
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	f()
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			return all
		}
		p := buf[:n]
		if n < 28 || p[9] != unix.IPPROTO_UDP || n > 1500 || binary.BigEndian.Uint16(p[22:]) != m.relay.Port() {
			continue
		}
		all = append(all, captured{
			from:    netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), binary.BigEndian.Uint16(p[20:])),
			payload: append([]byte(nil), p[28:]...),
		})
	}
}

// replay sends what was captured: whole, cut off, or with a bit turned; from where it came, or from elsewhere.
func replay(all []captured) func() (netip.AddrPort, []byte) {
	return func() (netip.AddrPort, []byte) {
		c := all[rand.N(len(all))]
		from, p := c.from, append([]byte(nil), c.payload...)
		if rand.N(2) == 0 {
			from = one()
		}
		switch rand.N(3) {
		case 0:
			p = p[:rand.N(len(p))]
		case 1:
			p[rand.N(len(p))] ^= 1 << rand.N(8)
		}
		return from, p
	}
}

// stallAfterRetry begins so many handshakes a second from a number of true addresses, proves each address, and says no more.
func (m *mob) stallAfterRetry(ctx context.Context, perSecond, addresses int) {
	const port = 4444
	var conn *net.UDPConn
	err := m.lab.do(mobHost, func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	if err != nil {
		m.t.Error(err)
		return
	}
	pc := ipv4.NewPacketConn(conn)
	if err := pc.SetControlMessage(ipv4.FlagDst, true); err != nil {
		m.t.Error(err)
	}
	_ = conn.SetReadBuffer(4 << 20)
	var answering sync.WaitGroup
	answering.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, control, _, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			p := buf[:n]
			if n < 40 || p[0]>>4 != 0xf || control == nil { // no Retry
				continue
			}
			p = p[5:]
			p = p[1+p[0]:]
			id, token := p[1:1+p[0]], p[1+p[0]:len(p)-16]
			at, _ := netip.AddrFromSlice(control.Dst.To4())
			m.send(netip.AddrPortFrom(at, port), initial(id, token))
		}
	})
	n := 0
	m.pour(ctx, perSecond, func() (netip.AddrPort, []byte) {
		n++
		i := n % addresses
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 92, byte(i >> 8), byte(i)}), port), initial(random(8), nil)
	})
	_ = conn.Close()
	answering.Wait()
}

// A lame socket goes dead after so many packets that it has sent or received.
type lame struct {
	*net.UDPConn
	sends, receives atomic.Int64 // that are left
}

func (c *lame) WriteTo(p []byte, to net.Addr) (int, error) {
	if c.sends.Add(-1) < 0 {
		return len(p), nil
	}
	return c.UDPConn.WriteTo(p, to)
}

func (c *lame) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.UDPConn.ReadFrom(p)
		if err != nil || c.receives.Add(-1) >= 0 {
			return n, from, err
		}
	}
}

// Only what net.PacketConn has: quic-go is to use nothing else.
type packetConn struct{ net.PacketConn }

// dialers make handshakes, one after another each from an address of its own, until ctx is done. Each goes dead after a
// number of packets that next tells.
func (m *mob) dialers(ctx context.Context, n int, config *tls.Config, patience time.Duration, next func() (sends, receives int)) {
	var work sync.WaitGroup
	for i := range n {
		work.Go(func() {
			pause := time.NewTicker(10 * time.Millisecond)
			defer pause.Stop()
			for ctx.Err() == nil {
				<-pause.C
				sends, receives := next()
				if err := m.dialOnce(ctx, i, config, patience, sends, receives); err != nil {
					m.t.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
}

func (m *mob) dialOnce(ctx context.Context, i int, config *tls.Config, patience time.Duration, sends, receives int) error {
	socket := new(lame)
	socket.sends.Store(int64(sends))
	socket.receives.Store(int64(receives))
	err := m.lab.do(mobHost, func() (err error) {
		socket.UDPConn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 92, 200, byte(i))})
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = socket.Close() }()
	transport := &quic.Transport{Conn: packetConn{socket}}
	defer func() { _ = transport.Close() }()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	m.sent.Add(1)
	conn, err := transport.Dial(ctx, net.UDPAddrFromAddrPort(m.relay), config, &quic.Config{HandshakeIdleTimeout: time.Minute})
	if err != nil {
		return nil //nolint:nilerr // as it was meant to be
	}
	// For this end the handshake is over before the relay has looked at its key.
	select {
	case <-conn.Context().Done():
	case <-ctx.Done():
	}
	return nil
}

const always = 1 << 30
