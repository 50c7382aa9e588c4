package session

import (
	"sort"
	"time"

	"ptthqd/pkg/wire"
)

// An outbox keeps what the TCP side has sent until the peer acknowledges it.
//
//	known ≤ acked … the peer has delivered
//	acked ≤ sent  … written to the current stream
//	sent ≤ read   … read from TCP
//	read ≤ limit
type outbox struct {
	pieces fifo[piece] // what isn't acknowledged yet, in order; the first may be so in part
	acked  uint64
	known  uint64 // the peer is known to have received everything before this
	sent   uint64
	most   uint64 // the highest that sent has been, on any stream
	read   uint64
	limit  uint64
	fin    bool // the TCP side has ended; the fin's offset is read

	retained int64 // bytes in pieces, each with its cost
	budgeted int64 // of these taken from the process's budget

	short     bool // pump waits for acknowledgements, though the peer would take more
	listening bool // pump waits in a read, and hears of a reset
}

// A piece is data that was read in one go, with headroom in front of it.
type piece struct {
	buf        *buffer
	start, end int
	offset     uint64
}

// pieceCost is what a piece takes besides its data, in bytes: its headroom, and
// its place in the outbox.
const pieceCost = headroom + 40

func (o *outbox) drop() {
	for _, p := range o.pieces.all() {
		p.buf.unref()
	}
	o.pieces, o.retained = fifo[piece]{}, 0
}

// done tells whether everything, the end included, is acknowledged.
func (o *outbox) done() bool { return o.fin && o.acked == o.read+1 }

// advance counts n more bytes as sent.
func (o *outbox) advance(n int) {
	o.sent += uint64(n)
	o.most = max(o.most, o.sent)
}

// at finds the piece that holds the offset, which is between acked and read.
func (o *outbox) at(offset uint64) *piece {
	if last := o.pieces.last(); offset >= last.offset { // as a rule
		return last
	}
	all := o.pieces.all()
	return &all[sort.Search(len(all), func(i int) bool { return all[i].offset > offset })-1]
}

// ackLocked takes the peer's word that n more bytes are delivered.
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
		s.warmLocked() // the sweep may act on a TCP side that is gone
	}
	if over := o.budgeted - max(0, o.retained-wire.InitialWindow); over > 0 {
		s.retained.give(over)
		o.budgeted -= over
	}
	s.checkEndLocked()
	s.wakeReaderLocked()
	return nil
}

// arrivedLocked notes that the peer has received everything before an offset,
// and gives back the quota that was taken for it.
func (s *session) arrivedLocked(before uint64) {
	held := s.inFlightLocked()
	s.out.known = max(s.out.known, before)
	if s.at != nil {
		s.at.quota.give(int64(held - s.inFlightLocked()))
	}
}

// checkEndLocked notes when both directions have ended and been acknowledged.
func (s *session) checkEndLocked() {
	if !s.ended && !s.ending.reset() && s.out.done() && s.in.done() {
		s.ended = true
		s.transitionLocked(Closing)
		s.awaitEndLocked()
	}
}

// awaitEndLocked bounds, at P4, how long a stream lasts when the session has
// ended: the client has nothing more to do than to end its half.
func (s *session) awaitEndLocked() {
	if s.server && s.ended && s.at != nil {
		_ = s.at.stream.SetReadDeadline(time.Now().Add(farewellTime))
	}
}
