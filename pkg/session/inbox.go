package session

import (
	"errors"
	"io"
	"time"

	"ptthqd/pkg/wire"
)

// An inbox takes what the peer sends and delivers it to the TCP side.
//
//	acked ≤ received     … delivered to TCP
//	received ≤ limitSaid … read from streams
//	limitSaid ≤ limit    … what the peer was told; what there is room for
type inbox struct {
	acked, received, limit uint64
	ackedSaid, limitSaid   uint64 // what the peer was told, on the current stream
	asked                  uint64 // the peer's last ping came at this offset: it may wait for the acknowledgement; 0 if none has come
	fin                    bool   // the peer's direction has ended; its offset is received-1
	window                 uint64 // limit is acked plus this, or was when it was larger

	queue      fifo[segment] // received and not delivered, in order
	queued     int
	delivering bool // a goroutine delivers the queue

	// The growth of the window is decided once a window's worth is delivered; at the start of a long path, within each round trip.
	epoch      time.Time
	epochBytes uint64
	epochFrom  uint64        // where it begins to count: what lies before was allowed by a smaller window, and says nothing of this one
	stood      time.Duration // how long nothing came in the epoch
	lasts      time.Duration // for how long the window lasted of late, on a short path; 0 if it isn't known
	settled    bool          // the window has once been larger than the path could use
	trim       uint64        // what the window shrinks to, as what it has allowed comes; 0 if it doesn't
	before     uint64        // how large it was before it was taken back, for the next stream; 0 if it wasn't
	rate       float64       // in bytes a nanosecond, when the window last grew; until it is settled, in the last epoch
	keepsUp    time.Time     // from when on the TCP side is one that keeps up
}

// A segment is received data that waits for the TCP side.
type segment struct {
	buf      *buffer
	from, to int
	copied   bool // the buffer has only what was copied to it: more can follow
}

func (in *inbox) drop() {
	for _, g := range in.queue.all() {
		g.buf.unref()
	}
	in.queue, in.queued = fifo[segment]{}, 0
}

// done tells whether everything, the end included, is delivered.
func (in *inbox) done() bool { return in.fin && in.acked == in.received }

// read reads frames from st until it ends. Its caller has set reading. The
// error is errEnded, errMove, a *protocolError, or how the stream was lost.
func (s *session) read(st wire.Stream) error {
	for {
		if _, err := st.Peek(s.one[:]); err != nil {
			if errors.Is(err, io.EOF) {
				_, _ = st.Read(s.one[:]) // QUIC forgets a stream when its end is read, not when it is peeked at
			}
			return s.readError(err)
		}
		if err := s.readSome(st); err != nil {
			return err
		}
	}
}

// readSome is read of what has come, up to a buffer of it: not in read, which is where idle sessions wait, and should need
// little stack.
//
//go:noinline
func (s *session) readSome(st wire.Stream) error {
	b := takeBuffer(largeBuffer)
	n, err := st.Read(b.b)
	var bad error
	if n > 0 {
		bad = s.take(b, b.b[:n])
	}
	s.mu.Lock()
	b.unref()
	s.sendLocked(false)
	if bad == nil && err != nil {
		bad = s.readError(err)
	}
	return bad
}

// readError says what an error of the stream means for the session.
func (s *session) readError(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if errors.Is(err, io.EOF) {
		if s.ended || s.reset != nil {
			return errEnded
		}
		return io.ErrUnexpectedEOF
	}
	if isTimeout(err) && s.moving != "" && s.reset == nil {
		return errMove
	}
	if s.lost != nil {
		return s.lost
	}
	return err
}

// take takes the bytes p of buffer b, which is its caller's.
func (s *session) take(b *buffer, p []byte) error {
	now := time.Now()
	s.mu.Lock()
	if gap := now.Sub(s.lastIn); s.minRTT >= minStandRTT && gap >= s.minRTT/4 {
		s.in.stood += gap
	}
	s.lastIn = now
	if s.line != nil {
		mark(&s.line.heard)
	}
	s.mu.Unlock()
	for len(p) > 0 {
		if s.left > 0 {
			n := int(min(s.left, uint64(len(p))))
			if err := s.takeData(b, p[:n]); err != nil {
				return err
			}
			s.left -= uint64(n)
			p = p[n:]
			continue
		}
		f, n, err := s.parse(p)
		if err != nil {
			return violated("%v", err)
		}
		p = p[n:]
		if s.carried > 0 {
			return nil // the rest of the header has yet to come
		}
		if err := s.takeFrame(f, now); err != nil {
			return err
		}
	}
	return nil
}

// parse decodes a frame header, of which a part may have come before.
func (s *session) parse(p []byte) (f wire.Frame, n int, err error) {
	if s.carried == 0 {
		if f, n, err = wire.ParseFrame(p); !errors.Is(err, io.ErrUnexpectedEOF) {
			return f, n, err
		}
	}
	had := s.carried
	s.carried += copy(s.carry[had:], p)
	f, n, err = wire.ParseFrame(s.carry[:s.carried])
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return f, len(p), nil
	}
	s.carried = 0
	return f, n - had, err
}

// takeFrame takes a frame's header.
func (s *session) takeFrame(f wire.Frame, now time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ackLocked(f.Acked); err != nil {
		return err
	}
	if f.Limit != 0 {
		// What the peer can promise is bounded, so that the sum can't run over.
		if s.out.limit += f.Limit; s.out.limit-s.out.acked > 2*wire.MaxWindow {
			return violated("a window of %d bytes; %d is the most", s.out.limit-s.out.acked, wire.MaxWindow)
		}
		s.wakeReaderLocked()
	}
	switch f.Kind {
	case wire.FrameNone:
	case wire.FrameData:
		if s.in.fin {
			return violated("data behind the end")
		}
		if f.Value > s.in.limitSaid-s.in.received {
			return violated("%d bytes where %d were allowed", f.Value, s.in.limitSaid-s.in.received)
		}
		if s.in.received == 0 {
			s.learnPathLocked(now)
		}
		if s.in.received+f.Value > s.pingLimit {
			s.pingLimit = 0 // see noteRTTLocked
		}
		s.left = f.Value
		s.touchLocked()
	case wire.FrameFin:
		if s.in.fin {
			return violated("a second end")
		}
		if s.in.received >= s.in.limitSaid {
			return violated("an end beyond the limit")
		}
		s.in.fin = true
		s.in.received++
		s.touchLocked()
		if s.end != nil && !s.in.delivering && s.in.queue.empty() {
			s.deliverFinLocked()
		}
	case wire.FrameReset:
		why := s.resetByPeer(f.Value)
		if s.reset == nil {
			s.reset, s.endedBy = &why, s.peerName()
			if why == EndProtocol {
				s.foundBrokenLocked()
			}
			s.setState(Closing)
			how := abort
			if f.Value == resetByGone {
				s.endReason = s.goneReason(!s.server)
				if s.in.done() {
					how = closeConn // it has all, and may not have read it yet: a reset could take that away
				}
			}
			s.dropDataLocked()
			s.hangUpLocked(how)
		}
		s.resetDue, s.resetSaid = false, true // the end of our stream confirms it
		s.wakeLocked()
		return errEnded
	case wire.FramePing:
		s.pongDue = true
		s.in.asked = s.in.received
	case wire.FramePong:
		if !s.pingSent.IsZero() {
			s.noteRTTLocked(now)
			if s.line != nil {
				s.line.note(max(now.Sub(s.pingSent), time.Microsecond))
			}
			s.pingSince, s.pingSent = time.Time{}, time.Time{}
			s.arrivedLocked(s.pingAt) // the peer reads in order
			if !s.writing {
				s.askLocked() // for what was sent since
			}
		}
	case wire.FrameYield:
		in := &s.in
		if f.Value > in.limitSaid-in.received {
			return violated("%d bytes given back of %d", f.Value, in.limitSaid-in.received)
		}
		in.limit -= f.Value
		in.limitSaid -= f.Value
		window := max(in.limit-in.acked, wire.InitialWindow)
		if window < in.window {
			s.windows.give(int64(in.window - window))
			in.window = window
			in.settled, in.trim, in.rate, in.epochFrom = false, 0, 0, 0
		}
	}
	return nil
}

// resetByPeer names the end when the other end has sent a reset.
func (s *session) resetByPeer(code uint64) End {
	switch code {
	case resetByStop:
		return EndStopped
	case resetByProtocol:
		return EndProtocol
	case resetByExpiry:
		return EndExpired
	case resetByRemoval:
		return EndRemoved
	}
	if s.server {
		return EndResetByP1
	}
	return EndResetByP5
}

// takeData takes data that the limit has been checked for.
func (s *session) takeData(b *buffer, p []byte) error {
	s.mu.Lock()
	in := &s.in
	in.received += uint64(len(p))
	if s.reset != nil {
		s.mu.Unlock()
		return nil // discarded
	}
	direct := s.end != nil && !in.delivering && in.queue.empty()
	s.mu.Unlock()
	if direct {
		// Only this goroutine adds to the queue, so nobody else delivers now.
		n, err := s.end.tryWrite(p)
		s.mu.Lock()
		s.deliveredLocked(n)
		if err != nil {
			s.resetLocked(s.resetByTCP(), resetByTCP)
		}
		p = p[n:]
		if err != nil || len(p) == 0 {
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.reset != nil || s.closed {
		return nil
	}
	s.enqueueLocked(b, p)
	s.deliverQueueLocked()
	return nil
}

// enqueueLocked lets p, which is part of b, wait. A large piece stays where it
// is; small ones are copied together, so that what waits takes at most about
// twice its size.
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
	if s.end == nil || s.in.delivering || s.in.queue.empty() {
		return
	}
	s.in.delivering = true
	s.work.Add(1)
	go s.deliver()
}

// deliver writes what waits to the TCP side, and ends when nothing does.
func (s *session) deliver() {
	defer s.work.Done()
	in := &s.in
	s.mu.Lock()
	for !in.queue.empty() && !s.closed {
		in.queue.first().copied = false // what is being written isn't added to
		g := *in.queue.first()
		g.buf.refs++
		s.mu.Unlock()
		begun := time.Now()
		n, err := s.end.Write(g.buf.b[g.from:g.to])
		now := time.Now()
		s.mu.Lock()
		if waited := now.Sub(begun); waited >= standstill {
			in.keepsUp = now.Add(min(waited, maxProbation))
		}
		g.buf.unref()
		if s.reset == nil && !s.closed {
			s.deliveredLocked(n)
			if err != nil {
				s.resetLocked(s.resetByTCP(), resetByTCP)
			}
		}
		if err != nil || s.reset != nil || s.closed {
			break
		}
		in.queued -= n
		g.buf.unref()
		in.queue.drop(1)
		if s.ackDue {
			s.sendLocked(false)
			s.mu.Lock()
		}
	}
	in.delivering = false
	if in.fin && s.reset == nil && !s.closed && in.queue.empty() && !in.done() {
		s.deliverFinLocked()
	}
	s.cond.Broadcast()
	s.sendLocked(true)
}

// deliverFinLocked passes the peer's end on to the TCP side.
func (s *session) deliverFinLocked() {
	if !s.out.fin { // else closing it says so
		if err := s.end.CloseWrite(); err != nil {
			s.resetLocked(s.resetByTCP(), resetByTCP)
			return
		}
	}
	s.in.acked++
	// Our own fin is about to follow, as a rule, and takes the acknowledgement along; if not, the sweep sends it.
	s.ackDue = s.ackDue || s.out.sent > s.out.read
	s.closeTCPLocked()
	s.checkEndLocked()
}

// deliveredLocked notes that the TCP side has taken n bytes, and decides what
// to allow and when to say so, as ackEveryLocked tells; below that an
// acknowledgement rides on data or waits for the sweep.
func (s *session) deliveredLocked(n int) {
	in := &s.in
	in.acked += uint64(n)
	if in.acked > in.epochFrom || !in.settled {
		in.epochBytes += uint64(n)
	} else {
		in.epoch, in.stood = time.Now(), 0
	}
	if !s.startLocked() && in.epochBytes >= in.window {
		s.growLocked()
	}
	if in.trim > 0 {
		s.trimLocked()
	}
	in.limit = max(in.limit, in.acked+in.window)
	if often := s.ackEveryLocked(); in.acked-in.ackedSaid >= often || in.limit-in.limitSaid >= often {
		s.ackDue = true
	}
	if in.ackedSaid < in.asked && in.asked <= in.acked {
		s.ackDue = true
	}
}
