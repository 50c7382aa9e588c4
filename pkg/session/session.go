// Package session carries a forwarded TCP connection over streams that may be
// lost under it. A session is a duplex byte stream between P2 and P4 with an
// offset in each direction; when its stream, link or relay is gone, P2 brings
// another stream and both ends go on from the last byte that the other has
// received. P1 and P5 notice a pause.
//
//	P1 ── Conn ── [pump → outbox → flush] ══ Stream ══ [read → inbox → deliver] ── Conn ── P5
//
// and the same the other way. Client holds P2's sessions and finds them
// streams through a Router; Server holds P4's, which wait for P2 to come back.
//
// Each session has two goroutines: pump reads the TCP side, and one reads
// frames (at P2 the one that called Forward, at P4 the one that brought the
// stream). Whoever has something to write takes the session's one right to
// write; only where that would have to wait is a goroutine started for it. The
// frame reader waits for nobody: the window that it has promised is room that
// it has, so neither direction can hold up the other.
//
// All state is under the session's lock, which is never held during I/O. An
// idle session holds no buffer and no timer.
package session

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"ptthqd/pkg/wire"
)

// A Route is a live link, as a session sees it.
type Route struct {
	Link  any           // the identity of the link; comparable
	Relay string        // the relay's name, for logs and status
	RTT   time.Duration // smoothed round trip of the link
	// Overdue is for how long the link's own heartbeats have had no answer. Nil: not known.
	Overdue func() time.Duration
	// Open opens a stream to a server with a tip, and data right behind,
	// without waiting. Only the client's routes have it.
	Open func(tip *wire.Connect, data []byte) (wire.Stream, error)
}

// The states of a session, at both ends. Closed is terminal; tombstones are
// not sessions.
//
//	opening → attached ⇄ detached → closing → closed
//
// A session goes from any state to closing when it is reset or when both
// directions have ended, and from there to closed when the other end has
// confirmed that, or can't any more.
const (
	Opening  = "opening"  // P4 hasn't replied yet
	Attached = "attached" // a stream carries it
	Detached = "detached" // its stream is lost and no other has come yet
	Closing  = "closing"  // both directions have ended, or it was reset; to be confirmed
	Closed   = "closed"
)

// errEnded is what the frame reader returns when the session has come to its
// end on this stream in good order.
var errEnded = errors.New("the session has ended")

// errMove is what the frame reader returns when the session is to go elsewhere.
var errMove = errors.New("the session moves")

// A session is one end of a forwarded connection.
type session struct {
	host   *host
	server bool // this is P4's end
	token  wire.Token

	mu     sync.Mutex
	cond   sync.Cond // broadcast when something that a goroutine of the session waits for may have come
	info   Info
	end    *end // the TCP side; nil at P4 until it is dialled
	hungUp bool // it is closed, or being closed

	out outbox
	in  inbox

	windows, retained holding // of the host's budgets

	// The stream, nil while there is none. Only the holder of writing writes to
	// it; frozen keeps new writers away.
	stream  wire.Stream
	route   Route
	line    *line
	quota   *quota
	claim   claim // in the quota
	writing bool
	frozen  bool
	reading bool
	moving  string // why the session is to leave its stream; empty if it isn't
	lost    error  // the first error that told of the stream's loss
	rest    []byte // what a frozen writer couldn't write: goes first when it carries on
	restBuf *buffer

	attempt uint64
	granted time.Duration // how long it may be detached

	// What is to be said besides data.
	ackDue  bool
	pingDue bool
	pongDue bool
	yield   uint64

	ended     bool   // both directions have ended and are acknowledged
	reset     *End   // the session is reset, for this reason
	endedBy   string // whose doing that is; empty: this process's
	endReason string // in words; may be empty
	resetCode uint64
	resetDue  bool // a reset frame is to be sent
	resetSaid bool // it was, or the peer's has come
	goodbye   bool // the end of the current stream was written
	closed    bool
	final     *Summary

	// The sweep's.
	warm       bool
	tepid      bool          // it is warm, and visited less often
	waitsSince time.Duration // since when a sweep has seen neither an answer to the ping nor anything else; process time, 0 if none has looked
	lastIn     time.Time     // something arrived on the stream
	lastData   time.Time     // data went either way
	pingSince  time.Time     // since when an answer to a ping is due; zero if none is
	pingSent   time.Time     // when that ping was written; zero if it waits for the writer
	pingAt     uint64        // what had been sent before it
	pingLimit  uint64        // the limit that was said before it, or with it
	minRTT     time.Duration // of the pings on the current stream; 0 if unknown
	nextProbe  time.Time

	look look // at the TCP side

	// At P4: settle closes the session, which is reset or has ended, and leaves
	// a tombstone; called with the lock held.
	settle     func()
	cancelDial context.CancelFunc
	local      string      // the dialled connection's own address, if P5 is on this host; empty otherwise
	origin     []byte      // of its open
	above      []string    // the targets of the sessions from which this one came, the first one's first
	waiting    bool        // it is counted among the detached
	expiry     *time.Timer // runs while it is

	// At P2.
	changed     chan struct{} // wakes the goroutine in Forward; capacity 1
	pending     wire.Stream   // of an attempt whose reply hasn't come
	pendingLink any
	stopping    bool // the process is: no more than what is under way is waited for

	work sync.WaitGroup // the session's goroutines; none is added once it is closed

	// The frame reader's own.
	one     [1]byte
	carry   [wire.MaxFrameHeader]byte
	carried int
	left    uint64

	header  [wire.MaxFrameHeader]byte // the writer's own
	control [4 * wire.MaxFrameHeader]byte

	resting  bool    // pump was woken to go on in a fresh goroutine
	reserved *buffer // pump's own: what it reads into
	hint     int     // pump's own: how much it expects
	most     int     // pump's own: how much the next read may bring
	room     int     // pump's own: how much the reservation has room for
	onRead   func() []byte
	onCancel func()
}

func newSession(h *host, server bool, token wire.Token, info Info) *session {
	now := time.Now()
	s := &session{
		host: h, server: server, token: token, info: info,
		lastIn: now, lastData: now,
		hint: smallBuffer - headroom,
	}
	s.info.ID = token.ConnectionID()
	s.info.State, s.info.Since, s.info.Opened = Opening, now, now
	s.cond.L = &s.mu
	s.windows.share = h.windows.share(s.peerName())
	s.retained.share = h.retained.share(s.peerName())
	s.in.window, s.in.limit, s.in.limitSaid = wire.InitialWindow, wire.InitialWindow, wire.InitialWindow
	s.out.limit = wire.InitialWindow
	s.onRead, s.onCancel = s.reserve, s.unreserve
	return s
}

// logger is for what few sessions have to tell.
func (s *session) logger() *slog.Logger { return s.host.log.With("connection", s.info.ID) }

func (s *session) setState(state string) {
	if s.info.State != state {
		s.info.State, s.info.Since = state, time.Now()
	}
}

func (s *session) snapshot() Info {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.snapshotLocked()
}

func (s *session) snapshotLocked() Info {
	info := s.info
	up, down := s.out.read, s.in.received
	if s.in.fin {
		down--
	}
	if s.server {
		up, down = down, up
	}
	info.Up, info.Down = int64(up), int64(down)
	info.Moved = s.lastData
	return info
}

// quietTime is for how long no data must have gone by in a session that a stop does not wait for.
const quietTime = time.Second

// moving reports whether data has gone by in one of the sessions within quietTime.
func moving(sessions []*session) bool {
	return slices.ContainsFunc(sessions, func(s *session) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return time.Since(s.lastData) < quietTime
	})
}

// attachLocked makes st the session's stream, from the offsets that both ends
// have just exchanged: the peer has received everything before sent.
func (s *session) attachLocked(st wire.Stream, r Route, sent uint64) {
	s.dropQuotaLocked()
	s.stream, s.route = st, r
	s.info.Relay, s.info.Link = r.Relay, r.Link
	s.quota = s.host.quotas.acquire(r.Link, s.peerName())
	s.line = s.host.lines.acquire(r, s.peerName(), s.host.clock.Now())
	s.frozen, s.moving, s.lost = false, "", nil
	s.dropRestLocked()
	s.out.known = max(s.out.known, sent)
	s.out.sent, s.out.paid = sent, sent
	s.in.ackedSaid, s.in.limitSaid = s.in.acked, s.in.limit
	s.ackDue, s.pongDue, s.yield = false, false, 0
	s.resetSaid, s.resetDue, s.goodbye = false, s.reset != nil, false
	s.carried, s.left = 0, 0
	s.pingDue, s.pingSince, s.pingSent, s.pingLimit, s.minRTT = false, time.Time{}, time.Time{}, 0, 0
	s.lastIn = time.Now()
	s.awaitEndLocked()
	s.warmLocked()
	s.cond.Broadcast()
}

// detachLocked takes the stream away. It is the caller's to end it.
func (s *session) detachLocked() {
	s.dropQuotaLocked()
	s.stream = nil
	s.dropRestLocked()
	s.host.cool(s)
	s.cond.Broadcast()
}

func (s *session) dropQuotaLocked() {
	if s.quota == nil {
		return
	}
	s.quota.forget(s)
	s.quota.drop(int64(s.out.onLink()))
	s.out.paid = 0
	s.host.quotas.release(s.route.Link, s.peerName(), s.quota)
	s.host.lines.release(s.route.Link, s.peerName())
	s.quota, s.line = nil, nil
}

func (s *session) dropRestLocked() {
	if s.restBuf != nil {
		s.restBuf.unref()
	}
	s.rest, s.restBuf = nil, nil
}

// peerName is who is at the other end.
func (s *session) peerName() string {
	if s.server {
		return s.info.Client
	}
	return s.info.Server
}

// wakeLocked wakes every goroutine of the session that waits for a change.
func (s *session) wakeLocked() {
	s.cond.Broadcast()
	if s.changed != nil {
		select {
		case s.changed <- struct{}{}:
		default:
		}
	}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// longAgo is a deadline that has passed: it wakes who waits.
var longAgo = time.Unix(1, 0) //nolint:forbidigo // before all times, of a bubble too
