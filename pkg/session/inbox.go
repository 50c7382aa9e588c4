package session

import (
	"errors"
	"io"
	"time"

	"ptthqd/pkg/session/internal/window"
	"ptthqd/pkg/wire"
)

// An inbox takes what the peer sends and delivers it to the TCP side. Its offsets are in this
// order, with limitSaid of the attachment:
//
//	acked ≤ received ≤ limitSaid ≤ limit
//
//	acked      delivered to TCP
//	received   read from streams
//	limitSaid  the limit that the peer was told
//	limit      the limit up to which there is room
type inbox struct {
	acked, received, limit uint64
	asked                  uint64 // the offset of the peer's last ping, which may wait for its ack
	fin                    bool   // the peer's direction has ended; the fin's offset is received-1
	window                 uint64 // limit is acked + window, or more if the window was larger

	queue      fifo[segment] // received and not delivered, in order
	queued     int
	delivering bool // a goroutine delivers the queue

	growth  window.Growth
	trim    uint64    // the size to which the window shrinks as allowed data comes; 0: it doesn't
	before  uint64    // the size before takeBackLocked; 0 if that took nothing
	keepsUp time.Time // when the TCP side will count as one that keeps up
}

// A segment is received data that waits for the TCP side.
type segment struct {
	buf      *buffer
	from, to int
	copied   bool // buf has only copied data, and more can be copied to it
}

func (in *inbox) drop() {
	for _, g := range in.queue.all() {
		g.buf.unref()
	}
	in.queue, in.queued = fifo[segment]{}, 0
}

// done reports whether everything, the fin included, is delivered.
func (in *inbox) done() bool { return in.fin && in.acked == in.received }

// readFrames reads frames until the stream ends. The goroutine that calls it is the frame reader;
// each attachment has one at most. The error is errEnded, errMove, a *protocolError, or how the
// stream was lost.
func (at *attachment) readFrames() error {
	s := at.session
	s.mu.Lock()
	if s.at != at {
		s.mu.Unlock()
		return errMove
	}
	at.reading = true
	s.mu.Unlock()
	err := at.read()
	s.mu.Lock()
	at.reading = false
	s.cond.Broadcast()
	s.mu.Unlock()
	return err
}

func (at *attachment) read() error {
	for {
		// idle: an attached session waits here, without a buffer.
		if _, err := at.stream.Peek(at.first[:]); err != nil {
			if errors.Is(err, io.EOF) {
				_, _ = at.stream.Read(at.first[:]) // QUIC forgets a stream when its end is read
			}
			return at.readError(err)
		}
		if err := at.readSome(); err != nil {
			return err
		}
	}
}

// readSome reads what has come, up to one buffer. It is a function of its own so that read, where
// idle sessions wait, needs little stack.
func (at *attachment) readSome() error {
	s := at.session
	b := takeBuffer(largeBuffer)
	n, err := at.stream.Read(b.b)
	var bad error
	if n > 0 {
		bad = at.take(b, b.b[:n])
	}
	s.mu.Lock()
	b.unref()
	s.sendUnlock(false)
	if bad == nil && err != nil {
		bad = at.readError(err)
	}
	return bad
}

// readError returns what an error of the stream means for the session.
func (at *attachment) readError(err error) error {
	s := at.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case errors.Is(err, io.EOF) && (s.ended || s.ending.reset()):
		return errEnded
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case isTimeout(err) && at.moving != "" && !s.ending.reset():
		return errMove
	case at.lost != nil:
		return at.lost
	}
	return err
}

// take takes the bytes p of buffer b. The caller keeps its reference to b.
func (at *attachment) take(b *buffer, p []byte) error {
	s := at.session
	now := time.Now()
	s.mu.Lock()
	if gap := now.Sub(at.lastIn); at.minRTT >= window.LongRTT && gap >= at.minRTT/4 {
		s.in.growth.Stood(gap)
	}
	at.lastIn = now
	mark(&at.line.heard)
	s.mu.Unlock()
	for len(p) > 0 {
		if at.left > 0 {
			n := int(min(at.left, uint64(len(p))))
			if err := at.takeData(b, p[:n]); err != nil {
				return err
			}
			at.left -= uint64(n)
			p = p[n:]
			continue
		}
		f, n, err := at.parse(p)
		if err != nil {
			return violated("%v", err)
		}
		p = p[n:]
		if at.partialLen > 0 {
			return nil // the rest of the header has yet to come
		}
		if err := at.takeFrame(f, now); err != nil {
			return err
		}
	}
	return nil
}

// parse decodes a frame header, of which a part may have come before.
func (at *attachment) parse(p []byte) (f wire.Frame, n int, err error) {
	if at.partialLen == 0 {
		if f, n, err = wire.ParseFrame(p); !errors.Is(err, io.ErrUnexpectedEOF) {
			return f, n, err
		}
	}
	had := at.partialLen
	at.partialLen += copy(at.partial[had:], p)
	f, n, err = wire.ParseFrame(at.partial[:at.partialLen])
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return f, len(p), nil
	}
	at.partialLen = 0
	return f, n - had, err
}

// takeFrame takes a frame; of a data frame only the header.
func (at *attachment) takeFrame(f wire.Frame, now time.Time) error {
	s := at.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != at {
		return errMove // the peer sends the rest again over the next stream
	}
	if err := s.ackLocked(f.Acked); err != nil {
		return err
	}
	if f.Limit != 0 {
		// The peer's limit is bounded, so that the sum can't overflow.
		if s.out.limit += f.Limit; s.out.limit-s.out.acked > 2*wire.MaxWindow {
			return violated("a window of %d bytes; %d is the most", s.out.limit-s.out.acked, wire.MaxWindow)
		}
		s.wakeReaderLocked()
	}
	switch f.Kind {
	case wire.FrameNone:
	case wire.FrameData:
		return at.takeDataHeaderLocked(f.Value, now)
	case wire.FrameFin:
		return at.takeFinLocked()
	case wire.FrameReset:
		return at.takeResetLocked(f.Value)
	case wire.FramePing:
		at.pongDue = true
		s.in.asked = s.in.received
	case wire.FramePong:
		at.takePongLocked(now)
	case wire.FrameYield:
		return at.takeYieldLocked(f.Value)
	}
	return nil
}

func (at *attachment) takeDataHeaderLocked(n uint64, now time.Time) error {
	s := at.session
	switch allowed := at.limitSaid - s.in.received; {
	case s.in.fin:
		return violated("data behind the end")
	case n > allowed:
		return violated("%d bytes where %d were allowed", n, allowed)
	}
	if s.in.received == 0 {
		s.learnPathLocked(now)
	}
	if s.in.received+n > at.pingLimit {
		at.pingLimit = 0 // see noteRTTLocked
	}
	at.left = n
	s.touchLocked()
	return nil
}

func (at *attachment) takeFinLocked() error {
	s := at.session
	switch {
	case s.in.fin:
		return violated("a second end")
	case s.in.received >= at.limitSaid:
		return violated("an end beyond the limit")
	}
	s.in.fin = true
	s.in.received++
	s.touchLocked()
	if s.local != nil && !s.in.delivering && s.in.queue.empty() {
		s.deliverFinLocked()
	}
	return nil
}

// takeResetLocked ends the session, as the peer has reset it. It returns errEnded: the end of this
// half of the stream confirms the reset.
func (at *attachment) takeResetLocked(code uint64) error {
	s := at.session
	if !s.ending.reset() {
		s.ending.how, s.ending.by = s.resetByPeer(code), s.peerName()
		if s.ending.how == OutcomeProtocol {
			s.foundBrokenLocked()
		}
		s.transitionLocked(Closing)
		how := abort
		if code == resetByGone {
			s.ending.reason = s.goneReason(!s.server)
			if s.in.done() {
				// The program may have yet to read what a reset of the TCP side would discard.
				how = closeConn
			}
		}
		s.dropDataLocked()
		s.hangUpLocked(how)
	}
	at.resetDue, at.resetSaid = false, true
	s.wakeLocked()
	return errEnded
}

func (at *attachment) takePongLocked(now time.Time) {
	if at.pingSent.IsZero() {
		return // no ping waits for a pong
	}
	s := at.session
	at.noteRTTLocked(now)
	at.line.note(max(now.Sub(at.pingSent), time.Microsecond))
	at.forgetPing()
	s.arrivedLocked(at.pingAt) // the peer reads in order
	if !at.writing {
		s.askLocked() // about what was sent since the ping
	}
}

// takeYieldLocked takes back the n bytes of the window that the peer yields.
func (at *attachment) takeYieldLocked(n uint64) error {
	s := at.session
	in := &s.in
	if allowed := at.limitSaid - in.received; n > allowed {
		return violated("%d bytes given back of %d", n, allowed)
	}
	in.limit -= n
	at.limitSaid -= n
	if left := max(in.limit-in.acked, wire.InitialWindow); left < in.window {
		s.windows.Give(int64(in.window - left))
		in.window = left
		in.trim = 0
		in.growth.Restart()
	}
	return nil
}

// resetByPeer returns the end of a session that the peer has reset with a code.
func (s *session) resetByPeer(code uint64) Outcome {
	switch code {
	case resetByStop:
		return OutcomeStopped
	case resetByProtocol:
		return OutcomeProtocol
	case resetByExpiry:
		return OutcomeExpired
	case resetByRemoval:
		return OutcomeRemoved
	}
	if s.server {
		return OutcomeResetByP1
	}
	return OutcomeResetByP5
}

// takeData delivers data, or queues it. takeDataHeaderLocked has checked it against the limit.
func (at *attachment) takeData(b *buffer, p []byte) error {
	s := at.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at != at {
		return errMove
	}
	in := &s.in
	in.received += uint64(len(p))
	if s.ending.reset() {
		return nil // discarded
	}
	if s.local != nil && !in.delivering && in.queue.empty() {
		// Only this goroutine adds to the queue, so no other one starts to deliver now.
		s.mu.Unlock()
		n, err := s.local.tryWrite(p)
		s.mu.Lock()
		s.deliveredLocked(n)
		if err != nil {
			s.resetLocked(s.resetByTCP(), resetByTCP)
		}
		p = p[n:]
	}
	if len(p) > 0 && !s.ending.reset() && !s.closed {
		s.enqueueLocked(b, p)
		s.deliverQueueLocked()
	}
	return nil
}

// enqueueLocked queues p, which is part of b. A piece of at least half a buffer stays where it is;
// smaller ones are copied together. So the queue takes at most about twice the size of its data.
func (s *session) enqueueLocked(b *buffer, p []byte) {
	in := &s.in
	in.queued += len(p)
	if len(p) >= len(b.b)/2 {
		from := cap(b.b) - cap(p)
		b.refs++
		in.queue.push(segment{buf: b, from: from, to: from + len(p)})
		return
	}
	for len(p) > 0 {
		var last *segment
		if !in.queue.empty() {
			last = in.queue.last()
		}
		if last == nil || !last.copied || last.to == len(last.buf.b) {
			in.queue.push(segment{buf: takeBuffer(len(p)), copied: true})
			last = in.queue.last()
		}
		n := copy(last.buf.b[last.to:], p)
		last.to += n
		p = p[n:]
	}
}

func (s *session) deliverQueueLocked() {
	if s.local == nil || s.in.delivering || s.in.queue.empty() {
		return
	}
	s.in.delivering = true
	s.work.Add(1)
	go s.deliver()
}

// deliver writes the queue to the TCP side, and returns when the queue is empty.
func (s *session) deliver() {
	defer s.work.Done()
	in := &s.in
	s.mu.Lock()
	for !in.queue.empty() && !s.closed {
		in.queue.first().copied = false // nothing is added while it is being written
		g := *in.queue.first()
		g.buf.refs++
		s.mu.Unlock()
		begun := time.Now()
		n, err := s.local.Write(g.buf.b[g.from:g.to])
		now := time.Now()
		s.mu.Lock()
		if waited := now.Sub(begun); waited >= standstill {
			in.keepsUp = now.Add(min(waited, maxProbation))
		}
		g.buf.unref()
		if !s.ending.reset() && !s.closed {
			s.deliveredLocked(n)
			if err != nil {
				s.resetLocked(s.resetByTCP(), resetByTCP)
			}
		}
		if err != nil || s.ending.reset() || s.closed {
			break
		}
		in.queued -= n
		g.buf.unref()
		in.queue.drop(1)
		if s.at != nil && s.at.ackDue {
			s.sendUnlock(false)
			s.mu.Lock()
		}
	}
	in.delivering = false
	if in.fin && !s.ending.reset() && !s.closed && in.queue.empty() && !in.done() {
		s.deliverFinLocked()
	}
	s.cond.Broadcast()
	s.sendUnlock(true)
}

// deliverFinLocked passes the peer's end on to the TCP side.
func (s *session) deliverFinLocked() {
	if !s.out.fin { // else closing the TCP side passes the end on
		if err := s.local.CloseWrite(); err != nil {
			s.resetLocked(s.resetByTCP(), resetByTCP)
			return
		}
	}
	s.in.acked++
	// As a rule this end's fin is about to follow, and takes the acknowledgement along. If not, the
	// sweep sends it.
	if s.at != nil {
		s.at.ackDue = s.at.ackDue || s.out.sent > s.out.read
	}
	s.closeTCPLocked()
	s.checkEndLocked()
}

// deliveredLocked notes that the TCP side has taken n bytes, and raises the limit. An
// acknowledgement is due when as many bytes were delivered or allowed as Growth.AckEvery returns,
// or when the peer has asked for it. Below that it rides on data or waits for the sweep.
func (s *session) deliveredLocked(n int) {
	in := &s.in
	in.acked += uint64(n)
	in.growth.Delivered(n, in.acked)
	if s.at != nil {
		s.growLocked()
	}
	if in.trim > 0 {
		s.trimLocked()
	}
	in.limit = max(in.limit, in.acked+in.window)
	if at := s.at; at != nil {
		askedOfLate := in.asked > 0 && in.acked < in.asked+2*wire.InitialWindow
		often := in.growth.AckEvery(in.window, at.minRTT, askedOfLate)
		at.ackDue = at.ackDue || in.acked-at.ackedSaid >= often || in.limit-at.limitSaid >= often ||
			at.ackedSaid < in.asked && in.asked <= in.acked
	}
}
