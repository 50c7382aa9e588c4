package session

import (
	"errors"
	"io"
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

	retained int64  // bytes in pieces, each with its cost
	budgeted int64  // of these taken from the process's budget
	paid     uint64 // up to here sending is covered by the link's quota

	short     bool // pump waits for acknowledgements, though the peer would take more
	listening bool // pump waits in a read, and hears of a reset
}

// onLink is how much of the link's quota the outbox holds: what may be sent, or
// was, and isn't known to have arrived.
func (o *outbox) onLink() uint64 {
	if o.paid <= o.known {
		return 0
	}
	return o.paid - o.known
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

// pump reads the TCP side until it ends, and sends what it reads. It is the
// session's second goroutine, and ends when the TCP side is closed; or, with true,
// when it is to go on in a fresh goroutine.
func (s *session) pump() (again bool) {
	for s.mayRead() {
		n, err := s.end.read(s.onRead, s.onCancel)
		s.mu.Lock()
		s.out.listening = false
		if err != nil && isTimeout(err) && s.resting {
			s.resting = false
			s.mu.Unlock()
			s.end.wakeBy(time.Time{})
			return true
		}
		if n > 0 {
			s.appendLocked(n)
		}
		if err != nil {
			s.endOfTCPLocked(err)
		}
		s.sendLocked(true)
		if err != nil {
			return false
		}
	}
	return false
}

// restLocked has pump, which waits and is likely to wait for long, go on in a fresh goroutine: sending has made its stack
// twice as large as waiting needs, and no stack shrinks that far (the runtime takes off half of one if less than a quarter is
// used, with 800 bytes of its own). That is 2 KiB of about 16.
func (s *session) restLocked() {
	if s.out.listening && !s.resting {
		s.resting = s.end.wakeBy(longAgo)
	}
}

// prime reads what the TCP side has sent already, without waiting for more, so
// that the first bytes go in the packet that opens the session.
func (s *session) prime() {
	if n := s.end.tryRead(s.onRead, s.onCancel); n > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.appendLocked(n)
	}
}

// firstFrame is a frame with the first n bytes, if they are here and short
// enough to be copied. They count as sent from sentFirstLocked on.
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
	s.out.paid = s.out.sent
	if s.quota != nil {
		s.quota.overdraw(int64(n))
	}
}

// mayRead waits until more may be read from TCP: there is room in the window
// and in the budget, and what was read before is on its way, or waits for a
// stream. It returns false when there will never be.
func (s *session) mayRead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.closed || s.reset != nil:
			return false
		case s.roomLocked() && s.budgetLocked():
			s.out.short, s.out.listening = false, true
			return true
		}
		s.out.short = s.out.sent == s.out.read && s.out.read < s.out.limit
		if s.askLocked() {
			s.sendLocked(true)
			s.mu.Lock()
			continue
		}
		s.cond.Wait()
	}
}

// roomLocked tells whether more may be read from TCP but for the budget.
func (s *session) roomLocked() bool {
	return s.out.read < s.boundLocked() && (s.stream == nil || s.frozen || s.out.sent == s.out.read)
}

// boundLocked is up to where TCP may be read: what the peer allows, and no more than the largest window of this process.
func (s *session) boundLocked() uint64 {
	return min(s.out.limit, s.out.acked+s.host.maxWindow.Load())
}

// wakeReaderLocked has mayRead look again, if there may be something for it. Where many send, most wait for something else.
func (s *session) wakeReaderLocked() {
	if s.roomLocked() {
		s.cond.Broadcast()
	}
}

// A session that has nothing of the budget reads floorPiece bytes at most at a time, while no more than floorSent bytes are not
// acknowledged: 64 KiB, the floor, and one piece, as that many may have arrived when the acknowledgement of what came before left.
// With the pieces that are acknowledged in part, it retains floorRetained at most, and one piece.
const (
	floorPiece    = wire.InitialWindow / 4
	floorSent     = wire.InitialWindow + floorPiece
	floorRetained = floorSent + 2*floorPiece
)

// budgetLocked makes sure that the next read, if it brings the retained bytes
// above the floor, is within the peer's share of the process's budget. Below the floor it always
// is. The sweep wakes who was refused. While there is no stream nothing is taken of the budget: what
// would be kept might be kept for as long as the session waits.
func (s *session) budgetLocked() bool {
	s.most = largeBuffer
	want := s.out.retained + int64(s.hint) - wire.InitialWindow - s.out.budgeted
	if want <= 0 {
		return true
	}
	if s.stream != nil {
		if s.retained.take(want) {
			s.out.budgeted += want
			return true
		}
		s.refusedLocked(&s.retained)
		s.warmLocked()
	}
	s.most = floorPiece
	return s.out.read-s.out.acked <= floorSent && s.out.retained <= floorRetained
}

// A holding is a session's part in the share that its peer has of a budget.
type holding struct {
	*share
	refused time.Time // when the session got nothing last
}

// refusedLocked notes that the session goes on without what it wanted of a budget. A session counts once while that lasts.
func (s *session) refusedLocked(h *holding) {
	now := time.Now()
	if now.Sub(h.refused) > shortFor && s.host.limitHit != nil {
		s.host.limitHit(h.budget.name)
	}
	h.refused = now
	if shortage, begins := h.refuse(now); begins && s.host.short != nil {
		s.host.short(shortage)
	}
}

// reserve finds memory for the next read: the rest of the last piece's buffer,
// if that is a quarter of it at least, or a buffer as large as the reads have
// been of late. So what is kept takes little more memory than it counts,
// whatever the size of the reads.
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
	} else { // it was lowered while this read was waited for
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
	// The first read that fills what it was given asks for large buffers; one
	// that would have fitted into a small one takes that back.
	if s.hint = smallBuffer - headroom; n >= min(s.hint, s.room) {
		s.hint = largeBuffer - headroom
	}
	if s.closed || s.reset != nil {
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
	if s.closed || s.reset != nil {
		return
	}
	if errors.Is(err, io.EOF) {
		s.out.fin = true
		s.touchLocked() // from now on the sweep looks whether the TCP side is there
		s.closeTCPLocked()
		return
	}
	s.resetLocked(s.resetByTCP(), resetByTCP)
}

// resetByTCP names the end when the TCP side is reset.
func (s *session) resetByTCP() End {
	if s.server {
		return EndResetByP5
	}
	return EndResetByP1
}

// closeTCPLocked closes the TCP side once both of its directions are done. Nobody reads or writes it any more by then, so
// unlike another close it waits for nobody.
func (s *session) closeTCPLocked() {
	if s.out.fin && s.in.done() && s.end != nil && !s.hungUp {
		s.hungUp = true
		closeConn(s.end)
	}
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
	held := s.out.onLink()
	s.out.known = max(s.out.known, before)
	if s.quota != nil {
		s.quota.give(int64(held - s.out.onLink()))
	}
}

// checkEndLocked notes when both directions have ended and been acknowledged.
func (s *session) checkEndLocked() {
	if !s.ended && s.reset == nil && s.out.done() && s.in.done() {
		s.ended = true
		s.setState(Closing)
		s.awaitEndLocked()
	}
}

// awaitEndLocked bounds, at P4, how long a stream lasts when the session has
// ended: the client has nothing more to do than to end its half.
func (s *session) awaitEndLocked() {
	if s.server && s.ended && s.stream != nil {
		_ = s.stream.SetReadDeadline(time.Now().Add(farewellTime))
	}
}

// kick lets the session write, if it has something to write.
func (s *session) kick() {
	s.mu.Lock()
	s.sendLocked(false)
}

// sendLocked takes the right to write and writes what there is. It unlocks the
// session. A caller that may wait writes here and now; for one that may not, a
// goroutine is started if the stream would make it wait.
func (s *session) sendLocked(mayWait bool) {
	if s.writing || s.frozen || s.stream == nil || !s.somethingLocked() {
		s.mu.Unlock()
		return
	}
	s.writing = true
	st := s.stream
	if mayWait {
		s.mu.Unlock()
		s.flush(st)
		return
	}
	if s.rest == nil && !s.dataLocked() {
		if !s.controlLocked() { // so only the last word is left, which waits for nobody
			s.goodbye = true
			s.mu.Unlock()
			_ = st.End(nil)
			s.wrote(st, nil, 0, nil)
			return
		}
		p := s.composeLocked()
		last := s.lastWordLocked()
		s.goodbye = s.goodbye || last
		if last && s.reset == nil { // all is done, and nobody waits for this
			s.mu.Unlock()
			s.wrote(st, p, 0, st.End(p))
			return
		}
		s.mu.Unlock()
		ok, err := st.TryWrite(p)
		if ok || err != nil {
			if last && err == nil {
				_ = st.End(nil) // in the same packet
			}
			s.wrote(st, p, 0, err)
			return
		}
		s.mu.Lock()
		s.goodbye = s.goodbye && !last
		s.rest = p // s.control is not composed anew before this is written
	}
	s.work.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.work.Done()
		s.flush(st)
	}()
}

// lastReadTime is how long a stream that can't be written to is still read.
const lastReadTime = time.Second

// flush writes until there is nothing to write or the stream is taken away.
// Its caller has taken the right to write.
func (s *session) flush(st wire.Stream) {
	for {
		s.mu.Lock()
		if s.stream != st || s.frozen || !s.somethingLocked() && !s.askLocked() {
			s.writing = false
			s.cond.Broadcast()
			s.mu.Unlock()
			return
		}
		var p []byte
		var held *buffer
		switch {
		case s.rest != nil:
			p, held = s.rest, s.restBuf
			s.rest, s.restBuf = nil, nil
		case s.pingDue || s.pongDue: // not behind data, which may never end
			p = s.composeLocked()
		case s.dataLocked():
			p, held = s.nextDataLocked()
		case s.controlLocked():
			p = s.composeLocked()
		default:
			s.goodbye = true
			s.mu.Unlock()
			_ = st.End(nil)
			continue
		}
		s.mu.Unlock()
		n, err := st.Write(p)
		if !s.wroteMore(st, held, p, n, err) {
			return
		}
	}
}

// wrote takes the outcome of a write that was the last one.
func (s *session) wrote(st wire.Stream, p []byte, n int, err error) {
	if s.wroteMore(st, nil, p, n, err) {
		s.mu.Lock()
		s.writing = false
		s.cond.Broadcast()
		s.sendLocked(false)
	}
}

// wroteMore takes the outcome of a write, and tells whether the writer may go
// on. If not, it has given back the right to write.
func (s *session) wroteMore(st wire.Stream, held *buffer, p []byte, n int, err error) bool {
	if err == nil && held == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.stream == st {
		if s.frozen && isTimeout(err) {
			s.rest, s.restBuf = p[n:], held
			held = nil
		} else {
			// The frame reader is to hear of it too, but not before it has
			// read a reply that may tell why.
			if s.lost == nil {
				s.lost = err
			}
			_ = st.SetReadDeadline(time.Now().Add(lastReadTime))
		}
	}
	if held != nil {
		held.unref()
	}
	if err != nil {
		s.writing = false
		s.cond.Broadcast()
	}
	return err == nil
}

// somethingLocked tells whether there is anything to write.
func (s *session) somethingLocked() bool {
	if s.lost != nil || s.closed {
		return false
	}
	return s.rest != nil || s.controlLocked() || s.dataLocked() || s.lastWordLocked()
}

// askLocked has a ping follow what was sent, when nothing more can be, if this session stops short of what its peer allows, or
// the link's quota is scarce: the peer acknowledges a part of a window only after a while, and this session or others wait for
// what it holds. A whole window it acknowledges by itself.
func (s *session) askLocked() bool {
	if s.lost != nil || s.closed || s.quota == nil || !s.pingSince.IsZero() || s.out.onLink() == 0 {
		return false
	}
	if !s.out.short && (s.out.sent >= s.out.limit || s.out.onLink() < quotaAskedFor || !s.quota.scarce()) {
		return false
	}
	s.pingLocked(time.Now())
	return true
}

// controlLocked tells whether there are frames without data to write.
func (s *session) controlLocked() bool {
	return s.pongDue || s.pingDue || s.resetDue || s.ackDue || s.yield > 0 || s.finDueLocked()
}

// lastWordLocked tells whether the stream's own end is to be written: P4's is
// what confirms the end of the session, and either's confirms a reset. P2's
// goes with its last acknowledgement.
func (s *session) lastWordLocked() bool {
	return !s.goodbye && (s.resetSaid || s.ended && s.in.ackedSaid == s.in.acked)
}

// dataLocked tells whether there is data to write.
func (s *session) dataLocked() bool {
	if s.resetDue || s.reset != nil || s.out.sent >= s.out.read {
		return false
	}
	if s.out.paid > s.out.sent {
		return true
	}
	p := s.out.at(s.out.sent)
	n := uint64(p.end-p.start) - (s.out.sent - p.offset)
	if s.out.sent+n > s.out.limit {
		return false // since a resume; no piece is larger than a window
	}
	if s.quota != nil && !s.quota.take(int64(n), s) {
		return false
	}
	s.out.paid = s.out.sent + n
	return true
}

// finDueLocked tells whether the fin can be sent now.
func (s *session) finDueLocked() bool {
	return s.out.fin && s.reset == nil && s.out.sent == s.out.read && s.out.limit > s.out.read
}

// nextDataLocked makes the next data frame, and holds the buffer that it is in.
func (s *session) nextDataLocked() ([]byte, *buffer) {
	p := s.out.at(s.out.sent)
	from := p.start + int(s.out.sent-p.offset)
	f := wire.Frame{Kind: wire.FrameData, Value: uint64(p.end - from)}
	f.Acked, f.Limit = s.ackIncreaseLocked()
	header := f.Append(s.header[:0])
	// What lies in front of the data is headroom or, right after a resume, data
	// that the peer is known to have.
	begin := from - len(header)
	copy(p.buf.b[begin:], header)
	s.out.advance(int(f.Value))
	p.buf.refs++
	return p.buf.b[begin:p.end], p.buf
}

// ackIncreaseLocked takes what there is to acknowledge and to allow.
func (s *session) ackIncreaseLocked() (acked, limit uint64) {
	in := &s.in
	acked, limit = in.acked-in.ackedSaid, in.limit-in.limitSaid
	in.ackedSaid, in.limitSaid = in.acked, in.limit
	s.ackDue = false
	return acked, limit
}

// composeLocked makes the frames that carry no data.
func (s *session) composeLocked() []byte {
	p := s.control[:0]
	add := func(f wire.Frame) {
		if len(p) == 0 {
			f.Acked, f.Limit = s.ackIncreaseLocked()
		}
		p = f.Append(p)
	}
	if s.pongDue {
		s.pongDue = false
		add(wire.Frame{Kind: wire.FramePong})
	}
	if s.pingDue {
		s.pingDue = false
		s.pingSent, s.pingAt = time.Now(), s.out.sent
		add(wire.Frame{Kind: wire.FramePing})
		s.pingLimit = s.in.limitSaid
	}
	switch {
	case s.resetDue:
		s.resetDue, s.resetSaid = false, true
		add(wire.Frame{Kind: wire.FrameReset, Value: s.resetCode})
	case s.finDueLocked():
		s.out.advance(1)
		add(wire.Frame{Kind: wire.FrameFin})
	case s.yield > 0:
		add(wire.Frame{Kind: wire.FrameYield, Value: s.yield})
		s.yield = 0
	}
	if len(p) == 0 {
		add(wire.Frame{Kind: wire.FrameNone})
	}
	return p
}
