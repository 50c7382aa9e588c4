package session

import (
	"errors"
	"io"

	"ptthqd/pkg/wire"
)

// pump reads the TCP side until its end, and sends what it reads. It has a goroutine of its own.
func (s *session) pump() {
	for s.mayRead() {
		// idle: a session whose program is silent waits here, without a buffer.
		n, err := s.local.read(s.onRead, s.onCancel)
		s.mu.Lock()
		s.out.listening = false
		if n > 0 {
			s.appendLocked(n)
		}
		if err != nil {
			s.endOfTCPLocked(err)
		}
		s.sendUnlock(true)
		if err != nil {
			return
		}
	}
}

// prime reads what the TCP side has sent already, without waiting for more. So these bytes leave in
// the packet that opens the session.
func (s *session) prime() {
	if n := s.local.tryRead(s.onRead, s.onCancel); n > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.appendLocked(n)
	}
}

// firstFrame returns a frame with a copy of the first n bytes. n is 0 if none are here, or more
// than smallBuffer. The bytes count as sent from sentFirstLocked on.
func (s *session) firstFrame() (frame []byte, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out.pieces.empty() {
		return nil, 0
	}
	p := s.out.pieces.first()
	if n = p.end - p.start; n > smallBuffer {
		return nil, 0
	}
	f := wire.Frame{Kind: wire.FrameData, Value: uint64(n)}
	return append(f.Append(nil), p.buf.b[p.start:p.end]...), n
}

// sentFirstLocked notes that the first n bytes went with the opening.
func (s *session) sentFirstLocked(n int) {
	s.out.advance(n)
	s.at.paid = s.out.sent
	s.at.claim.Overdraw(int64(n))
}

// mayRead waits until more may be read from TCP: there is room in the window and in the budget, and
// what was read before is sent, or waits for a stream. It returns false if that will never be so.
func (s *session) mayRead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed || s.ending.reset():
			return false
		case s.roomLocked() && s.budgetLocked():
			s.out.short, s.out.listening = false, true
			return true
		}
		s.out.short = s.out.sent == s.out.read && s.out.read < s.out.limit
		if s.askLocked() {
			s.sendUnlock(true)
			s.mu.Lock()
			continue
		}
		s.cond.Wait()
	}
}

// roomLocked reports whether more may be read from TCP, apart from the budget.
func (s *session) roomLocked() bool {
	return s.out.read < s.boundLocked() && (s.at == nil || s.at.frozen || s.out.sent == s.out.read)
}

// boundLocked returns the offset up to which TCP may be read: the peer's limit, but at most the
// largest window of this process beyond what is acknowledged.
func (s *session) boundLocked() uint64 {
	return min(s.out.limit, s.out.acked+s.shared.maxWindow.Load())
}

// wakeReaderLocked makes mayRead look again if there is room. Where many sessions send, most wait
// for something else.
func (s *session) wakeReaderLocked() {
	if s.roomLocked() {
		s.cond.Broadcast()
	}
}

// A session that gets nothing of the budget reads at most floorPiece bytes at a time, and only
// while at most floorSent bytes are unacknowledged. That is the floor of 64 KiB and one piece, as
// up to a piece may have arrived after the last acknowledgement left. With the pieces that are
// acknowledged in part, the session retains at most floorRetained and one piece.
const (
	floorPiece    = wire.InitialWindow / 4
	floorSent     = wire.InitialWindow + floorPiece
	floorRetained = floorSent + 2*floorPiece
)

// budgetLocked reports whether the next read may happen. If the read may bring the retained bytes
// above the floor, budgetLocked takes the excess from the peer's share of the budget. A refused
// session may still read as floorPiece says; otherwise the sweep wakes it. Without a stream nothing
// is taken from the budget, as it might be held for as long as the session waits for a stream.
func (s *session) budgetLocked() bool {
	s.most = largeBuffer
	want := s.out.retained + int64(s.hint) - wire.InitialWindow - s.out.budgeted
	if want <= 0 {
		return true
	}
	if s.at != nil {
		if s.retained.Take(want) {
			s.out.budgeted += want
			return true
		}
		s.refusedLocked(&s.retained)
		s.warmLocked()
	}
	s.most = floorPiece
	return s.out.read-s.out.acked <= floorSent && s.out.retained <= floorRetained
}

// reserve returns memory for the next read: the rest of the last piece's buffer, if that is at
// least a quarter of the buffer, or else a buffer as large as the last read suggests. So retained
// data takes little more memory than it counts, whatever the size of the reads.
func (s *session) reserve() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.reserved
	if b == nil {
		if !s.out.pieces.empty() {
			if last := s.out.pieces.last().buf; len(last.b)-last.used-headroom >= len(last.b)/4 {
				b = last
				b.refs++
			}
		}
		if b == nil {
			b = takeBuffer(s.hint + headroom)
		}
		s.reserved = b
	}
	s.room = min(len(b.b)-b.used-headroom, s.most)
	if bound := s.boundLocked(); bound > s.out.read {
		s.room = int(min(uint64(s.room), bound-s.out.read))
	} else { // the bound was lowered while this read waited
		s.room = min(s.room, floorPiece)
	}
	start := b.used + headroom
	return b.b[start : start+s.room]
}

// unreserve gives the reservation back.
func (s *session) unreserve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reserved != nil {
		s.reserved.unref()
		s.reserved = nil
	}
}

// appendLocked makes the n bytes that were read into the reservation a piece.
func (s *session) appendLocked(n int) {
	b := s.reserved
	s.reserved = nil
	// A read that fills its memory makes the next buffer large; a read that would have fitted into
	// a small buffer makes it small again.
	if s.hint = smallBuffer - headroom; n >= min(s.hint, s.room) {
		s.hint = largeBuffer - headroom
	}
	if s.closed || s.ending.reset() {
		b.unref()
		return
	}
	start := b.used + headroom
	b.used = start + n
	s.out.pieces.push(piece{buf: b, start: start, end: start + n, offset: s.out.read})
	s.out.read += uint64(n)
	s.out.retained += int64(n) + pieceCost
	s.touchLocked()
}

func (s *session) endOfTCPLocked(err error) {
	if s.closed || s.ending.reset() {
		return
	}
	if errors.Is(err, io.EOF) {
		s.out.fin = true
		s.touchLocked() // from now on the sweep looks whether the TCP side is gone
		s.closeTCPLocked()
		return
	}
	s.resetLocked(s.resetByTCP(), resetByTCP)
}

// resetByTCP returns the end of a session whose TCP side was reset.
func (s *session) resetByTCP() Outcome {
	if s.server {
		return OutcomeResetByP5
	}
	return OutcomeResetByP1
}

// closeTCPLocked closes the TCP side once both of its directions are done. By then no goroutine
// reads or writes it, so the close doesn't wait, unlike that of hangUpLocked.
func (s *session) closeTCPLocked() {
	if s.out.fin && s.in.done() && s.local != nil && !s.hungUp {
		s.hungUp = true
		closeConn(s.local)
	}
}
