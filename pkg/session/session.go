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

// errEnded is what the frame reader returns when the session has come to its
// end on this stream in good order.
var errEnded = errors.New("the session has ended")

// errMove is what the frame reader returns when the session is to leave the stream, or has left it.
var errMove = errors.New("the session moves")

// A session is one end of a forwarded connection: all that outlives a stream. What lives as long as
// a stream is in its attachment.
type session struct {
	host   *host
	server bool // this is P4's end
	token  wire.Token

	mu     sync.Mutex
	cond   sync.Cond // broadcast when a goroutine of the session may go on
	info   Info
	local  *tcpSide // nil at P4 until P5 is dialled
	hungUp bool     // local is closed, or being closed

	out outbox
	in  inbox

	windows, retained holding // of the host's budgets

	at      *attachment   // to the stream that carries the session; nil while there is none
	last    *attachment   // at, or the one before: its goroutines may still be leaving
	attempt uint64        // the newest that was seen
	granted time.Duration // how long it may be detached

	ended  bool   // both directions have ended and are acknowledged
	ending ending // of a session that is reset, or is about to be
	closed bool
	final  *Summary

	// The sweep's.
	warm     bool
	tepid    bool      // it is warm, and visited less often
	lastData time.Time // data went either way
	look     look      // at the TCP side

	// At P4: settle closes the session, which is reset or has ended, and leaves a tombstone. Its
	// caller holds the lock.
	settle      func()
	cancelDial  context.CancelFunc
	dialledFrom string      // the dialled connection's own address, if P5 is on this host
	origin      []byte      // of its open
	above       []string    // the targets of the sessions through which it came, the first one first
	waiting     bool        // it is counted among the detached
	expiry      *time.Timer // runs while it is

	// At P2.
	changed     chan struct{} // wakes the goroutine in Forward; capacity 1
	pending     wire.Stream   // of an attempt whose reply hasn't come
	pendingLink any
	stopping    bool // the process stops: the session waits for nothing that has yet to begin

	work sync.WaitGroup // the session's goroutines; none is added once it is closed

	// pump's own.
	reserved *buffer // what it reads into
	hint     int     // how much it expects
	most     int     // how much the next read may bring
	room     int     // how much the reservation has room for
	onRead   func() []byte
	onCancel func()
}

func newSession(h *host, server bool, token wire.Token, info Info) *session {
	now := time.Now()
	s := &session{
		host: h, server: server, token: token, info: info,
		lastData: now,
		hint:     smallBuffer - headroom,
	}
	s.info.ID = token.ConnectionID()
	s.info.State, s.info.Since, s.info.Opened = Opening, now, now
	s.cond.L = &s.mu
	s.windows.share = h.windows.share(s.peerName())
	s.retained.share = h.retained.share(s.peerName())
	s.in.window, s.in.limit = wire.InitialWindow, wire.InitialWindow
	s.out.limit = wire.InitialWindow
	s.onRead, s.onCancel = s.reserve, s.unreserve
	return s
}

// logger is for events of few sessions; notices are for those of many.
func (s *session) logger() *slog.Logger { return s.host.log.With("connection", s.info.ID) }

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
