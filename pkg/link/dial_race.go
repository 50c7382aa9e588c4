package link

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"

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

var (
	errNoAnswer = errors.New("no answer")
	errTooSlow  = errors.New("answered, but not in time")
	errKicked   = errors.New("a new dial is due")

	errOnlySmall = errors.New("answered small packets alone")
)

// dial makes one attempt, from a socket of its own: a NAT or a firewall that is stuck with the last one's port does no harm.
// It takes at most patience to get any answer, and then as long as the answer's completion may take.
func (d *Dialer) dial(ctx context.Context, old *Link, patience time.Duration) (_ *Link, err error) {
	addresses, err := d.addresses(ctx)
	if err != nil {
		return nil, err
	}
	pc, err := d.ListenPacket(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %w", err)
	}
	socket, err := carrier.New(pc, d.log)
	if err != nil {
		return nil, err
	}
	d.tally.opened(socket)
	transport := &quic.Transport{Conn: socket.PacketConn(), ConnectionIDLength: connectionIDLength}
	limits := d.limits.Load()
	grants := newGrants(limits.Windows)
	config := limits.quicConfig(grants)
	config.Tracer = qlogs(d.log)
	config.HandshakeIdleTimeout = 2 * dialAnswered // the times below decide
	config.TokenStore = d.tokens
	release := func() {
		_ = transport.Close()
		d.tally.closed(socket)
		_ = socket.Close()
		grants.releaseAll()
	}
	defer func() {
		if err != nil {
			release()
		}
	}()

	ctx, stop := withPatience(ctx, &d.clock, patience, socket, func() { knockAt(transport, addresses) })
	defer stop()
	conn, err := race(ctx, addresses, func(ctx context.Context, to netip.AddrPort) (*quic.Conn, error) {
		return transport.Dial(ctx, net.UDPAddrFromAddrPort(to), d.tls.Load(), config)
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseClosing), "gave up")
		}
	}()
	key, err := ident.PeerKey(conn.ConnectionState().TLS)
	if err != nil {
		return nil, err
	}
	control, err := conn.OpenStream()
	if err != nil {
		return nil, err
	}
	if old != nil {
		old.replaced.Store(true) // before the relay can hear of the new one
	}
	if _, err := control.Write(wire.Append(nil, &wire.Control{Instance: d.Instance})); err != nil {
		return nil, err
	}
	link := newLink(conn, &d.clock, d.Address, key, limits, d.log)
	link.hits = &d.hits
	link.dialled, link.socket = true, socket
	link.heard = &heard{release: release, revoked: d.OnRevoked, contested: d.rivalCame, welcome: d.OnWelcome, confirmed: make(chan struct{}), closing: make(chan struct{})}
	link.start(control)
	// The handshake is over for the dialler before the relay has looked at its key. Only the relay's first heartbeat says that
	// it has been let in.
	select {
	case <-link.heard.confirmed:
		d.tally.linked(link)
		return link, nil
	case <-conn.Context().Done():
		link.wait()
		return nil, context.Cause(conn.Context())
	case <-ctx.Done():
		link.Close(wire.CloseClosing, "gave up")
		link.wait()
		return nil, context.Cause(ctx)
	}
}

// withPatience ends a handshake over socket, with the reason as the context's cause, that has had no answer within
// patience, or has not come to its end after one. Half of that time without any answer, it calls knock.
func withPatience(ctx context.Context, clock *awake.Clock, patience time.Duration, socket *carrier.Socket, knock func()) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	silent := func() bool { return socket.Received() == 0 }
	var knocked atomic.Bool
	timers := []*awake.Timer{
		clock.AfterFunc(patience/2, func() {
			if silent() {
				knocked.Store(true)
				knock()
			}
		}),
		clock.AfterFunc(patience, func() {
			if silent() {
				cancel(cmp.Or(socket.SendError(), errNoAnswer))
			}
		}),
		clock.AfterFunc(max(patience, dialAnswered), func() {
			switch {
			case silent():
			case knocked.Load() && socket.Received() <= maxAddresses:
				cancel(errOnlySmall)
			default:
				cancel(errTooSlow)
			}
		}),
	}
	return ctx, func() {
		for _, t := range timers {
			t.Stop()
		}
		cancel(nil)
	}
}

// race dials the addresses, each addressGap after the one before or as soon as one has failed, until one answers.
func race(ctx context.Context, addresses []netip.AddrPort, dial func(context.Context, netip.AddrPort) (*quic.Conn, error)) (*quic.Conn, error) {
	type result struct {
		conn *quic.Conn
		err  error
	}
	results := make(chan result, len(addresses))
	var dials sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer func() { // the losers, one of which may have been as fast
		cancel()
		dials.Wait()
		close(results)
		for r := range results {
			if r.conn != nil {
				_ = r.conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseClosing), "another address was faster")
			}
		}
	}()
	var failure error
	next := time.NewTimer(0)
	defer next.Stop()
	for unanswered := len(addresses); unanswered > 0; {
		select {
		case <-next.C:
			if len(addresses) == 0 {
				continue
			}
			to := addresses[0]
			addresses = addresses[1:]
			dials.Go(func() {
				conn, err := dial(ctx, to)
				results <- result{conn, err}
			})
			next.Reset(addressGap)
		case r := <-results:
			unanswered--
			if r.err == nil {
				return r.conn, nil
			}
			failure = cmp.Or(failure, r.err)
			next.Reset(0)
		}
	}
	return nil, failure
}
