//go:build linux

package sim

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/client"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/server"
	"ptthqd/pkg/splice"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// A loopback is a whole chain in this process, over real sockets: what the profiles of a benchmark show in one picture.
type loopback struct {
	b      *testing.B
	keys   map[string]ident.PrivateKey
	relay  string // its address
	target string
}

// newLoopback starts a relay, and a P5 that either discards what it gets or returns it, as each connection's first byte says.
func newLoopback(b *testing.B) *loopback {
	b.Helper()
	l := &loopback{b: b, keys: make(map[string]ident.PrivateKey)}
	for _, node := range []string{relayHost, laptop, nas} {
		key, err := ident.Generate()
		if err != nil {
			b.Fatal(err)
		}
		l.keys[node] = key
	}
	rule, err := policy.ParseRule(nas)
	if err != nil {
		b.Fatal(err)
	}
	rules, err := policy.NewRelay([]policy.Peer{
		{ID: laptop, Role: policy.RoleClient, Keys: []ident.PublicKey{l.keys[laptop].Public()}, Allowed: []policy.Rule{rule}},
		{ID: nas, Role: policy.RoleServer, Keys: []ident.PublicKey{l.keys[nas].Public()}},
	})
	if err != nil {
		b.Fatal(err)
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	socket, err := carrier.New(udp, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = socket.Close() })
	l.relay = socket.LocalAddr().String()
	r := relay.New(relay.Config{Policy: rules, Logger: slog.New(slog.DiscardHandler)})
	l.run((&link.Listener{Socket: socket, Identity: l.keys[relayHost], Admit: r.Admit, Serve: r.Serve}).Run)

	l.target = testutil.Listening(b, "tcp", "127.0.0.1:0", serveBench).Addr().String()
	return l
}

const (
	benchEcho = 'e'
	benchSink = 's' // answers the end with a byte
)

func serveBench(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	what := make([]byte, 1)
	if _, err := io.ReadFull(conn, what); err != nil {
		return
	}
	buf := make([]byte, 64)
	if what[0] == benchSink {
		buf = make([]byte, 64<<10)
	}
	for {
		n, err := conn.Read(buf)
		if what[0] == benchEcho && n > 0 {
			_, _ = conn.Write(buf[:n])
		}
		if err != nil {
			_, _ = conn.Write(what)
			return
		}
	}
}

func (l *loopback) listen() net.Listener {
	l.b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.b.Fatal(err)
	}
	return listener
}

// run runs a node until the benchmark ends.
func (l *loopback) run(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	var node sync.WaitGroup
	node.Go(func() { _ = run(ctx) })
	l.b.Cleanup(func() {
		cancel()
		node.Wait()
	})
}

// ends starts the client and the server that everyone uses, and returns where P1 connects.
func (l *loopback) ends() string {
	l.b.Helper()
	target, err := policy.ParseTarget(l.target)
	if err != nil {
		l.b.Fatal(err)
	}
	service, err := policy.ParseServiceTarget(l.target)
	if err != nil {
		l.b.Fatal(err)
	}
	everyone, err := policy.ParsePattern("*")
	if err != nil {
		l.b.Fatal(err)
	}
	common := config.Config{
		Limits: config.DefaultLimits(), Relays: []config.Relay{{Address: l.relay, Keys: []ident.PublicKey{l.keys[relayHost].Public()}}},
		ResumeTimeout: config.DefaultResumeTimeout, DrainTimeout: time.Millisecond,
	}
	atServer, atClient := common, common
	atServer.Role, atServer.ID = config.RoleServer, nas
	atServer.Services = []policy.Service{{Target: service, Clients: []policy.Pattern{everyone}}}
	atClient.Role, atClient.ID = config.RoleClient, laptop
	atClient.Mappings = []config.Mapping{{
		Name: "bench", Listen: config.Listen{Kind: config.Systemd, Addr: "bench"}, Server: nas, Target: target, Enabled: true,
		OnRemove: config.OnRemoveKeep, ResumeTimeout: config.DefaultResumeTimeout,
	}}
	s, err := server.New(server.Config{Settings: &atServer, Identity: l.keys[nas]})
	if err != nil {
		l.b.Fatal(err)
	}
	l.run(s.Run)
	p1 := l.listen()
	c, err := client.New(client.Config{
		Settings: &atClient, Identity: l.keys[laptop],
		Inherit: func(string) []net.Listener { return []net.Listener{p1} },
	})
	if err != nil {
		l.b.Fatal(err)
	}
	l.run(c.Run)
	return l.awaitEcho(p1.Addr().String())
}

// bareEnds starts ends that put TCP's bytes on the streams as they are, by the means of pkg/splice: what a session costs is
// what it takes more than they do.
func (l *loopback) bareEnds() string {
	l.b.Helper()
	log := slog.New(slog.DiscardHandler)
	atServer := &link.Dialer{Address: l.relay, Keys: []ident.PublicKey{l.keys[relayHost].Public()}, Identity: l.keys[nas], Logger: log}
	atServer.Serve = func(ctx context.Context, link *link.Link) {
		var joins sync.WaitGroup
		defer joins.Wait()
		for {
			stream, _, err := link.Accept(ctx)
			if err != nil {
				return
			}
			joins.Go(func() {
				conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.target)
				if err != nil {
					stream.Reset(wire.CodeLost)
					return
				}
				new(splice.Join).Run(ctx, stream, newBareTCP(conn))
			})
		}
	}
	l.run(atServer.Run)

	p1 := l.listen()
	atClient := &link.Dialer{Address: l.relay, Keys: []ident.PublicKey{l.keys[relayHost].Public()}, Identity: l.keys[laptop], Logger: log}
	atClient.Serve = func(ctx context.Context, link *link.Link) {
		var joins sync.WaitGroup
		defer joins.Wait()
		defer context.AfterFunc(ctx, func() { _ = p1.Close() })()
		for i := uint64(0); ; i++ {
			conn, err := p1.Accept()
			if err != nil {
				return
			}
			open := &wire.Open{Version: wire.Version, Token: wire.Token{0: byte(i), 1: byte(i >> 8)}, Attempt: 1, Source: "127.0.0.1:1", Target: l.target, Limit: 1}
			joins.Go(func() {
				stream, err := link.Open(wire.Append(nil, &wire.Connect{Server: nas, Inner: wire.Append(nil, open)}))
				if err != nil {
					_ = conn.Close()
					return
				}
				new(splice.Join).Run(ctx, newBareTCP(conn), stream)
			})
		}
	}
	l.run(atClient.Run)
	return l.awaitEcho(p1.Addr().String())
}

// bareTCP is a TCP connection as pkg/splice wants it. It is closed when both directions have ended.
type bareTCP struct {
	*net.TCPConn
	raw    syscall.RawConn
	ctx    context.Context
	halves atomic.Int32
}

func newBareTCP(conn net.Conn) *bareTCP {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		panic(err)
	}
	t := &bareTCP{TCPConn: conn.(*net.TCPConn), raw: raw, ctx: context.Background()}
	t.halves.Store(2)
	return t
}

func (t *bareTCP) Peek(p []byte) (n int, err error) {
	waited := t.raw.Read(func(fd uintptr) bool {
		n, _, err = syscall.Recvfrom(int(fd), p, syscall.MSG_PEEK)
		return err != syscall.EAGAIN //nolint:errorlint // a system call's own
	})
	switch {
	case waited != nil:
		return 0, waited
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return n, err
}

func (t *bareTCP) Read(p []byte) (int, error) {
	n, err := t.TCPConn.Read(p)
	if err != nil {
		t.half()
	}
	return n, err
}

func (t *bareTCP) CloseWrite() error {
	err := t.TCPConn.CloseWrite()
	t.half()
	return err
}

// End writes the last bytes and closes.
func (t *bareTCP) Finish(p []byte) error {
	if _, err := t.TCPConn.Write(p); err != nil {
		return err
	}
	return t.CloseWrite()
}

func (t *bareTCP) half() {
	if t.halves.Add(-1) == 0 {
		_ = t.Close()
	}
}

func (t *bareTCP) Context() context.Context    { return t.ctx }
func (t *bareTCP) CancelRead(wire.StreamCode)  { _ = t.Close() }
func (t *bareTCP) CancelWrite(wire.StreamCode) { _ = t.Close() }
func (t *bareTCP) Reset(wire.StreamCode)       { _ = t.Close() }

func (t *bareTCP) TryWrite([]byte) (bool, error) { panic("a join does not call it") }
func (t *bareTCP) WriteLater([]byte)             { panic("a join does not call it") }

// awaitEcho waits until the chain carries, and returns its address.
func (l *loopback) awaitEcho(address string) string {
	l.b.Helper()
	for patience := time.Now().Add(20 * time.Second); ; {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
			_, _ = conn.Write([]byte{benchEcho, 1})
			_, err = io.ReadFull(conn, make([]byte, 1))
			_ = conn.Close()
		}
		if err == nil {
			return address
		}
		if time.Now().After(patience) {
			l.b.Fatalf("the chain does not carry: %v", err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (l *loopback) dial(address string, what byte) *net.TCPConn {
	l.b.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		l.b.Fatal(err)
	}
	if _, err := conn.Write([]byte{what}); err != nil {
		l.b.Fatal(err)
	}
	return conn.(*net.TCPConn)
}

// BenchmarkChain is what a byte, a message and a connection cost from P1 to P5 and back, in one process, which also is
// P1 and P5. bench measures the same with real processes.
func BenchmarkChain(b *testing.B) {
	b.Run("up", func(b *testing.B) {
		l := newLoopback(b)
		address := l.ends()
		block := make([]byte, 64<<10)
		b.SetBytes(int64(len(block)))
		b.ReportAllocs()
		conn := l.dial(address, benchSink)
		for b.Loop() {
			if _, err := conn.Write(block); err != nil {
				b.Fatal(err)
			}
		}
		l.finish(conn)
	})
	b.Run("echo", func(b *testing.B) {
		l := newLoopback(b)
		conn := l.dial(l.ends(), benchEcho)
		message := make([]byte, 64)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := conn.Write(message); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(conn, message); err != nil {
				b.Fatal(err)
			}
		}
		l.finish(conn)
	})
	for _, atOnce := range []int{1, 16} {
		b.Run(fmt.Sprintf("open-%d", atOnce), func(b *testing.B) {
			l := newLoopback(b)
			address := l.ends()
			b.SetParallelism(atOnce)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					conn, err := net.Dial("tcp", address)
					if err != nil {
						b.Error(err)
						return
					}
					if _, err = conn.Write([]byte{benchEcho, 1}); err == nil {
						_, err = io.ReadFull(conn, make([]byte, 1))
					}
					_ = conn.Close()
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// finish ends a connection and waits until P5 has got everything.
func (l *loopback) finish(conn *net.TCPConn) {
	l.b.Helper()
	defer func() { _ = conn.Close() }()
	if err := conn.CloseWrite(); err != nil {
		l.b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		l.b.Fatal(err)
	}
}

// BenchmarkFrames is what the session layer adds to a byte: processor time per GiB with it and without, in turns, as the
// medians of all turns and of their ratios. Processor time is this whole process's, P1's and P5's included.
func BenchmarkFrames(b *testing.B) {
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("%d", streams), func(b *testing.B) {
			with := newLoopback(b)
			without := newLoopback(b)
			chains := []func() float64{
				measureCPU(with, with.ends(), streams),
				measureCPU(without, without.bareEnds(), streams),
			}
			var costs [2][]float64
			var ratios []float64
			for i := 0; b.Loop(); i++ {
				for j := range 2 { // each is the first in every second turn
					j ^= i & 1
					costs[j] = append(costs[j], chains[j]())
				}
				ratios = append(ratios, costs[0][i]/costs[1][i])
			}
			b.ReportMetric(medianOf(costs[0]), "session-s/GiB")
			b.ReportMetric(medianOf(costs[1]), "splice-s/GiB")
			b.ReportMetric(medianOf(ratios), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkIdle is the memory that an idle connection takes of client, relay and server together: the heap and the stacks that
// it adds, less what the same connection takes of P1 and P5 where there is no chain. What real processes take is more, by what
// the garbage collector leaves unused; bench measures that.
func BenchmarkIdle(b *testing.B) {
	const count = 500
	l := newLoopback(b)
	address := l.ends()
	var heap, stack float64
	for b.Loop() {
		directHeap, directStack := l.hold(l.target, count)
		chainHeap, chainStack := l.hold(address, count)
		heap, stack = chainHeap-directHeap, chainStack-directStack
	}
	b.ReportMetric(heap/count/1024, "heap-KiB/connection")
	b.ReportMetric(stack/count/1024, "stack-KiB/connection")
	b.ReportMetric(0, "ns/op")
}

// hold opens connections, and tells what they have added to heap and stacks, in bytes.
func (l *loopback) hold(address string, count int) (heap, stack float64) {
	l.b.Helper()
	before := memory()
	conns := make([]*net.TCPConn, count)
	message := make([]byte, 1)
	for i := range conns {
		conns[i] = l.dial(address, benchEcho)
		if _, err := conns[i].Write(message); err != nil {
			l.b.Fatal(err)
		}
		if _, err := io.ReadFull(conns[i], message); err != nil {
			l.b.Fatal(err)
		}
	}
	<-time.After(300 * time.Millisecond) // acknowledgements included
	after := memory()
	for _, conn := range conns {
		_ = conn.Close()
	}
	<-time.After(300 * time.Millisecond)
	return float64(after.HeapAlloc) - float64(before.HeapAlloc), float64(after.StackInuse) - float64(before.StackInuse)
}

// memory is what is in use when everything that can be freed is.
func memory() (m runtime.MemStats) {
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m
}

// measureCPU moves 64 MiB over streams at once, and tells the processor time per GiB.
func measureCPU(l *loopback, address string, streams int) func() float64 {
	const amount = 64 << 20
	block := make([]byte, 64<<10)
	return func() float64 {
		before := cpuTime()
		var all sync.WaitGroup
		for range streams {
			conn := l.dial(address, benchSink)
			all.Go(func() {
				for range amount / len(block) / streams {
					if _, err := conn.Write(block); err != nil {
						l.b.Error(err)
						return
					}
				}
				_ = conn.CloseWrite()
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			})
		}
		all.Wait()
		return (cpuTime() - before).Seconds() * (1 << 30) / amount
	}
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func medianOf(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
