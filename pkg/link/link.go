// Package link keeps authenticated QUIC connections between a relay and its clients and servers. It
// is the only package that knows quic-go.
//
// The one idea: a link ends early, and dialling again is the one way to go on. Both ends send
// heartbeats. An end that expects something and receives nothing closes the link within seconds,
// long before QUIC's own timeout. Sessions outlive links: they go on over the next one. So a
// restart, a dead path, a new address and a wake-up from sleep are all mended by a new link.
//
// A client or server uses a [Dialer], which dials one relay for ever:
//
//	dialer := &link.Dialer{
//		Address: "relay.example.com:30380", Keys: relayKeys, Identity: key, Serve: serve,
//	}
//	err := dialer.Run(ctx) // calls serve for each link, until ctx is done
//
//	func serve(ctx context.Context, l *link.Link) {
//		for {
//			stream, tip, err := l.Accept(ctx)
//			...
//
// A relay uses a [Listener] for each of its sockets, with one [Links] for all: the table of live
// links by peer. On a [Link] both ends open and accept a [Stream] for each session.
//
// The first stream of a link is its control stream. Its tip makes the connection a link for the
// listener. The listener's first heartbeat makes it a link for the dialler. Every other stream
// begins with a tip of its own.
//
// A Dialer or Listener owns its links, and closes them when its Run returns. The caller owns the
// streams that Open and Accept return, and ends both halves of each. Limits bound everything that a
// peer or a stranger can make grow.
package link

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

// A role is the part that this end plays on a link. It does not follow from which end has dialled.
type role uint8

const (
	roleNode  role = iota // a client or server: sends heartbeats by itself, and obeys the relay
	roleRelay             // answers heartbeats, and tells nodes of rights, names and its end
)

// A Link is one live, authenticated connection to a peer. Its methods may be called from any
// goroutine, but Accept only from one.
type Link struct {
	conn     *quic.Conn
	control  *quic.Stream
	peer     atomic.Pointer[string]
	key      ident.PublicKey
	clock    *awake.Clock
	instance wire.Instance // of the peer's process, at the relay; zero if the peer has not sent one
	listener *Listener     // nil at the end that has dialled
	since    time.Time
	log      *slog.Logger
	limits   *Limits
	hits     *hits
	socket   *carrier.Socket

	pulse pulse

	relay *relayEvents // nil at the relay

	suspect atomic.Bool // the link was given up: an expected packet has not arrived
	// replaced is set before the peer can hear of a newer link of this process. Then the close code
	// `superseded` does not mean that another process has this key.
	replaced atomic.Bool
	// toldAt is when the peer was last told of a rival, in seconds since the link began, plus
	// tellGap.
	toldAt atomic.Uint32
	role   role

	accept struct {
		mu    sync.Mutex
		late  int32      // streams whose late tip a goroutine reads
		over  bool       // no such goroutine may begin any more
		ready []incoming // streams whose late tip has arrived
		wake  func()     // ends the wait of Accept; nil before the first late tip
	}
	badTips rate.Sometimes // logs malformed tips, at most one a minute

	later later
	turns turns
	work  sync.WaitGroup // the link's goroutines; see wait
}

// Stats are a link's figures since its beginning.
type Stats struct {
	RTT           time.Duration // smoothed round trip of QUIC's packets
	MinRTT        time.Duration // shortest round trip of QUIC's packets
	AppRTT        time.Duration // smoothed round trip of heartbeats through both processes; 0 at a relay
	PacketsSent   uint64
	PacketsLost   uint64 // of those sent
	BytesSent     uint64 // with all of QUIC's overhead
	BytesReceived uint64
	GSO           bool   // packets leave in segments
	ParitySent    uint64 // parity datagrams
	Restored      uint64 // packets that were lost on the way here and rebuilt from parity
}

// A ClosedError reports that one end has closed the link on purpose.
type ClosedError struct {
	Code   wire.CloseCode
	Remote bool
	Reason string // for people, from the end that has closed
}

func (e *ClosedError) Error() string {
	who := "closed by this end"
	if e.Remote {
		who = "closed by the other end"
	}
	if e.Reason == "" {
		return who + ": " + e.Code.String()
	}
	return who + ": " + e.Code.String() + ": " + e.Reason
}

// ErrStreamLimit reports that the peer allows no more streams at the moment.
var ErrStreamLimit = errors.New(
	"open a stream: the other end's limit of streams at once is reached")

func newLink(
	conn *quic.Conn, role role, clock *awake.Clock, peer string, key ident.PublicKey,
	limits *Limits, log *slog.Logger,
) *Link {
	l := &Link{
		conn:    conn,
		role:    role,
		clock:   clock,
		key:     key,
		since:   time.Now(),
		log:     log,
		limits:  limits,
		badTips: rate.Sometimes{Interval: time.Minute},
	}
	l.peer.Store(&peer)
	return l
}

// start begins the heartbeats on the control stream, whose tip is through. Heartbeats go ahead of
// all streams: the peer takes a late one for a bad path.
func (l *Link) start(control *quic.Stream) {
	l.control = control
	control.SetPriority(0, true)
	l.pulse.start(l)
	l.work.Go(l.readControl)
}

// run serves a link until the link is over and its goroutines have ended.
func (l *Link) run(serve func(context.Context, *Link)) {
	serve(l.conn.Context(), l)
	l.finish("no more use for the link")
	l.wait()
	if l.relay != nil {
		l.relay.release()
	}
}

// wait returns when the link is over and its goroutines have ended.
func (l *Link) wait() {
	<-l.Done()
	l.pulse.stop()
	l.accept.mu.Lock()
	l.accept.over = true
	l.accept.mu.Unlock()
	l.later.stop()
	l.work.Wait()
}

// Peer returns the ID of the peer in the listener's config. At a dialler it returns the relay's
// address as configured.
func (l *Link) Peer() string { return *l.peer.Load() }

// Rename changes the peer's ID at the listener. No other peer may have the new ID. A newer link
// with that ID replaces this one.
func (l *Link) Rename(id string) { l.listener.links().rename(l, id) }

// Key returns the peer's key.
func (l *Link) Key() ident.PublicKey { return l.key }

// RemoteAddr returns the address from which the peer's packets arrive at the moment.
func (l *Link) RemoteAddr() netip.AddrPort { return carrier.AddrPort(l.conn.RemoteAddr()) }

// Since returns when the link was made.
func (l *Link) Since() time.Time { return l.since }

// Socket returns the socket under the link. All links of a listener share one. A dialled link has
// its own.
func (l *Link) Socket() *carrier.Socket { return l.socket }

// Open opens a stream that begins with head: its tips, and perhaps data. head is 64 KiB at most and
// leaves in the first packets. Open waits only while the connection's flow-control window has no
// room for head, and at most TipTimeout. Open fails with ErrStreamLimit, or with a *wire.ResetError
// if the link is down. Then the peer has heard nothing of the stream.
func (l *Link) Open(head []byte) (*Stream, error) {
	l.touch()
	l.flush()
	qs, err := l.conn.OpenStream()
	if err != nil {
		if _, ok := errors.AsType[*quic.StreamLimitReachedError](err); ok {
			return nil, ErrStreamLimit
		}
		return nil, streamError(err)
	}
	s := &Stream{stream: qs, link: l}
	ok, err := s.TryWrite(head)
	if err == nil && !ok {
		_ = s.SetWriteDeadline(time.Now().Add(l.limits.TipTimeout))
		var n int
		n, err = s.Write(head)
		_ = s.SetWriteDeadline(time.Time{})
		if err != nil && n > 0 { // the peer may know the stream: the reader reports its loss
			s.Reset(wire.CodeLost)
			return s, nil
		}
	}
	if err != nil {
		s.Reset(wire.CodeLost)
		return nil, err
	}
	return s, nil
}

// Done returns a channel that is closed when the link is over. By then all its streams have failed.
func (l *Link) Done() <-chan struct{} { return l.conn.Context().Done() }

// Err returns why the link has ended: a *ClosedError, or another error in words for people. It
// returns nil while the link lives.
func (l *Link) Err() error {
	if l.conn.Context().Err() == nil {
		return nil
	}
	switch {
	case !l.suspect.Load():
		return linkError(context.Cause(l.conn.Context()))
	case l.pulse.stuck.Load():
		return errStuck
	default:
		return errSilent
	}
}

var (
	errSilent = errors.New(
		"nothing arrived from the other end any more, though something was expected")
	errStuck = errors.New(
		"small packets arrive, but large ones are lost: the path's MTU has become smaller")
	errIdle      = errors.New("nothing arrived from the other end for too long")
	errRestarted = errors.New("the other end does not know the link any more: it has restarted")
)

// linkError turns quic-go's reason for the end of a connection into one of this package.
func linkError(err error) error {
	if end, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return &ClosedError{
			Code: wire.CloseCode(end.ErrorCode), Remote: end.Remote,
			Reason: wire.Clean(end.ErrorMessage),
		}
	}
	if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
		return errRestarted
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return errIdle
	}
	return &cleanError{err}
}

// A cleanError is an error of QUIC that may contain text of the peer.
type cleanError struct{ error }

func (e *cleanError) Error() string { return "the link failed: " + wire.Clean(e.error.Error()) }
func (e *cleanError) Unwrap() error { return e.error }

// Unanswered returns how long ago the oldest heartbeat without an answer left; 0 if there is none.
func (l *Link) Unanswered() time.Duration { return l.pulse.unanswered() }

// Overdue returns how late the peer's heartbeat is. Where other packets do arrive, streams that
// nobody reads have filled the connection's flow-control window, for which the heartbeat waits.
// Overdue is always 0 at a client or server.
func (l *Link) Overdue() time.Duration { return l.pulse.overdue() }

// Close closes the link. The peer gets code and reason, unless the packet is lost. All streams end
// at once, with what they have not sent. A second Close does nothing.
func (l *Link) Close(code wire.CloseCode, reason string) {
	_ = l.conn.CloseWithError(quic.ApplicationErrorCode(code), reason)
}

// RTT returns the smoothed round trip of QUIC's packets. It costs less than Stats.
func (l *Link) RTT() time.Duration { return l.conn.ConnectionStats().SmoothedRTT }

// endLevel returns the level of the log line about the link's end. A broken protocol needs a
// person.
func (l *Link) endLevel() slog.Level {
	if l.Reason() == EndProtocol {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// Stats returns the link's figures so far.
func (l *Link) Stats() Stats {
	s := l.conn.ConnectionStats()
	stats := Stats{
		RTT:           s.SmoothedRTT,
		MinRTT:        s.MinRTT,
		AppRTT:        time.Duration(l.pulse.rtt.Load()),
		PacketsSent:   s.PacketsSent,
		PacketsLost:   s.PacketsLost,
		BytesSent:     s.BytesSent,
		BytesReceived: s.BytesReceived,
		GSO:           l.conn.ConnectionState().GSO,
	}
	if guard := l.pulse.protection.Load(); guard != nil {
		stats.ParitySent, stats.Restored = guard.sent.Load(), guard.restored.Load()
	}
	return stats
}

// touch notes that a stream carries data.
func (l *Link) touch() {
	if !l.pulse.busy.Load() && !l.pulse.busy.Swap(true) && l.pulse.slow.Load() {
		l.pulse.wake()
	}
}

// giveUp closes a suspect link. The peer may still hear of it.
func (l *Link) giveUp() {
	why := "nothing arrived from you any more"
	if l.pulse.stuck.Load() {
		why = errStuck.Error()
	}
	l.suspect.Store(true)
	l.Close(wire.CloseClosing, why)
}
