package link

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/wire"
)

// headStart is the time between the starts of two ways (RFC 8305, "Happy Eyeballs").
const headStart = 250 * time.Millisecond

// smallSize is the size in bytes of a small packet that asks for a stateless reset. quic-go answers
// no packet of 42 bytes or less. Every path's MTU is far above 64.
const smallSize = 64

var (
	errNoAnswer  = errors.New("no answer")
	errTooSlow   = errors.New("answered, but not in time")
	errOnlySmall = errors.New("answered small packets alone")
)

// A race is one dial: it tries the ways to a relay, each headStart after the one before or as soon
// as one has failed. The way on which a handshake ends first wins. Each way has a socket of its
// own, so a NAT or firewall that is stuck with the port of an earlier dial does no harm.
type race struct {
	tls    *tls.Config
	config *quic.Config
	tally  *tally

	mu      sync.Mutex
	runners []*runner // whose sockets are open
}

// A runner is what a race has opened on one way. Its creator calls close.
type runner struct {
	socket    *carrier.Socket
	transport *quic.Transport
	to        net.Addr
	tally     *tally
	conn      *quic.Conn // nil until the handshake is over
}

// run returns the winner, or the error of the way that has failed first. It closes all losers.
func (r *race) run(ctx context.Context, ways []way) (*runner, error) {
	type result struct {
		runner *runner
		err    error
	}
	results := make(chan result, len(ways))
	var dials sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer func() { // a loser may be as fast as the winner
		cancel()
		dials.Wait()
		close(results)
		for loser := range results {
			if loser.err == nil {
				_ = loser.runner.conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseClosing),
					"another address was faster")
				loser.runner.close()
			}
		}
	}()
	var failure error
	next := time.NewTimer(0)
	defer next.Stop()
	for unanswered := len(ways); unanswered > 0; {
		select {
		case <-next.C:
			if len(ways) == 0 {
				continue
			}
			way := ways[0]
			ways = ways[1:]
			dials.Go(func() {
				runner, err := r.try(ctx, way)
				results <- result{runner, err}
			})
			next.Reset(headStart)
		case result := <-results:
			unanswered--
			if result.err == nil {
				return result.runner, nil
			}
			failure = cmp.Or(failure, result.err)
			next.Reset(0)
		}
	}
	return nil, failure
}

// try opens a way and makes a QUIC handshake over it.
func (r *race) try(ctx context.Context, way way) (*runner, error) {
	socket, to, err := way.open(ctx)
	if err != nil {
		return nil, err
	}
	r.tally.opened(socket)
	transport := &quic.Transport{Conn: socket.PacketConn(), ConnectionIDLength: connectionIDLength}
	runner := &runner{socket: socket, transport: transport, to: to, tally: r.tally}
	r.mu.Lock()
	r.runners = append(r.runners, runner)
	r.mu.Unlock()
	if runner.conn, err = transport.Dial(ctx, to, r.tls, r.config); err != nil {
		runner.close()
		return nil, err
	}
	return runner, nil
}

func (r *runner) close() {
	_ = r.transport.Close()
	r.tally.closed(r.socket)
	_ = r.socket.Close()
}

// opened returns the runners so far.
func (r *race) opened() []*runner {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clip(r.runners)
}

// received returns the number of packets that have arrived on all ways.
func (r *race) received() (packets uint64) {
	for _, runner := range r.opened() {
		packets += runner.socket.Received()
	}
	return packets
}

// sendError returns why the kernel has refused to send, or nil.
func (r *race) sendError() (err error) {
	for _, runner := range r.opened() {
		err = cmp.Or(err, runner.socket.SendError())
	}
	return err
}

// sendSmall sends a packet of an unknown connection on each way. A relay answers with a stateless
// reset (RFC 9000, section 10.3). QUIC's handshake takes packets of 1,200 bytes. Where the path
// loses those and carries small ones, only this answer arrives: it tells a path with too small an
// MTU from a closed one.
func (r *race) sendSmall() {
	packet := make([]byte, smallSize)
	_, _ = rand.Read(packet)          // never fails
	packet[0] = packet[0]&0x3f | 0x40 // a short header
	for _, runner := range r.opened() {
		// the handshake reports what can't be sent
		_, _ = runner.transport.WriteTo(packet, runner.to)
	}
}

// withPatience returns a context that ends when the race has had no answer within patience, or when
// its handshake is not over max(patience, dialAnswered) after the start. The context's cause is the
// reason. After half of patience without an answer, the race sends small packets too.
func (r *race) withPatience(
	ctx context.Context, clock *awake.Clock, patience time.Duration,
) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var small atomic.Bool // small packets were sent
	timers := []*awake.Timer{
		clock.AfterFunc(patience/2, func() {
			if r.received() == 0 {
				small.Store(true)
				r.sendSmall()
			}
		}),
		clock.AfterFunc(patience, func() {
			if r.received() == 0 {
				cancel(cmp.Or(r.sendError(), errNoAnswer))
			}
		}),
		clock.AfterFunc(max(patience, dialAnswered), func() {
			switch packets := r.received(); {
			case packets == 0:
			case small.Load() && packets <= maxAddresses:
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
