package link

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/qlog"
	"github.com/quic-go/quic-go/qlogwriter"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/wire"
)

const (
	// probePatience is how long a probe waits for the first answer. It is longer than a dial's
	// patience, because a probe has one attempt.
	probePatience = 3 * time.Second
	// probeMTU is how long path MTU discovery may take after the handshake. The relay waits as long
	// for a control stream.
	probeMTU = 4 * time.Second
)

// Probed is the result of a probe.
type Probed struct {
	Addresses []netip.AddrPort // of the relay's name, in the order in which they are dialled
	Resolve   time.Duration    // how long the name took; 0 for an address
	Remote    netip.AddrPort   // the address that has answered
	Handshake time.Duration    // until the relay has confirmed the handshake
	RTT       time.Duration    // shortest round trip
	MTU       int              // of the path in bytes, with headers, 1,500 at most; 0 if unknown
	GSO       bool             // packets leave in segments
	Socket    carrier.Stats

	Reason Reason // why the probe has failed; empty if it has not
	Error  string // Reason in words for people
}

// Probe finds out whether a link to the relay would come about. It makes a real handshake, and
// stops before the connection is a link, so the link of a running process with the same key stays.
// Use a Dialer of its own, and do not Run it.
func (d *Dialer) Probe(ctx context.Context) (p Probed) {
	if err := d.prepare(); err != nil {
		return Probed{Reason: DialFailed, Error: err.Error()}
	}
	if err := d.probe(ctx, &p); err != nil {
		failure := d.explain(err)
		p.Reason, p.Error = failure.reason, failure.words
	}
	return p
}

func (d *Dialer) probe(ctx context.Context, p *Probed) error {
	lifetime, cancel := context.WithCancel(ctx)
	defer d.lookup.work.Wait()
	defer cancel()
	d.lookup.lifetime = lifetime
	began := time.Now()
	addresses, err := d.addresses(ctx)
	if err != nil {
		return err
	}
	p.Addresses = addresses
	if _, err := netip.ParseAddr(d.host); err != nil {
		p.Resolve = time.Since(began)
	}
	config := d.limits.Load().quicConfig(newGrants(nil))
	config.HandshakeIdleTimeout = 2 * dialAnswered
	// QUIC looks for a larger MTU only while it sends something.
	config.KeepAlivePeriod = time.Millisecond

	seen := new(probeTrace)
	config.Tracer = seen.trace
	race := &race{tls: d.tls.Load(), config: config, tally: new(tally)}
	defer func() {
		if opened := race.opened(); len(opened) > 0 && p.Socket == (carrier.Stats{}) {
			p.Socket = opened[0].socket.Stats()
		}
	}()
	handshake, stop := race.withPatience(ctx, &d.clock, probePatience)
	defer stop()
	began = time.Now()
	winner, err := race.run(handshake, d.ways(addresses))
	if err != nil {
		return err
	}
	conn, socket := winner.conn, winner.socket
	defer func() {
		_ = conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseClosing), "a probe")
		p.Socket = socket.Stats()
		winner.close()
	}()
	p.Remote = carrier.AddrPort(conn.RemoteAddr())
	// The handshake is over here before the relay has checked the signature.
	if err := seen.await(handshake, conn, seen.isDone); err != nil {
		return err
	}
	stop()
	p.Handshake = time.Since(began)

	looking, cancel := context.WithTimeout(ctx, probeMTU)
	defer cancel()
	_ = seen.await(looking, conn, seen.isMeasured) // the size found so far counts
	if err := awaitVerdict(ctx, conn); err != nil {
		return err
	}
	p.RTT, p.GSO = conn.ConnectionStats().MinRTT, conn.ConnectionState().GSO
	if socket.FindsMTU() {
		p.MTU = seen.mtu() + headers(p.Remote)
	}
	return nil
}

// awaitVerdict returns nil if the relay has admitted the key. Then the relay waits for a control
// stream, and closes the connection as broken when it gets another stream. An unknown key gets
// another code.
func awaitVerdict(ctx context.Context, conn *quic.Conn) error {
	ctx, cancel := context.WithTimeoutCause(ctx, dialAnswered, errTooSlow)
	defer cancel()
	if s, err := conn.OpenStream(); err == nil { // else the connection has ended
		_ = s.Close()
	}
	select {
	case <-conn.Context().Done():
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := context.Cause(conn.Context())
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok && e.Remote &&
		wire.CloseCode(e.ErrorCode) == wire.CloseProtocol {
		return nil
	}
	return err
}

// headers returns the size in bytes of the headers of IP and UDP.
func headers(to netip.AddrPort) int {
	if to.Addr().Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// A probeTrace is a qlog that notes two events: the relay has confirmed the handshake (RFC 9001,
// section 4.1.2), and path MTU discovery has moved on.
type probeTrace struct {
	mu       sync.Mutex
	done     bool
	payload  int  // size in bytes of the largest packet that has arrived
	measured bool // path MTU discovery is over
	changed  chan struct{}
}

func (w *probeTrace) trace(context.Context, bool, quic.ConnectionID) qlogwriter.Trace { return w }

// AddProducer implements qlogwriter.Trace.
func (w *probeTrace) AddProducer() qlogwriter.Recorder { return w }

// Close implements qlogwriter.Recorder.
func (w *probeTrace) Close() error { return nil }

// RecordEvent implements qlogwriter.Recorder.
func (w *probeTrace) RecordEvent(e qlogwriter.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e := e.(type) {
	case qlog.PacketReceived:
		for _, f := range e.Frames {
			if _, done := f.Frame.(*qlog.HandshakeDoneFrame); done {
				w.done = true
			}
		}
	case qlog.MTUUpdated:
		w.payload, w.measured = max(w.payload, e.Value), e.Done
	default:
		return
	}
	if w.changed != nil {
		close(w.changed)
		w.changed = nil
	}
}

func (w *probeTrace) isDone() bool     { return w.done }
func (w *probeTrace) isMeasured() bool { return w.measured }

func (w *probeTrace) mtu() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return max(w.payload, leastPacket)
}

// await waits until seen returns true, or until the connection or ctx is over.
func (w *probeTrace) await(ctx context.Context, conn *quic.Conn, seen func() bool) error {
	for {
		w.mu.Lock()
		if seen() {
			w.mu.Unlock()
			return nil
		}
		if w.changed == nil {
			w.changed = make(chan struct{})
		}
		changed := w.changed
		w.mu.Unlock()
		select {
		case <-changed:
		case <-conn.Context().Done():
			return context.Cause(conn.Context())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
