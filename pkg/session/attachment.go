package session

import (
	"time"

	"ptthqd/pkg/session/internal/share"
	"ptthqd/pkg/wire"
)

// An attachment has what a session needs for as long as one stream carries it. attachLocked makes
// one, and detachLocked drops it; it is never used again. A goroutine that works on a stream holds
// the stream's attachment, and leaves when the session has another one or none.
//
// The session's lock guards all fields but those of the frame reader and of the writer.
type attachment struct {
	session *session
	stream  wire.Stream
	route   Route
	line    *line
	claim   share.Claim // in the quota of its link and peer
	paid    uint64      // the offset up to which the quota covers the outbox's data

	reading bool   // the frame reader is at work
	writing bool   // a goroutine has the right to write; no other one writes to the stream
	frozen  bool   // no goroutine may take the right to write
	moving  string // why the session is to leave the stream; empty if it isn't
	lost    error  // the first error that told of the stream's loss

	unsent    []byte  // what a writer has left unwritten; it goes before anything else
	unsentBuf *buffer // holds unsent; nil if that is in control

	// The offsets that the peer was told over this stream.
	ackedSaid, limitSaid uint64

	// What is to be written besides data.
	ackDue   bool
	pingDue  bool
	pongDue  bool
	yield    uint64 // bytes of the peer's window to give back
	resetDue bool   // a reset frame

	resetSaid bool // a reset frame was composed, or the peer's has come
	goodbye   bool // this half of the stream is ended, or being ended

	// Liveness and round trips.
	lastIn     time.Time     // when something arrived last
	pingSince  time.Time     // since when a pong is due; zero if none is
	pingSent   time.Time     // when that ping was composed; zero while it waits for the writer
	pingAt     uint64        // the offset sent before that ping
	pingLimit  uint64        // the limit said with that ping or before; 0: its pong is no measure
	minRTT     time.Duration // the shortest round trip of a ping; 0 if unknown
	nextProbe  time.Time     // no probe goes before
	waitsSince time.Duration // process time since when sweeps see no answer; 0 if none has looked

	// For the frame reader.
	first      [1]byte                   // the byte that it peeks at while the stream is idle
	partial    [wire.MaxFrameHeader]byte // the part of a header that has come
	partialLen int
	left       uint64 // bytes of the current data frame that have yet to come

	// For the writer.
	header  [wire.MaxFrameHeader]byte
	control [4 * wire.MaxFrameHeader]byte
}

// attachLocked makes st the session's stream. Data goes on from the offset sent, before which the
// peer has received everything. No goroutine may read or write st before.
func (s *session) attachLocked(st wire.Stream, r Route, sent uint64) *attachment {
	if s.at != nil {
		s.detachLocked()
	}
	peer := s.peerName()
	at := &attachment{
		session: s, stream: st, route: r,
		line: s.shared.lines.acquire(r, peer, s.shared.clock.Now()),
		paid: sent, ackedSaid: s.in.acked, limitSaid: s.in.limit,
		resetDue: s.ending.reset(),
		lastIn:   time.Now(),
	}
	if r.Shared {
		at.claim.Join(&s.shared.links, r.Link, peer, s)
	}
	s.at, s.last = at, at
	s.info.Relay, s.info.Link = r.Relay, r.Link
	s.out.arrived = max(s.out.arrived, sent)
	s.out.sent = sent
	s.awaitEndLocked()
	s.warmLocked()
	s.cond.Broadcast()
	return at
}

// detachLocked drops the attachment, if there is one. The caller ends the stream.
func (s *session) detachLocked() {
	at := s.at
	if at == nil {
		return
	}
	at.claim.Leave(int64(s.inFlightLocked()))
	s.shared.lines.release(at.route.Link, s.peerName())
	if at.unsentBuf != nil {
		at.unsentBuf.unref()
	}
	at.unsent, at.unsentBuf = nil, nil
	s.at = nil
	s.shared.cool(s)
	s.cond.Broadcast()
}

// busyLocked reports whether a goroutine reads or writes the session's stream, or its last one.
func (s *session) busyLocked() bool { return s.last != nil && (s.last.reading || s.last.writing) }

// awaitWriterLocked waits until no goroutine writes to the session's stream, which was reset or
// frozen.
func (s *session) awaitWriterLocked() {
	for s.last != nil && s.last.writing {
		s.cond.Wait()
	}
}

// inFlightLocked returns how many bytes of the link's quota the session holds: those that are paid
// for and not known to have arrived.
func (s *session) inFlightLocked() uint64 {
	if s.at == nil || s.at.paid <= s.out.arrived {
		return 0
	}
	return s.at.paid - s.out.arrived
}
