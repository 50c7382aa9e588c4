// Package session forwards a TCP connection that outlives the streams carrying it.
//
// A session is one forwarded connection, as P2 and P4 see it: a pair of byte streams, P1→P5 and
// P5→P1, each with an offset. When its stream, link or relay is lost, P2 brings another stream, and
// both ends go on from the last byte that the other has received. P1 and P5 notice a pause.
// PROTOCOL.md, section 5, has the rules. One direction of a session runs through these parts, and
// the other one through their like:
//
//	P1 ── Conn ── [pump → outbox → flush] ══ Stream ══ [read → inbox → deliver] ── Conn ── P5
//
// # The two ends
//
// A [Client] holds the sessions of P2. Its Forward takes an accepted [Conn] and a [Request], asks
// the [Router] for the live links, opens a stream over the best [Route], and returns a [Summary]
// when the session is over. A [Server] holds the sessions of P4. Its Open and Resume take a stream
// that a client has brought, and make or find the session that it is for. A session without a
// stream is detached: P2 looks for another stream, and P4 waits until P2 brings one. Run, of either
// type, does what time alone brings about, and ends the remaining sessions when its context is
// done.
//
// # Inside a session
//
// A session has what outlives a stream: its state, its offsets, an outbox and an inbox. The outbox
// keeps what was read from the TCP side until the peer acknowledges it. The inbox holds what the
// peer has sent until the TCP side takes it; its window bounds how much that is. An attachment has
// what a session needs for as long as one stream carries it. Attaching makes a new one, and
// detaching drops it; it is never used again.
//
// A shared is what all sessions of a Client or Server have together: memory budgets, a quota for
// each link and peer, the evidence whether a path is dead, and the sweep, which visits the sessions
// that were busy of late ten times a second.
//
// # Ownership
//
// A session owns its Conn and closes it. Forward, Open and Resume own the streams that they open or
// are given, and end both halves of them. A buffer belongs to one session, and goes back to the
// pool with its last reference.
//
// # Concurrency
//
// The exported methods may be called by any goroutine. Each session has two goroutines: one reads
// the TCP side (pump), and one reads frames: at P2 the caller of Forward, at P4 the caller of Open
// or Resume. The frame reader never waits for the TCP side or for a writer, since the window that
// it has promised is room that it has. So neither direction can hold up the other. One goroutine at
// a time has the right to write to a stream; any goroutine with something to write takes that
// right, and a goroutine that must not block starts another one for what might.
//
// The session's lock guards its state, and is never held during a read or a write. The locks of the
// Client or Server and of what they share may be taken while a session's lock is held, not the
// other way round. An idle attached session holds no buffer and no timer.
package session

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"ptthqd/pkg/wire"
)

// A Route is a way by which a session's stream reaches the other end: a live link, or a part of
// one.
type Route struct {
	Link  any           // the identity of the link; comparable
	Relay string        // the relay's name, for logs and status
	RTT   time.Duration // smoothed round trip of the link
	// Overdue returns for how long the link's own heartbeats have had no answer. Nil: unknown.
	Overdue func() time.Duration
	// Shared tells that the route's streams share a flow-control window with those of other
	// sessions, as QUIC's do. Then what is in flight over the route is shared between the sessions.
	Shared bool
	// Open opens a stream to a server with a tip, and data right behind it, without waiting. Only
	// the client's routes have it. Nil: sessions can only be resumed over the route.
	Open func(tip *wire.Connect, data []byte) (wire.Stream, error)
	// Resume opens a stream for a session that exists, with a tip. Nil: Open does.
	Resume func(tip *wire.Connect) (wire.Stream, error)
}

// opens reports whether an attempt can be made over the route: to open a session, or to resume one.
func (r *Route) opens(opening bool) bool { return r.Open != nil || !opening && r.Resume != nil }

// stream opens a stream for an attempt, with data behind the tip.
func (r *Route) stream(opening bool, tip *wire.Connect, data []byte) (wire.Stream, error) {
	if !opening && r.Resume != nil {
		return r.Resume(tip)
	}
	return r.Open(tip, data)
}

// errEnded is the frame reader's result when the session has ended in good order on this stream.
var errEnded = errors.New("the session has ended")

// errMove is the frame reader's result when the session is to leave the stream, or has left it.
var errMove = errors.New("the session moves")

// A session is one end of a forwarded connection: all that outlives a stream. What lives as long as
// a stream is in its attachment.
type session struct {
	shared *shared
	server bool // this is P4's end
	token  wire.Token

	mu     sync.Mutex
	cond   sync.Cond // broadcast when a goroutine of the session may go on
	info   Info
	local  *tcpSide // nil at P4 until P5 is dialled
	hungUp bool     // local is closed, or being closed

	out outbox
	in  inbox

	windows, retained holding // of the shared budgets

	at      *attachment   // to the stream that carries the session; nil while there is none
	last    *attachment   // at, or the one before: its goroutines may still be leaving
	attempt uint64        // the newest that was made, or seen
	granted time.Duration // how long the session may be detached

	ended  bool   // both directions have ended, and that is acknowledged
	ending ending // how and by whom the session is reset, or is about to be
	closed bool
	final  *Summary

	// For the sweep.
	warm     bool      // the sweep visits the session
	tepid    bool      // it is warm, but visited less often
	lastData time.Time // when data went by last, in either direction
	look     look      // at the TCP side

	// At P4. settle closes the session, which is reset or has ended, and leaves a tombstone. Its
	// caller holds the lock.
	settle      func()
	cancelDial  context.CancelFunc
	dialledFrom string      // the dialled connection's own address, if P5 is on this host
	origin      []byte      // the mark in the open
	above       []string    // the targets of the sessions through which P1 came, first to last
	waiting     bool        // the session counts as detached
	expiry      *time.Timer // resets a session that waits for too long

	// At P2.
	changed     chan struct{} // wakes the goroutine in Forward; capacity 1
	pending     wire.Stream   // of an attempt whose reply hasn't come yet
	pendingLink any
	stopping    bool // the process stops: the session looks for no other stream

	work sync.WaitGroup // the session's goroutines; none is added once it is closed

	// For pump. Sizes are in bytes.
	reserved *buffer // the memory for the next read
	hint     int     // how much the next read is expected to bring
	most     int     // how much the next read may bring
	room     int     // how much the reservation has room for
	onRead   func() []byte
	onCancel func()
}

func newSession(h *shared, server bool, token wire.Token, info Info) *session {
	now := time.Now()
	s := &session{
		shared: h, server: server, token: token, info: info,
		lastData: now,
		hint:     smallBuffer - headroom,
	}
	s.info.ID = token.ConnectionID()
	s.info.State, s.info.Since, s.info.Opened = Opening, now, now
	s.cond.L = &s.mu
	s.windows.Share = h.windows.Share(s.peerName())
	s.retained.Share = h.retained.Share(s.peerName())
	s.in.window, s.in.limit = wire.InitialWindow, wire.InitialWindow
	s.out.limit = wire.InitialWindow
	s.onRead, s.onCancel = s.reserve, s.unreserve
	return s
}

// logger returns a logger for events of single sessions. What happens to many at once goes to the
// shared notices.
func (s *session) logger() *slog.Logger { return s.shared.log.With("connection", s.info.ID) }

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

// peerName returns the ID of the node at the other end.
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

// longAgo is a deadline that has passed. It makes a blocked read or write return.
var longAgo = time.Unix(1, 0) //nolint:forbidigo // before all times, of a bubble too
