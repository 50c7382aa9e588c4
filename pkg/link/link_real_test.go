package link_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// loopback returns both ends of a link over real sockets, and the relay's socket.
func loopback(tb testing.TB) (dialled, accepted *link.Link, socket *carrier.Socket) {
	tb.Helper()
	relayKey, err := ident.Generate()
	if err != nil {
		tb.Fatal(err)
	}
	key, err := ident.Generate()
	if err != nil {
		tb.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	socket, err = carrier.New(pc, nil)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var runs sync.WaitGroup
	tb.Cleanup(func() {
		cancel()
		runs.Wait()
		_ = socket.Close()
	})
	d, a := make(chan *link.Link, 1), make(chan *link.Link, 1)
	hold := func(to chan *link.Link) func(context.Context, *link.Link) {
		return func(ctx context.Context, l *link.Link) { to <- l; <-ctx.Done() }
	}
	listener := &link.Listener{
		Socket: socket, Identity: relayKey, Serve: hold(a),
		Admit: func(ident.PublicKey) (string, error) { return "client", nil },
	}
	dialer := &link.Dialer{Address: socket.LocalAddr().String(), Keys: []ident.PublicKey{relayKey.Public()}, Identity: key, Serve: hold(d)}
	runs.Go(func() { _ = listener.Run(ctx) })
	runs.Go(func() { _ = dialer.Run(ctx) })
	select {
	case dialled = <-d:
	case <-time.After(10 * time.Second):
		tb.Fatal("no link over loopback: ", dialer.State().LastError)
	}
	return dialled, <-a, socket
}

func TestBulkOverRealSockets(t *testing.T) {
	dialled, accepted, socket := loopback(t)
	const size = 16 << 20
	data := make([]byte, size)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(data)
	want := sha256.Sum256(data)

	s, err := dialled.Open(tip)
	if err != nil {
		t.Fatal(err)
	}
	var up sync.WaitGroup
	up.Go(func() {
		if _, err := s.Write(data); err != nil {
			t.Error(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
	})
	peer, _, err := accepted.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var received bytes.Buffer
	if _, err := io.Copy(&received, peer); err != nil || sha256.Sum256(received.Bytes()) != want {
		t.Errorf("%d bytes arrived, %v", received.Len(), err)
	}
	up.Wait()
	peer.Reset(wire.CodeLost)

	stats, linkStats := socket.Stats(), dialled.Stats()
	t.Logf("socket %+v, link %+v", stats, linkStats)
	if stats.Received < size/1500 {
		t.Errorf("the socket counts %d packets for %d bytes", stats.Received, size)
	}
	if runtime.GOOS == "linux" && stats.GRO && linkStats.GSO && stats.Reads*3 > stats.Received {
		t.Errorf("%d packets came in %d reads: GRO is not at work", stats.Received, stats.Reads)
	}
}

// echo serves a link's streams by sending back what comes.
func echo(l *link.Link) {
	for {
		s, _, err := l.Accept(context.Background())
		if err != nil {
			return
		}
		go func() {
			_, _ = io.Copy(s, s)
			_ = s.CloseWrite()
			s.CancelRead(wire.CodeLost)
		}()
	}
}

func BenchmarkStreamEcho(b *testing.B) {
	dialled, accepted, _ := loopback(b)
	go echo(accepted)
	s, err := dialled.Open(tip)
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, p); err != nil {
			b.Fatal(err)
		}
	}
	s.Reset(wire.CodeLost)
}

func BenchmarkStreamBulk(b *testing.B) {
	dialled, accepted, _ := loopback(b)
	s, err := dialled.Open(tip)
	if err != nil {
		b.Fatal(err)
	}
	peer, _, err := accepted.Accept(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 128<<10)
	var reader sync.WaitGroup
	reader.Go(func() { _, _ = io.CopyBuffer(struct{ io.Writer }{io.Discard}, peer, make([]byte, 128<<10)) })
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.CloseWrite()
	reader.Wait()
	peer.Reset(wire.CodeLost)
}

func BenchmarkStreamOpen(b *testing.B) {
	dialled, accepted, _ := loopback(b)
	go echo(accepted)
	p := make([]byte, 1)
	head := append(append([]byte(nil), tip...), 'x')
	b.ReportAllocs()
	for b.Loop() {
		s, err := dialled.Open(head)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s, p); err != nil {
			b.Fatal(err)
		}
		_ = s.CloseWrite()
		if _, err := io.ReadAll(s); err != nil {
			b.Fatal(err)
		}
	}
}
