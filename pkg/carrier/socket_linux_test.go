package carrier

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/parity"
	"ptthqd/test/testutil"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// What pkg/parity makes: two datagrams behind eight packets; a Restorer keeps 64.
const (
	groupSize     = 8
	partsPerGroup = 2
	keptPackets   = 64
)

// qpacket makes a packet that looks like one of QUIC's: a short header, and random bytes.
func qpacket(random *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	b[0] = b[0]&0x3f | 0x40
	return b
}

func udpSocket(t *testing.T, log *slog.Logger) (*Socket, *udpConn) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(pc, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, s.conn.(*udpConn)
}

func control(level, kind int32, data ...byte) []byte {
	b := make([]byte, unix.CmsgSpace(len(data)))
	h := unix.Cmsghdr{Level: level, Type: kind}
	h.SetLen(unix.CmsgLen(len(data)))
	binary.NativeEndian.PutUint64(b, uint64(h.Len))
	binary.NativeEndian.PutUint32(b[8:], uint32(h.Level))
	binary.NativeEndian.PutUint32(b[12:], uint32(h.Type))
	copy(b[unix.CmsgLen(0):], data)
	return b
}

func segments(size uint16) []byte {
	return control(unix.IPPROTO_UDP, unix.UDP_SEGMENT, binary.NativeEndian.AppendUint16(nil, size)...)
}

// batch is what quic-go asks for: eight packets.
func batch() []ipv4.Message {
	ms := make([]ipv4.Message, 8)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, 1452)}
		ms[i].OOB = make([]byte, 128)
	}
	return ms
}

// readPackets reads so many packets and returns their contents and ECN bits.
func readPackets(t *testing.T, c *udpConn, count int) (packets [][]byte, marks []byte) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	for len(packets) < count {
		ms := batch()
		n, err := c.ReadBatch(ms, 0)
		if err != nil {
			t.Fatalf("after %d of %d packets: %v", len(packets), count, err)
		}
		for _, m := range ms[:n] {
			if m.Addr == nil {
				t.Error("a packet without an address")
			}
			packets = append(packets, m.Buffers[0][:m.N])
			mark := byte(0)
			for oob := m.OOB[:m.NN]; len(oob) > 0; {
				h, body, rest, err := unix.ParseOneSocketControlMessage(oob)
				if err != nil {
					t.Fatal(err)
				}
				if h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS {
					mark = body[0] & 3
				} else {
					t.Errorf("a control message of level %d, type %d", h.Level, h.Type)
				}
				oob = rest
			}
			marks = append(marks, mark)
		}
	}
	return packets, marks
}

// readingSocket is one that is read from as quic-go does it, with or without GRO.
func readingSocket(t *testing.T, gro bool) (*Socket, *udpConn) {
	t.Helper()
	s, reader := udpSocket(t, nil)
	if !s.Stats().GRO {
		t.Skip("this kernel has no UDP GRO")
	}
	s.gro = gro
	raw, err := reader.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if !gro {
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 0)
		}
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
	})
	return s, reader
}

func TestCoalescedPacketsAreSplit(t *testing.T) {
	for _, gro := range []bool{true, false} {
		to, reader := readingSocket(t, gro)
		_, writer := udpSocket(t, nil)
		addr := reader.LocalAddr().(*net.UDPAddr)

		// Trains of all lengths, whose last packet is shorter, with single packets in between.
		var sent [][]byte
		var marks []byte
		for i := range 40 {
			size := 100 + 33*i
			first := 0x40 | byte(i) // as QUIC's packets begin
			train := bytes.Repeat([]byte{first}, (i+1)*size-i)
			oob := append(segments(uint16(size)), control(unix.IPPROTO_IP, unix.IP_TOS, byte(i%4))...)
			if _, _, err := writer.WriteMsgUDP(train, oob, addr); err != nil {
				t.Fatal(err)
			}
			for len(train) > 0 {
				n := min(size, len(train))
				sent = append(sent, train[:n])
				marks = append(marks, byte(i%4))
				train = train[n:]
			}
			if _, _, err := writer.WriteMsgUDP([]byte{first}, nil, addr); err != nil {
				t.Fatal(err)
			}
			sent, marks = append(sent, []byte{first}), append(marks, 0)
		}
		got, gotMarks := readPackets(t, reader, len(sent))
		for i := range sent {
			if !bytes.Equal(got[i], sent[i]) || gotMarks[i] != marks[i] {
				t.Fatalf("gro=%v: packet %d has %d bytes, mark %d; %d bytes, mark %d were sent", gro, i, len(got[i]), gotMarks[i], len(sent[i]), marks[i])
			}
		}
		stats := to.Stats()
		if stats.Received != uint64(len(sent)) {
			t.Errorf("%+v, sent %d", stats, len(sent))
		}
		if gro && stats.Reads*4 > stats.Received || !gro && stats.Reads != stats.Received {
			t.Errorf("gro=%v: %+v", gro, stats)
		}
	}
}

func TestDropsAreCounted(t *testing.T) {
	to, reader := udpSocket(t, nil)
	_, writer := udpSocket(t, nil)
	if err := reader.UDPConn.SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		if _, _, err := writer.WriteMsgUDP(make([]byte, 1000), nil, reader.LocalAddr().(*net.UDPAddr)); err != nil {
			t.Fatal(err)
		}
	}
	readPackets(t, reader, 1)
	for to.Stats().Dropped == 0 { // the count comes with the first packet after the drops
		if _, _, err := writer.WriteMsgUDP([]byte{1}, nil, reader.LocalAddr().(*net.UDPAddr)); err != nil {
			t.Fatal(err)
		}
		readPackets(t, reader, 1)
	}
	if n := to.Stats().Dropped; n < 900 || n > 1000 {
		t.Errorf("%d drops counted of about 990", n)
	}
}

func TestBuffersOnlyGrow(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := pc.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var before int
	_ = raw.Control(func(fd uintptr) {
		// What a socket unit of systemd may have given; without the capability, what the system allows.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<20)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		before, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
	})
	s, err := New(pc, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if got := s.Stats().ReceiveBuffer; got < before {
		t.Errorf("the receive buffer shrank from %d to %d bytes", before, got)
	}
	// quic-go tries too.
	if err := s.conn.(*udpConn).SetReadBuffer(1); err != nil {
		t.Error(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if got, _ := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); got < before {
			t.Errorf("quic-go shrank the receive buffer from %d to %d bytes", before, got)
		}
	})
}

func TestRefusedSends(t *testing.T) {
	var log bytes.Buffer
	from, writer := udpSocket(t, slog.New(slog.NewTextHandler(&log, nil)))
	_, reader := udpSocket(t, nil)
	to := reader.LocalAddr().(*net.UDPAddr)

	// A mark that the kernel refuses: the packet goes without.
	badMark := control(unix.IPPROTO_IP, unix.IP_TOS, binary.NativeEndian.AppendUint32(nil, 4711)...)
	for range 2 {
		if n, _, err := writer.WriteMsgUDP([]byte("marked"), badMark, to); err != nil || n != 6 {
			t.Error(n, err)
		}
	}
	if packets, _ := readPackets(t, reader, 2); string(packets[1]) != "marked" {
		t.Errorf("%q", packets)
	}
	if n := bytes.Count(log.Bytes(), []byte("QUIC_GO_DISABLE_ECN")); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, &log)
	}

	// More segments than the kernel takes (EINVAL): quic-go is told EIO, at which it sends one by one.
	_, _, err := writer.WriteMsgUDP(make([]byte, 60_000), segments(10), to)
	if e, ok := errors.AsType[*os.SyscallError](err); !ok || e.Err != unix.EIO { //nolint:errorlint // as quic-go looks at it
		t.Errorf("%v", err)
	}
	if n := bytes.Count(log.Bytes(), []byte("QUIC_GO_DISABLE_GSO")); n != 1 {
		t.Errorf("the log says it %d times:\n%s", n, &log)
	}

	// A packet that is too large is told, for path MTU discovery.
	if _, _, err := writer.WriteMsgUDP(make([]byte, 70_000), nil, to); !tooLarge(err) {
		t.Error(err)
	}
	// What passes counts as lost on the way.
	if _, _, err := writer.WriteMsgUDP([]byte("x"), nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Error(err)
	}
	if n := from.Stats().SendFailures; n != 1 || from.SendError() == nil {
		t.Errorf("%d failures, %v", n, from.SendError())
	}
	// A closed socket is told.
	_ = from.Close()
	if _, _, err := writer.WriteMsgUDP([]byte("x"), nil, to); err == nil {
		t.Error("a closed socket sends")
	}
}

// Sockets of both families and of one that takes both, as seen by the standard library at the other end.
func TestAddresses(t *testing.T) {
	for _, c := range []struct{ at, peer string }{
		{"127.0.0.1:0", "127.0.0.1:0"},
		{"[::1]:0", "[::1]:0"},
		{"[::]:0", "127.0.0.1:0"},
		{"[::]:0", "[::1]:0"},
		{"0.0.0.0:0", "127.0.0.1:0"},
	} {
		t.Run(c.at+" "+c.peer, func(t *testing.T) {
			listen := func(at string) net.PacketConn {
				t.Helper()
				pc, err := net.ListenPacket("udp", at)
				if err != nil && at[0] == '[' {
					t.Skipf("%v: this host has IPv6 off; sysctl net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.lo.disable_ipv6=0", err)
				}
				if err != nil {
					t.Fatal(err)
				}
				return pc
			}
			pc := listen(c.at)
			s, err := New(pc, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			peer := listen(c.peer)
			defer func() { _ = peer.Close() }()
			deadline := time.Now().Add(5 * time.Second)
			_ = peer.SetDeadline(deadline)
			_ = pc.SetDeadline(deadline)
			ours := &net.UDPAddr{IP: peer.LocalAddr().(*net.UDPAddr).IP, Port: pc.LocalAddr().(*net.UDPAddr).Port}
			if _, err := peer.WriteTo([]byte("ping"), ours); err != nil {
				t.Fatal(err)
			}
			ms := batch()
			if n, err := s.conn.(*udpConn).ReadBatch(ms, 0); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			from := ms[0].Addr.(*net.UDPAddr)
			if want := peer.LocalAddr().(*net.UDPAddr); !from.IP.Equal(want.IP) || from.Port != want.Port || from.Zone != "" || string(ms[0].Buffers[0][:ms[0].N]) != "ping" {
				t.Errorf("%q from %v, not from %v", ms[0].Buffers[0][:ms[0].N], from, want)
			}
			if _, _, err := s.conn.(*udpConn).WriteMsgUDP([]byte("pong"), nil, from); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 10)
			n, back, err := peer.ReadFrom(b)
			if err != nil {
				t.Fatal(err)
			}
			if back := back.(*net.UDPAddr); string(b[:n]) != "pong" || !back.IP.Equal(ours.IP) || back.Port != ours.Port {
				t.Errorf("%q from %v, not from %v", b[:n], back, ours)
			}
		})
	}

	// What a socket can't reach is refused, and sent nowhere.
	_, c := udpSocket(t, nil)
	for _, to := range []*net.UDPAddr{{IP: net.IPv6loopback, Port: 9}, {IP: net.IP{1, 2, 3}, Port: 9}} {
		before := c.socket.Stats().SendFailures
		if _, _, err := c.WriteMsgUDP([]byte("x"), nil, to); err != nil || c.socket.Stats().SendFailures != before+1 {
			t.Errorf("to %v: %v, %d failures", to, err, c.socket.Stats().SendFailures-before)
		}
	}
	// A link-local address has its interface.
	name := unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: [16]byte{0xfe, 0x80, 15: 1}, Scope_id: 1}
	loopback, err := net.InterfaceByIndex(1) // as on every Linux
	if err != nil {
		t.Fatal(err)
	}
	if a := c.raw.address(&name); a.Zone != loopback.Name || !a.IP.IsLinkLocalUnicast() {
		t.Errorf("%v, not of %s", a, loopback.Name)
	}
	name.Scope_id = 1 << 30
	if a := c.raw.address(&name); a.Zone != "1073741824" {
		t.Errorf("%v", a)
	}
}

// Who waits for packets is woken by a deadline, as quic-go wakes it, and by the socket's end.
func TestReadersAreWoken(t *testing.T) {
	s, c := udpSocket(t, nil)
	_ = c.SetReadDeadline(time.Unix(1, 0))
	if n, err := c.ReadBatch(batch(), 0); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(n, err)
	}
	_ = c.SetReadDeadline(time.Time{})
	read := make(chan error)
	go func() {
		_, err := c.ReadBatch(batch(), 0)
		read <- err
	}()
	_ = s.Close()
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// fullConn is a UDP socket whose buffer is full at first, as loopback's never is: then it has the descriptor of a TCP connection that
// takes nothing more, and says EAGAIN.
type fullConn struct {
	syscall.RawConn
	full   syscall.RawConn
	waited bool
}

func (c *fullConn) Control(f func(fd uintptr)) error { return c.full.Control(f) }

func (c *fullConn) Write(f func(fd uintptr) bool) error {
	err := c.full.Control(func(fd uintptr) { c.waited = !f(fd) })
	if err != nil || !c.waited {
		return err
	}
	return c.RawConn.Write(f)
}

// Who sends waits where the socket's buffer is full, and nothing is lost.
func TestSendersWait(t *testing.T) {
	_, reader := udpSocket(t, nil)
	s, writer := udpSocket(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	full, err := net.Dial("tcp", l.Addr().String()) // nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	raw, err := full.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		for range 10_000 {
			if _, err = unix.Write(int(fd), make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	conn := &fullConn{RawConn: writer.raw.conn, full: raw}
	writer.raw.conn = conn
	if n, _, err := writer.WriteMsgUDP([]byte("late"), nil, reader.LocalAddr().(*net.UDPAddr)); n != 4 || err != nil {
		t.Error(n, err)
	}
	if packets, _ := readPackets(t, reader, 1); !conn.waited || string(packets[0]) != "late" || s.Stats().SendFailures != 0 {
		t.Errorf("%q, waited: %v, %d failures", packets, conn.waited, s.Stats().SendFailures)
	}
}

// A link's goroutine that sends keeps the 2 KiB of stack that it begins with: there are thousands at
// a relay. QUIC's own frames take 512 bytes of that.
//
// The test runs in a process of its own: Go gives new goroutines the average stack of those that it
// saw at the last collection, and other tests' goroutines count there.
func TestSendingNeedsLittleStack(t *testing.T) {
	if testutil.Raced || testing.CoverMode() != "" {
		t.Skip("frames are larger with the race detector and with coverage; make test runs this without, too")
	}
	const alone = "adaptivestackstart=0"
	if os.Getenv("GODEBUG") != alone {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSendingNeedsLittleStack$", "-test.count=1")
		cmd.Env = append(os.Environ(), "GODEBUG="+alone)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	_, reader := udpSocket(t, nil)
	_, writer := udpSocket(t, nil)
	addr := reader.LocalAddr().(*net.UDPAddr)
	oob := control(unix.IPPROTO_IP, unix.IP_TOS, 2)
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it shrinks stacks
	_, _, _ = writer.WriteMsgUDP([]byte("x"), oob, addr)
	stacks := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/stacks:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	const count = 2000
	before := stacks()
	var sent, all sync.WaitGroup
	stay := make(chan struct{})
	for range count {
		sent.Add(1)
		all.Go(func() {
			sendDeep(writer, oob, addr)
			sent.Done()
			<-stay
		})
	}
	sent.Wait()
	each := int64(stacks()-before) / count
	close(stay)
	all.Wait()
	if each > 3<<10 {
		t.Errorf("%d bytes of stack", each)
	}
}

//go:noinline
func sendDeep(c *udpConn, oob []byte, addr *net.UDPAddr) {
	var frame [512]byte
	frame[len(oob)] = 1
	_, _, _ = c.WriteMsgUDP([]byte("x"), oob, addr)
	runtime.KeepAlive(&frame)
}

// Parity of segmented sends, and what is restored, over real sockets: with the same mark, also where it comes coalesced.
func TestParityOverRealSockets(t *testing.T) {
	for _, gro := range []bool{true, false} {
		to, reader := readingSocket(t, gro)
		from, writer := udpSocket(t, nil)
		addr := reader.LocalAddr().(*net.UDPAddr)
		random := rand.New(rand.NewPCG(1, 1))

		// Parity of a stranger is dropped.
		maker := parity.NewMaker(new(atomic.Uint64), &from.paritySent)
		from.makers.put(AddrPort(addr), maker, 1)
		send := func(count, size int) (packets [][]byte) {
			var train []byte
			for range count {
				packets = append(packets, qpacket(random, size))
				train = append(train, packets[len(packets)-1]...)
			}
			oob := append(segments(uint16(size)), control(unix.IPPROTO_IP, unix.IP_TOS, 2)...)
			if _, _, err := writer.WriteMsgUDP(train, oob, addr); err != nil {
				t.Fatal(err)
			}
			return packets
		}
		send(1+groupSize, 1200)
		readPackets(t, reader, 1+groupSize)
		send(1, 1200)
		readPackets(t, reader, 1)
		if n := to.Stats().ParityStray; n != partsPerGroup {
			t.Errorf("gro=%v: %d datagrams of stray parity, want %d", gro, n, partsPerGroup)
		}

		// A loss: the maker hears of a packet that is not sent. That is the group of the last packet above.
		restored := new(atomic.Uint64)
		to.restorers.put(AddrPort(writer.LocalAddr()), parity.NewRestorer(restored, &to.restored), 1)
		send(7, 1200)
		readPackets(t, reader, 7)
		for range 10 {
			lost := qpacket(random, 1200)
			sent := send(3, 1200)
			maker.Protect(lost, len(lost), func([]byte) { t.Error("a group is full") })
			sent = append(sent, send(4, 1200)...)
			sent = append(sent, lost)
			got, marks := readPackets(t, reader, len(sent))
			for i := range sent {
				if !bytes.Equal(got[i], sent[i]) || marks[i] != 2 {
					t.Fatalf("gro=%v: packet %d has %d bytes, mark %d", gro, i, len(got[i]), marks[i])
				}
			}
		}
		for range keptPackets / 8 {
			send(8, 1200)
			readPackets(t, reader, 8)
		}
		if n := to.Stats().Restored; n != 10 || restored.Load() != n {
			t.Errorf("gro=%v: %d packets restored", gro, n)
		}
		if n := from.Stats().ParitySent; n != 2*(1+1+10+keptPackets/8) {
			t.Errorf("gro=%v: %d datagrams of parity sent", gro, n)
		}
	}
}

func TestSendingAllocatesNothing(t *testing.T) {
	to, reader := udpSocket(t, nil)
	from, writer := udpSocket(t, nil)
	addr := reader.LocalAddr().(*net.UDPAddr)
	random := rand.New(rand.NewPCG(1, 1))
	packet := qpacket(random, 1200)
	train := bytes.Repeat(packet, 4)
	oob := append(segments(1200), control(unix.IPPROTO_IP, unix.IP_TOS, 2)...)
	buf := make([]byte, parity.MaxPacket)
	run := func() {
		if _, _, err := writer.WriteMsgUDP(train, oob, addr); err != nil { // nobody reads it
			t.Fatal(err)
		}
		packet[len(packet)-1]++
		to.arrived(buf, copy(buf, packet), writer.LocalAddr())
	}
	if n := testing.AllocsPerRun(100, run); n > 0 && !testutil.Raced {
		t.Errorf("%v allocations without parity", n)
	}

	maker := parity.NewMaker(new(atomic.Uint64), &from.paritySent)
	from.makers.put(AddrPort(addr), maker, 1)
	r := parity.NewRestorer(new(atomic.Uint64), &to.restored)
	to.restorers.put(AddrPort(writer.LocalAddr()), r, 1)
	run()
	if n := testing.AllocsPerRun(100, run); n > 0 && !testutil.Raced || from.Stats().ParitySent < 100 {
		t.Errorf("%v allocations with %d datagrams of parity", n, from.Stats().ParitySent)
	}
}
