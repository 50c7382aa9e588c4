package session

import (
	"time"

	"ptthqd/pkg/wire"
)

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
