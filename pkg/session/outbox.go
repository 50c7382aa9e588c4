package session

import (
	"sort"
	"time"

	"ptthqd/pkg/wire"
)

// An outbox keeps what the TCP side has sent until the peer acknowledges it. Its offsets are in
// this order, but a resume may lower limit below read, and the fin adds one to sent and acked:
//
//	acked ≤ known ≤ sent ≤ read ≤ limit
//
//	acked    the peer has delivered
//	arrived  the peer is known to have received
//	sent     written to the current stream
//	read     read from TCP
//	limit    allowed by the peer
type outbox struct {
	pieces      fifo[piece] // not acknowledged yet, in order; a part of the first may be
	acked       uint64
	arrived     uint64
	sent        uint64
	highestSent uint64 // the highest that sent has been, on any stream
	read        uint64
	limit       uint64
	fin         bool // the TCP side has ended; the fin's offset is read

	retained int64 // bytes of pieces, with pieceCost for each
	budgeted int64 // of these, what is taken from the process's budget

	short     bool // pump waits for acknowledgements, though the peer would take more
	listening bool // pump waits in a read, and would learn of a reset
}

// A piece is the data of one read, with headroom in front of it.
type piece struct {
	buf        *buffer
	start, end int
	offset     uint64
}

// pieceCost is what a piece takes besides its data, in bytes: headroom, and its place in the
// outbox.
const pieceCost = headroom + 40

func (o *outbox) drop() {
	for _, p := range o.pieces.all() {
		p.buf.unref()
	}
	o.pieces, o.retained = fifo[piece]{}, 0
}

// done reports whether everything, the fin included, is acknowledged.
func (o *outbox) done() bool { return o.fin && o.acked == o.read+1 }

// advance counts n more offsets as sent.
func (o *outbox) advance(n int) {
	o.sent += uint64(n)
	o.highestSent = max(o.highestSent, o.sent)
}

// at returns the piece that holds an offset. The offset is from acked to read.
func (o *outbox) at(offset uint64) *piece {
	if last := o.pieces.last(); offset >= last.offset { // as a rule
		return last
	}
	all := o.pieces.all()
	return &all[sort.Search(len(all), func(i int) bool { return all[i].offset > offset })-1]
}

// ackLocked takes the peer's acknowledgement of n more bytes.
func (s *session) ackLocked(n uint64) error {
	if n == 0 {
		return nil
	}
	o := &s.out
	if n > o.sent-o.acked {
		return violated("%d bytes acknowledged of %d that were sent", n, o.sent-o.acked)
	}
	o.acked += n
	s.arrivedLocked(o.acked)
	gone := 0
	for _, p := range o.pieces.all() {
		if p.offset+uint64(p.end-p.start) > o.acked {
			break
		}
		o.retained -= int64(p.end-p.start) + pieceCost
		p.buf.unref()
		gone++
	}
	o.pieces.drop(gone)
	if o.done() {
		s.warmLocked() // now the sweep may end a session whose TCP side is gone
	}
	if over := o.budgeted - max(0, o.retained-wire.InitialWindow); over > 0 {
		s.retained.Give(over)
		o.budgeted -= over
	}
	s.checkEndLocked()
	s.wakeReaderLocked()
	return nil
}

// arrivedLocked notes that the peer has received everything before an offset, and gives back the
// quota that was taken for it.
func (s *session) arrivedLocked(before uint64) {
	held := s.inFlightLocked()
	s.out.arrived = max(s.out.arrived, before)
	if s.at != nil {
		s.at.claim.Give(int64(held - s.inFlightLocked()))
	}
}

// checkEndLocked notes the end of the session if both directions have ended and are acknowledged.
func (s *session) checkEndLocked() {
	if !s.ended && !s.ending.reset() && s.out.done() && s.in.done() {
		s.ended = true
		s.transitionLocked(Closing)
		s.awaitEndLocked()
	}
}

// awaitEndLocked bounds the life of the stream at P4, once the session has ended, to farewellTime:
// the client has only its half of the stream left to end.
func (s *session) awaitEndLocked() {
	if s.server && s.ended && s.at != nil {
		_ = s.at.stream.SetReadDeadline(time.Now().Add(farewellTime))
	}
}
