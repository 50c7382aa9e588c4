package link_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/wire"
)

// raw dials the relay without a Dialer, as a stranger or a broken implementation does.
func (w *world) raw(host string, config *tls.Config) (*quic.Conn, error) {
	w.Helper()
	pc, err := w.network.ListenPacket(host)(w.Context())
	if err != nil {
		w.Fatal(err)
	}
	transport := &quic.Transport{Conn: pc}
	w.Cleanup(func() { _, _ = transport.Close(), pc.Close() })
	ctx, cancel := context.WithTimeout(w.Context(), 5*sec)
	defer cancel()
	return transport.Dial(ctx, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(linktest.RelayAddress)), config, &quic.Config{MaxIdleTimeout: 20 * sec})
}

func (w *world) tls(key ident.PrivateKey) *tls.Config {
	w.Helper()
	config, err := ident.DialTLS(key, w.relayKey.Public())
	if err != nil {
		w.Fatal(err)
	}
	return config
}

// end is why a connection ended, once it has.
func end(conn *quic.Conn, err error) error {
	if err != nil {
		return err
	}
	<-conn.Context().Done()
	return context.Cause(conn.Context())
}

func TestNodesThatKnock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		log := &lines{}
		w.start(func(l *link.Listener) { l.Logger = slog.New(log) })
		began := time.Now()
		first, second := linktest.Key(t), linktest.Key(t)
		for i := range 100 {
			_ = end(w.raw("10.0.0.2", w.tls(first)))
			if i == 50 {
				_ = end(w.raw("10.0.0.3", w.tls(second)))
			}
			time.Sleep(sec)
		}
		list, total := w.listener.Links.Strangers(), w.listener.Links.StrangerTries()
		if len(list) != 2 || total != 101 || list[0].Key != first.Public() || list[0].Tries != 100 || list[0].Since.Sub(began) > sec ||
			time.Since(list[0].Last) > 2*sec || list[1].Key != second.Public() || !strings.HasPrefix(list[1].Address, "10.0.0.3:") {
			t.Errorf("%+v, %d", list, total)
		}
		for _, key := range []ident.PrivateKey{first, second} { // one line for each key
			if n := strings.Count(log.String(), key.Public().String()); n != 1 {
				t.Errorf("%d lines in 100 s:\n%s", n, log)
			}
		}
		w.peers.Store(&linktest.Peers{first.Public(): "new"})
		if conn, err := w.raw("10.0.0.2", w.tls(first)); err != nil {
			t.Error(err)
		} else {
			time.Sleep(sec)
			_ = conn.CloseWithError(0, "")
		}
		if list := w.listener.Links.Strangers(); len(list) != 1 {
			t.Errorf("a peer knocks: %+v", list)
		}
		time.Sleep(time.Hour)
		if list := w.listener.Links.Strangers(); len(list) != 0 {
			t.Errorf("nobody knocks any more: %+v", list)
		}
	})
}

// A stranger that makes keys without end fills neither the relay's memory nor its log, and doesn't
// push out what the relay knows of other sources.
func TestNodesThatKnockAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		log := &lines{}
		w.start(func(l *link.Listener) { l.Logger = slog.New(log) })
		honest := linktest.Key(t)
		_ = end(w.raw("10.0.0.2", w.tls(honest)))
		for range 300 {
			_ = end(w.raw("10.0.0.3", w.tls(linktest.Key(t))))
			time.Sleep(100 * ms)
		}
		list, total := w.listener.Links.Strangers(), w.listener.Links.StrangerTries()
		if len(list) != 65 || total != 301 || list[0].Key != honest.Public() {
			t.Errorf("%d keys of %d", len(list), total)
		}
		for i := range 300 {
			_ = end(w.raw(fmt.Sprintf("10.0.1.%d", 1+i%200), w.tls(linktest.Key(t))))
			time.Sleep(100 * ms)
		}
		if list := w.listener.Links.Strangers(); len(list) != 256 {
			t.Errorf("%d keys", len(list))
		}
		if n := strings.Count(log.String(), "knocking"); n < 100 || n > 110 {
			t.Errorf("%d lines", n)
		}
		if !strings.Contains(log.String(), "left_out=") {
			t.Error("nobody tells what was left out")
		}
	})
}

// A relay's second socket doesn't reveal the tokens that reset links of the first.
func TestEachSocketHasItsOwnResetKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		serve := func(ctx context.Context, _ *link.Link) { <-ctx.Done() }
		second := w.network.Listener("192.0.2.7:30380", w.relayKey, *w.peers.Load(), serve)
		second.Links = w.listener.Links
		w.network.Run(second.Run)
		time.Sleep(sec)
		packet := make([]byte, 100) // of a connection that is nowhere, but could be at either
		packet[0] = 0x40
		token := func(address string) [16]byte {
			pc, err := w.network.ListenPacket("10.0.0.2")(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer pc.Close()
			if _, err := pc.WriteTo(packet, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address))); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 1500)
			_ = pc.SetReadDeadline(time.Now().Add(sec))
			n, _, err := pc.ReadFrom(answer)
			if err != nil || n < 21 {
				t.Fatalf("no stateless reset: %d bytes, %v", n, err)
			}
			return [16]byte(answer[n-16 : n])
		}
		first := token(linktest.RelayAddress)
		if first == token("192.0.2.7:30380") {
			t.Error("both sockets have the same reset tokens")
		}
		w.stop()
		w.start()
		time.Sleep(sec)
		if first != token(linktest.RelayAddress) {
			t.Error("a restarted relay has other reset tokens")
		}
	})
}

func TestResumedHandshakesAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		config := w.tls(w.key)
		for resumed := range 2 {
			conn, err := w.raw("10.0.0.2", config)
			if err != nil {
				t.Fatal(err)
			}
			if got := conn.ConnectionState().TLS.DidResume; got != (resumed == 1) {
				t.Errorf("handshake %d is resumed: %v", resumed, got)
			}
			s, err := conn.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = s.Write(wire.Append(nil, &wire.Control{}))
			if l := <-w.accepted; l.Peer() != "client" || l.Key() != w.key.Public() {
				t.Error(l.Peer(), l.Key())
			}
			time.Sleep(sec) // for the ticket to come
			_ = conn.CloseWithError(0, "")
		}
		w.peers.Store(&linktest.Peers{})
		if e, ok := errors.AsType[*quic.ApplicationError](end(w.raw("10.0.0.2", config))); !ok || wire.CloseCode(e.ErrorCode) != wire.CloseRevoked {
			t.Error("a removed key resumes:", e)
		}
	})
}

func TestNewestWinsOverSeveralSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		shared := &link.Links{}
		w.start(func(l *link.Listener) { l.Links = shared })
		first := w.listener
		second := w.network.Listener("192.0.2.7:30380", w.relayKey, *w.peers.Load(), first.Serve)
		second.Links = shared
		w.network.Run(second.Run)

		w.dial()
		w.took(40*ms, 40*ms)
		a := <-w.accepted
		elsewhere := w.newDialer("10.0.0.9", make(chan *link.Link, 1))
		elsewhere.Address = "192.0.2.7:30380"
		w.network.Run(elsewhere.Run)
		b := <-w.accepted
		<-a.Done()
		if closed, ok := errors.AsType[*link.ClosedError](a.Err()); !ok || closed.Code != wire.CloseSuperseded {
			t.Error(a.Err())
		}
		time.Sleep(sec)
		w.peers.Store(&linktest.Peers{})
		if n := first.Recheck(); n != 0 || b.Err() != nil {
			t.Errorf("a Listener closed %d links of another", n)
		}
		w.stop()
		if b.Err() != nil {
			t.Error("a Listener that stops takes another's link with it:", b.Err())
		}
	})
}

func TestOtherProtocolVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		// A relay of the future.
		config, err := ident.ListenTLS(w.relayKey)
		if err != nil {
			t.Fatal(err)
		}
		config.NextProtos = []string{"ptthq/2"}
		pc := w.network.Listen(linktest.RelayAddress)
		transport := &quic.Transport{Conn: pc}
		listener, err := transport.Listen(config, nil)
		if err != nil {
			t.Fatal(err)
		}
		w.dial()
		time.Sleep(sec)
		if s := w.dialer.State(); !strings.Contains(s.LastError, "another version of the protocol") {
			t.Errorf("state %+v", s)
		}
		_, _, _ = listener.Close(), transport.Close(), pc.Close()
	})
}

func TestConnectionsWithoutControlStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		wantEnd := func(what string, err error) {
			t.Helper()
			e, ok := errors.AsType[*quic.ApplicationError](err)
			if !ok || wire.CloseCode(e.ErrorCode) != wire.CloseProtocol || !e.Remote {
				t.Errorf("%s: %v", what, err)
			}
		}
		conn, err := w.raw("10.0.0.2", w.tls(w.key))
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		wantEnd("silent", end(conn, nil))
		if d := time.Since(start); d < 5*sec || d > 5100*ms {
			t.Errorf("a silent connection lived %v", d)
		}

		for what, first := range map[string][]byte{
			"another tip first": tip,
			"malformed":         {63, 63, 63},
			"half a tip":        {5},
		} {
			conn, err := w.raw("10.0.0.2", w.tls(w.key))
			if err != nil {
				t.Fatal(err)
			}
			s, err := conn.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = s.Write(first)
			wantEnd(what, end(conn, nil))
		}

		// Nine at once are one too many for the limit of eight.
		var conns []*quic.Conn
		for range 9 {
			conn, err := w.raw("10.0.0.2", w.tls(w.key))
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, conn)
		}
		time.Sleep(sec)
		open := 0
		for _, conn := range conns {
			if conn.Context().Err() == nil {
				open++
			}
		}
		if open != 8 {
			t.Errorf("%d connections are open", open)
		}
		// None of them became a link, so there is room for the real one.
		w.dial()
		time.Sleep(6 * sec)
		w.took(0, sec)
	})
}

// control opens a connection with a control stream.
func (w *world) control() (*quic.Conn, *quic.Stream) {
	w.Helper()
	conn, err := w.raw("10.0.0.2", w.tls(w.key))
	if err != nil {
		w.Fatal(err)
	}
	s, err := conn.OpenStream()
	if err != nil {
		w.Fatal(err)
	}
	if _, err := s.Write(wire.Append(nil, &wire.Control{})); err != nil {
		w.Fatal(err)
	}
	return conn, s
}

func TestControlStreamOfOthers(t *testing.T) {
	for _, c := range []struct {
		name string
		send func(s *quic.Stream)
		ok   bool
	}{
		{"an unknown link message is skipped", func(s *quic.Stream) { _, _ = s.Write([]byte{40, 3, 1, 1, 1}) }, true},
		{"a heartbeat that echoes what was never sent", func(s *quic.Stream) {
			_, _ = s.Write(wire.Append(nil, &wire.Heartbeat{Seq: 1 << 60, Echo: 1 << 61}))
		}, true},
		{"a tip", func(s *quic.Stream) { _, _ = s.Write(tip) }, false},
		{"a malformed message", func(s *quic.Stream) { _, _ = s.Write([]byte{16, 2, 1, 63}) }, false},
		{"an end", func(s *quic.Stream) { _ = s.Close() }, false},
		{"a reset", func(s *quic.Stream) { s.CancelWrite(1) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.start()
				conn, s := w.control()
				l := <-w.accepted
				c.send(s)
				time.Sleep(sec)
				closed, _ := errors.AsType[*link.ClosedError](l.Err())
				if c.ok && l.Err() != nil || !c.ok && (closed == nil || closed.Code != wire.CloseProtocol || closed.Remote) {
					t.Errorf("the link ended with %v", l.Err())
				}
				_ = conn.CloseWithError(0, "")
			})
		})
	}
}

func TestFloodOfHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		conn, s := w.control()
		l := <-w.accepted
		before := l.Stats().PacketsSent
		for n := range uint64(2_000) {
			if _, err := s.Write(wire.Append(nil, &wire.Heartbeat{Seq: n + 1})); err != nil {
				t.Fatal(err)
			}
			time.Sleep(ms)
		}
		answers := 0
		_ = s.SetReadDeadline(time.Now().Add(sec))
		for {
			if _, err := wire.Read(s); err != nil {
				break
			}
			answers++
		}
		if answers < 18 || answers > 35 { // those that wait are read afterwards
			t.Errorf("%d answers to 2,000 heartbeats in 2 s (%d packets)", answers, l.Stats().PacketsSent-before)
		}
		_ = conn.CloseWithError(0, "")
	})
}

func TestRetryOnlyUnderPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.network.Limits = link.Limits{HandshakesPerSecond: 5}
		w.start()
		var retries atomic.Int64
		w.network.Drop(func(p linktest.Packet) bool {
			if p.Data[0]&0xf0 == 0xf0 { // a long header of type Retry, RFC 9000, section 17.2.5
				retries.Add(1)
			}
			return false
		})
		dial := func(n int) {
			t.Helper()
			for range n {
				conn, err := w.raw("10.0.0.2", w.tls(w.key))
				if err != nil {
					t.Fatal(err)
				}
				_ = conn.CloseWithError(0, "")
			}
		}
		for range 10 {
			dial(1)
			time.Sleep(sec)
		}
		if n := retries.Load(); n != 0 {
			t.Errorf("%d Retry packets at one handshake a second", n)
		}
		dial(50)
		if n := retries.Load(); n < 20 {
			t.Errorf("%d Retry packets for 50 handshakes at once", n)
		}
	})
}

func TestRunEndsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start()
		stop := w.dial()
		dialled, accepted := w.took(40*ms, 40*ms), <-w.accepted
		stop()
		if dialled.Err() == nil || w.dialer.State().Link != nil {
			t.Error("the dialer has gone, its link has not")
		}
		time.Sleep(100 * ms)
		if closed, ok := errors.AsType[*link.ClosedError](accepted.Err()); !ok || closed.Code != wire.CloseClosing || !closed.Remote {
			t.Error(accepted.Err())
		}
		w.stop()

		if err := (&link.Dialer{Address: "relay:99999", Identity: w.key}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "99999") {
			t.Error(err)
		}
		if err := (&link.Dialer{Address: "relay"}).Run(t.Context()); err == nil {
			t.Error("a Dialer without a key runs")
		}
	})
}
