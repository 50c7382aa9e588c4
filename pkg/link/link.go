// Package link keeps authenticated QUIC connections to neighbours: a client's or server's to its relays (Dialer), a
// relay's to its clients and servers (Listener). It is the only package that knows quic-go.
//
// The one idea: a Link is short-lived and honest. It has been up since both ends have heard each other on its control
// stream, and it is over as soon as one end has reason to think so, long before QUIC's own timeout: heartbeats run each
// way, and a link on which something was expected and nothing at all arrived is given up. Whatever must outlive a link, a
// session does above it, over the next link; so there is one way to go on after a restart, a dead path, a new address and
// a wake-up: dial again.
//
//	dialer := &link.Dialer{Address: "relay.example.com:30380", Key: relayKey, Identity: key, Serve: serve}
//	err := dialer.Run(ctx) // calls serve for each link, until ctx is done
//
//	func serve(ctx context.Context, l *link.Link) {
//		for {
//			stream, tip, err := l.Accept(ctx)
//			...
//
// The first stream of each link is the control stream: its tip makes the link count for the listener, and the listener's
// first heartbeat makes it count for the dialler. Every other stream begins with a tip of its own.
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
	roleNode  role = iota // a client or server: sends heartbeats on its own time, and obeys the relay
	roleRelay             // answers heartbeats, and tells nodes of rights, names and its end
)

// Link is one live, authenticated connection to a neighbour. Its methods may be called from any goroutine.
type Link struct {
	conn     *quic.Conn
	control  *quic.Stream
	peer     atomic.Pointer[string]
	key      ident.PublicKey
	clock    *awake.Clock
	instance wire.Instance // of the process that dialled, at the listener; zero if it has not said one
	listener *Listener     // if the other end has dialled
	since    time.Time
	log      *slog.Logger
	limits   *Limits
	hits     *hits
	socket   *carrier.Socket

	pulse pulse

	relay *relayEvents // nil: this end is the relay

	suspect atomic.Bool // it is over, as nothing arrived of what was expected, or nothing large
	// replaced is set before the peer can hear of a newer link of this process; then `superseded` says nothing new.
	replaced atomic.Bool
	// toldAt is when the peer was last told that another process with its key was turned away, in seconds of the link's life.
	toldAt atomic.Uint32
	role   role

	accept struct {
		mu    sync.Mutex
		late  int32      // streams whose tip is being waited for
		over  bool       // no goroutine begins any more
		ready []incoming // those of them whose tip has come
		wake  func()     // makes Accept look again; nil if it would anyway
	}
	badTips rate.Sometimes // logs them, one a minute at most: a peer can send any number

	later later
	turns turns
	work  sync.WaitGroup // the goroutines of this link; see wait
}

// Stats are a link's figures, since its beginning.
type Stats struct {
	RTT           time.Duration // smoothed round trip of QUIC's packets
	MinRTT        time.Duration // the smallest seen
	AppRTT        time.Duration // smoothed round trip of heartbeats, through both processes; 0 at the end that was dialled
	PacketsSent   uint64
	PacketsLost   uint64 // of those sent
	BytesSent     uint64 // with all of QUIC's overhead
	BytesReceived uint64
	GSO           bool // packets leave in segments
	ParitySent    uint64
	Restored      uint64 // packets that were lost on the way here and made again from their parity
}

// A ClosedError says that one end closed a link on purpose.
type ClosedError struct {
	Code   wire.CloseCode
	Remote bool
	Reason string // for people; whoever closed it says it
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

// ErrStreamLimit says that the peer allows no more streams at the moment.
var ErrStreamLimit = errors.New("open a stream: the other end's limit of streams at once is reached")

func newLink(conn *quic.Conn, role role, clock *awake.Clock, peer string, key ident.PublicKey, limits *Limits, log *slog.Logger) *Link {
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

// start begins with the heartbeats, on the control stream, whose tip is through.
func (l *Link) start(control *quic.Stream) {
	l.control = control
	control.SetPriority(0, true) // before all streams, which may be many: a late heartbeat says that the path is bad
	l.pulse.start(l)
	l.work.Go(l.readControl)
}

// run serves a link until it is over and all that belongs to it has ended.
func (l *Link) run(serve func(context.Context, *Link)) {
	serve(l.conn.Context(), l)
	l.finish("no more use for the link")
	l.wait()
	if l.relay != nil {
		l.relay.release()
	}
}

// wait returns when the link is over and all its goroutines have ended.
func (l *Link) wait() {
	<-l.Done()
	l.pulse.stop()
	l.accept.mu.Lock()
	l.accept.over = true
	l.accept.mu.Unlock()
	l.later.stop()
	l.work.Wait()
}

// Peer is the ID that the listener's config gives to the peer; for a dialler it is the relay's address as configured.
func (l *Link) Peer() string { return *l.peer.Load() }

// Rename has the listener know the peer by another ID from now on, which is nobody else's: a newer link of that ID takes the
// place of this one.
func (l *Link) Rename(id string) { l.listener.links().rename(l, id) }

// Key is the peer's key.
func (l *Link) Key() ident.PublicKey { return l.key }

// RemoteAddr is where the peer's packets come from at the moment.
func (l *Link) RemoteAddr() netip.AddrPort { return carrier.AddrPort(l.conn.RemoteAddr()) }

// Since is when the link was made.
func (l *Link) Since() time.Time { return l.since }

// Socket is what the link runs over: a listener's links share one, a dialler's has its own.
func (l *Link) Socket() *carrier.Socket { return l.socket }

// Open opens a stream that begins with head: its tips, and perhaps data, 64 KiB at most, which leave in the first packets.
// It waits for nobody, unless the connection's flow-control window has no room for head, which it waits for TipTimeout at
// most. It fails with ErrStreamLimit, or with a *wire.ResetError if the link is down; then the peer has heard nothing of it.
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
		if err != nil && n > 0 { // the peer may know of it: the stream's reader is to learn that it is lost
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

// Done is closed when the link is over. By then all its streams are dead.
func (l *Link) Done() <-chan struct{} { return l.conn.Context().Done() }

// Err tells why the link ended: a *ClosedError, or an error in words for people. It is nil before.
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
	errSilent    = errors.New("nothing arrived from the other end any more, though something was expected")
	errStuck     = errors.New("small packets arrive, but large ones are lost: the path's MTU has become smaller")
	errIdle      = errors.New("nothing arrived from the other end for too long")
	errRestarted = errors.New("the other end does not know the link any more: it has restarted")
)

func linkError(err error) error {
	if end, ok := errors.AsType[*quic.ApplicationError](err); ok {
		return &ClosedError{Code: wire.CloseCode(end.ErrorCode), Remote: end.Remote, Reason: wire.Clean(end.ErrorMessage)}
	}
	if _, ok := errors.AsType[*quic.StatelessResetError](err); ok {
		return errRestarted
	}
	if _, ok := errors.AsType[*quic.IdleTimeoutError](err); ok {
		return errIdle
	}
	return &cleanError{err}
}

// A cleanError is an error of QUIC, into which the other end may have put a text.
type cleanError struct{ error }

func (e *cleanError) Error() string { return "the link failed: " + wire.Clean(e.error.Error()) }
func (e *cleanError) Unwrap() error { return e.error }

// Unanswered is for how long a heartbeat of this end has had no answer.
func (l *Link) Unanswered() time.Duration { return l.pulse.unanswered() }

// Overdue is for how long a heartbeat of the peer should have been here. On a link that is not suspect, as other packets do
// arrive, something is in its way: what streams have brought and nobody has read fills the window that they all share. It
// is 0 at the end that has dialled.
func (l *Link) Overdue() time.Duration { return l.pulse.overdue() }

// Close closes the link; the peer gets code and reason, unless they are lost on the way. Streams end at once, whatever they
// still hold. Closing twice does nothing.
func (l *Link) Close(code wire.CloseCode, reason string) {
	_ = l.conn.CloseWithError(quic.ApplicationErrorCode(code), reason)
}

// RTT is the smoothed round trip of QUIC's packets. It costs less than Stats.
func (l *Link) RTT() time.Duration { return l.conn.ConnectionStats().SmoothedRTT }

// endLevel is that of the line about the link's end: links come and go, but a broken protocol is for a person.
func (l *Link) endLevel() slog.Level {
	if l.Reason() == EndProtocol {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// Stats returns the link's figures.
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

// giveUp ends a link that has turned suspect. If the peer hears of it, so much the better.
func (l *Link) giveUp() {
	why := "nothing arrived from you any more"
	if l.pulse.stuck.Load() {
		why = errStuck.Error()
	}
	l.suspect.Store(true)
	l.Close(wire.CloseClosing, why)
}
