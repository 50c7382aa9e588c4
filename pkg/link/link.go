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
	"io"
	"log/slog"
	"net/netip"
	"slices"
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

	heard *heard // from the relay; nil: this end is the relay

	suspect atomic.Bool // it is over, as nothing arrived of what was expected, or nothing large
	// replaced is set before the peer can hear of a newer link of this process; then `superseded` says nothing new.
	replaced atomic.Bool
	// toldAt is when the peer was last told that another process with its key was turned away, in seconds of the link's life.
	toldAt  atomic.Uint32
	dialled bool // by this end

	accept struct {
		mu    sync.Mutex
		late  int32      // streams whose tip is being waited for
		over  bool       // no goroutine begins any more
		ready []accepted // those of them whose tip has come
		wake  func()     // makes Accept look again; nil if it would anyway
	}
	badTips rate.Sometimes // logs them, one a minute at most: a peer can send any number

	later later
	turns turns
	work  sync.WaitGroup // the goroutines of this link; see wait
}

// heard is what a dialler waits for. Accepted links, which are many, do without.
type heard struct {
	release   func() // what the link leaves behind
	revoked   func(l *Link, r *wire.Revoked)
	welcome   func(name string)
	contested func(*wire.Contested)
	once      struct{ confirmed, closing sync.Once }
	confirmed chan struct{} // closed at its first heartbeat
	closing   chan struct{}
}

type accepted struct {
	stream *Stream
	tip    wire.Message
}

// tipAtOnce is how long Accept itself waits for the tip of a stream that has arrived.
const tipAtOnce = 2 * time.Millisecond

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

func newLink(conn *quic.Conn, clock *awake.Clock, peer string, key ident.PublicKey, limits *Limits, log *slog.Logger) *Link {
	l := &Link{
		conn:    conn,
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
	if l.heard != nil {
		l.heard.release()
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

// Accept returns the next stream of the peer with its tip. A stream that says nothing at first holds up nobody; one whose
// tip does not come in time is reset, and a malformed tip is answered with 400. It fails when the link is over (Err tells
// why) or ctx is done. It is for one goroutine.
//
// A tip comes in a stream's first packet, as a rule, so Accept reads it itself; only for a late one there is a goroutine.
func (l *Link) Accept(ctx context.Context) (*Stream, wire.Message, error) {
	// An idle link waits in here, so what takes stack is elsewhere.
	for {
		var next accepted
		if l.anyLate() {
			next = l.acceptLate(ctx)
		} else {
			qs, _ := l.conn.AcceptStream(ctx) // look finds the error, too
			next = l.accepted(qs)
		}
		if next.tip != nil && l.Err() == nil {
			return next.stream, next.tip, nil
		}
		if s, tip, err := l.look(ctx, next.stream); tip != nil || err != nil {
			return s, tip, err
		}
	}
}

// look is what Accept does about an accepted stream, or without one (nil) where it was woken. It returns nothing if Accept is
// to go on.
//
//go:noinline
func (l *Link) look(ctx context.Context, s *Stream) (*Stream, wire.Message, error) {
	switch {
	case l.Err() != nil:
		return nil, nil, l.Err()
	case ctx.Err() != nil:
		return nil, nil, context.Cause(ctx)
	case s == nil:
		return nil, nil, nil // a late tip is ready, or has failed
	}
	if tip, there := s.peekTip(); there {
		if l.takeTip(s, tip) {
			return s, tip.message, nil
		}
		return nil, nil, nil
	}
	if !l.mayBeLate() {
		l.hits.hit(limitAllTips, slog.String("peer", l.Peer()))
		s.answer(wire.StatusTooMany, "too many streams have not said yet what they want")
		return nil, nil, nil
	}
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	if l.accept.over {
		return nil, nil, l.Err()
	}
	l.accept.late++
	l.work.Go(func() { l.waitForTip(s) })
	return nil, nil, nil
}

// anyLate tells whether the tip of any stream is late.
//
//go:noinline
func (l *Link) anyLate() bool {
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	return l.accept.late > 0 || len(l.accept.ready) > 0
}

// accepted is a stream without its tip, or nothing if there is none.
//
//go:noinline
func (l *Link) accepted(qs *quic.Stream) accepted {
	if qs == nil {
		return accepted{}
	}
	return accepted{stream: &Stream{stream: qs, link: l}}
}

// acceptLate returns a stream whose late tip is ready, or a new one without its tip; or none, and Accept is to look what
// there is.
//
//go:noinline
func (l *Link) acceptLate(ctx context.Context) accepted {
	l.accept.mu.Lock()
	if len(l.accept.ready) > 0 {
		a := l.accept.ready[0]
		l.accept.ready = slices.Delete(l.accept.ready, 0, 1)
		l.accept.mu.Unlock()
		return a
	}
	late := l.accept.late
	if late == 0 { // since Accept has looked
		l.accept.mu.Unlock()
		return accepted{}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l.accept.wake = cancel
	l.accept.mu.Unlock()
	if int(late) >= l.limits.PendingTips { // beyond this bound the peer's streams wait in QUIC
		l.hits.hit(limitTips, slog.String("peer", l.Peer()))
		select {
		case <-ctx.Done():
		case <-l.Done():
		}
		return accepted{}
	}
	qs, _ := l.conn.AcceptStream(ctx)
	return l.accepted(qs)
}

// readTip is what reading a tip gave.
type readTip struct {
	message wire.Message
	err     error
}

// peekTip takes a tip that is there at once and whole. Otherwise it takes nothing.
func (s *Stream) peekTip() (tip readTip, there bool) {
	_ = s.SetReadDeadline(time.Now().Add(tipAtOnce))
	var head [3]byte // type and length, as anyone but an attacker writes them: one byte, and one or two
	n := 2
	if _, err := s.stream.Peek(head[:n]); err != nil {
		return readTip{}, false
	}
	size := int(head[1])
	switch head[1] >> 6 {
	case 0:
	case 1:
		n = 3
		if _, err := s.stream.Peek(head[:n]); err != nil {
			return readTip{}, false
		}
		size = int(head[1]&0x3f)<<8 | int(head[2])
	default:
		return readTip{}, false
	}
	if head[0]>>6 != 0 || size > wire.MaxBody {
		return readTip{}, false
	}
	b := make([]byte, n+size)
	if _, err := s.stream.Peek(b); err != nil {
		return readTip{}, false
	}
	// It is all there: the read waits for nothing, and must not fail because the time for waiting has just run out. What stays
	// unread would be taken for the first bytes behind the tip.
	_ = s.SetReadDeadline(time.Time{})
	if _, tip.err = io.ReadFull(s.stream, b); tip.err == nil {
		tip.message, _, tip.err = wire.Parse(b)
	}
	return tip, true
}

// waitForTip reads a tip that is late.
func (l *Link) waitForTip(s *Stream) {
	var tip readTip
	_ = s.SetReadDeadline(time.Now().Add(l.limits.TipTimeout))
	tip.message, tip.err = wire.Read(s)
	good := l.takeTip(s, tip)
	if l.listener != nil {
		l.listener.links().tips.Add(-1)
	}
	l.accept.mu.Lock()
	defer l.accept.mu.Unlock()
	l.accept.late--
	if good {
		l.accept.ready = append(l.accept.ready, accepted{s, tip.message})
	}
	if l.accept.wake != nil {
		l.accept.wake()
	}
}

// mayBeLate counts a stream whose tip is late, unless those of all links are too many.
func (l *Link) mayBeLate() bool {
	if l.listener == nil {
		return true
	}
	tips := &l.listener.links().tips
	if tips.Add(1) <= int64(l.limits.PendingTipsTotal) {
		return true
	}
	tips.Add(-1)
	return false
}

// answer refuses a stream that has had no tip.
func (s *Stream) answer(status wire.Status, text string) {
	_, _ = s.TryWrite(wire.Append(nil, &wire.Reply{Status: status, Text: text}))
	_ = s.CloseWrite()
	s.CancelRead(wire.CodeLost)
}

// takeTip tells whether a tip is one. If not, the stream is done with.
func (l *Link) takeTip(s *Stream, tip readTip) bool {
	switch tip.message.(type) {
	case *wire.Control:
		l.Close(wire.CloseProtocol, "a second control stream")
		return false
	case nil:
		if tip.err == nil || errors.Is(tip.err, wire.ErrMalformed) {
			l.badTips.Do(func() {
				l.log.Warn("a stream can't be understood: the peer is of another version, or no ptthqd (of such lines there is one a minute at most)",
					slog.String("peer", l.Peer()), slog.Any("error", tip.err))
			})
			s.answer(wire.StatusMalformed, "the tip can't be understood")
		} else {
			l.log.Debug("no tip", slog.String("peer", l.Peer()), slog.Any("error", tip.err))
			s.Reset(wire.CodeLost)
		}
		return false
	}
	_ = s.SetReadDeadline(time.Time{})
	return true
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

// PeerClosing is closed when the relay at the other end has said that it is about to go. It is nil where this end is the relay.
func (l *Link) PeerClosing() <-chan struct{} {
	if l.heard == nil {
		return nil
	}
	return l.heard.closing
}

// SendClosing tells the peer that this relay is about to go.
func (l *Link) SendClosing() error { return l.sendControl(&wire.Closing{}) }

// SendRevoked tells a server that client's right to reach target was withdrawn (all targets but the kept ones if it is
// empty), or client itself that it has lost rights (target is empty then).
func (l *Link) SendRevoked(client, target string, kept ...string) error {
	return l.sendControl(&wire.Revoked{Client: client, Target: target, Kept: kept})
}

// SendWelcome tells the peer by which name this relay knows it.
func (l *Link) SendWelcome(name string) error { return l.sendControl(&wire.Welcome{Name: name}) }

// Close closes the link; the peer gets code and reason, unless they are lost on the way. Streams end at once, whatever they
// still hold. Closing twice does nothing.
func (l *Link) Close(code wire.CloseCode, reason string) {
	_ = l.conn.CloseWithError(quic.ApplicationErrorCode(code), reason)
}

// RTT is the smoothed round trip of QUIC's packets, for less than Stats costs, of the caller's stack too.
//
//go:noinline
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
