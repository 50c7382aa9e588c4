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

// ackEveryLocked is after how many bytes the peer hears what it may send: a quarter
// of a small window, but of a large one less, so that all of it can be used. On a
// short path a window is worth little, and what an acknowledgement costs (a packet
// and a wake-up at three nodes) counts: there it is half of the window, up to 128 KiB;
// and where a window lasts for many round trips, as many share what there is, most of it. A peer that asks on a long path may
// have stopped short of its window, with no more than the floor under way: for a while it hears of each quarter of that. Not while the
// window still grows: at the beginning of a bulk transfer that cost a sixth of the first 0.3 s at 200 Mbit/s and 40 ms.
func (s *session) ackEveryLocked() uint64 {
	window := s.in.window
	switch {
	case s.minRTT == 0 || s.minRTT >= minStandRTT:
	case s.in.lasts >= slowWindow && window == wire.InitialWindow:
		return window
	default:
		return min(window/2, max(window/16, 128<<10))
	}
	if s.in.settled && s.in.asked > 0 && s.in.acked < s.in.asked+2*wire.InitialWindow {
		return wire.InitialWindow / 4
	}
	return min(window/4, max(window/16, 32<<10))
}

// startLocked lets the window of a long path follow QUIC's own start, as it must not hold that up, and tells whether it is
// in charge. QUIC doubles within the round trip of each link, which is a part of the session's. So the window grows as
// soon as half of it has come within a round trip, and not when all has: to twice what a round trip carries at the rate of that half.
// It is doubled at most, as QUIC's start loses what it sends too early, or made fourfold where that is over. With three times
// what the path holds, fourfold, it lost 740 packets on links of 200 Mbit/s with a queue of 50 ms.
func (s *session) startLocked() bool {
	in := &s.in
	if in.settled || in.epochBytes < in.window/4 || 0 < s.minRTT && s.minRTT < minStandRTT {
		return false
	}
	now := time.Now()
	rtt := s.growthRTTLocked(now)
	known := rtt > 0
	if !known {
		rtt = s.route.RTT // a part of it
	}
	if rtt < minStandRTT {
		return false
	}
	if s.minRTT == 0 {
		s.probeLocked(now)
	}
	if in.epoch.IsZero() {
		in.epoch, in.epochBytes, in.stood = now, 0, 0 // nobody knows how long that took
		return true
	}
	elapsed := max(now.Sub(in.epoch), minEpoch)
	carries := uint64(float64(in.epochBytes) * float64(rtt) / float64(elapsed)) // a round trip, at this rate
	if min(carries, in.epochBytes) > in.window/2 && s.mayGrowLocked(now) {
		most := 2 * in.window
		if s.host.paths.filled(s.pathLocked(), s.route.Link) {
			most *= 2
		}
		s.widenLocked(min(2*carries, most)-in.window, rtt)
	}
	if elapsed >= rtt {
		s.judgeLocked(now, rtt, known)
	}
	return true
}

// judgeLocked ends a round trip of the start. Where no more has come in it than in the last one, the path is full, and the window
// is trimmed to 1.3 times what the path has shown to hold; but not while there still comes what a smaller window has allowed.
func (s *session) judgeLocked(now time.Time, rtt time.Duration, known bool) {
	in := &s.in
	elapsed, bytes, stood, last := now.Sub(in.epoch), in.epochBytes, in.stood, in.rate
	in.epoch, in.epochBytes, in.stood = now, 0, 0
	in.rate = float64(bytes) / float64(elapsed)
	switch {
	case !known || elapsed > 32*rtt || !s.mayGrowLocked(now):
		in.rate = 0 // the peer has little to send, or the TCP side is slow, which says nothing of the path
	case in.rate < 1.2*last && in.acked-bytes >= in.epochFrom:
		in.settled = true
		s.host.paths.fill(s.pathLocked(), s.route.Link)
		least := uint64(wire.InitialWindow)
		if stood >= elapsed/5 {
			least = lossyWindow
		}
		if trim := max(uint64(1.3*in.rate*float64(rtt)), least); trim < in.window {
			in.trim = trim
		}
		return
	}
	s.probeLocked(now)
}

// mayGrowLocked tells whether the TCP side keeps up, and there is more to be had.
// Who has stood still keeps up only after a while: a kernel lets a slow reader's
// connection be written to in bursts of megabytes, which say nothing of the reader.
func (s *session) mayGrowLocked(now time.Time) bool {
	in := &s.in
	return in.trim == 0 && in.queued <= int(in.window/4) && in.window < s.host.maxWindow.Load() && !now.Before(in.keepsUp) &&
		s.stream != nil && s.reset == nil && !s.closed
}

// growLocked makes the window larger if the path can use it, the TCP side keeps
// up, and the budget allows: by half while what is delivered in a round trip is
// most of it, or half of it and the last time has paid, as on paths whose round
// trips vary. More would be a queue, in which everything beside it waits.
func (s *session) growLocked() {
	in := &s.in
	now := time.Now()
	elapsed, bytes := now.Sub(in.epoch), in.epochBytes
	first := in.epoch.IsZero()
	if !first && elapsed < minEpoch {
		return // what comes in a burst is not a rate
	}
	in.epoch, in.epochBytes, in.stood = now, 0, 0
	in.lasts = 0
	if !first {
		in.lasts = time.Duration(float64(elapsed) * float64(in.window) / float64(bytes))
	}
	if !s.mayGrowLocked(now) {
		return
	}
	if s.minRTT == 0 {
		s.probeLocked(now)
	}
	if first {
		return
	}
	rtt := s.growthRTTLocked(now)
	if rtt == 0 {
		if elapsed > minGrowthRTT {
			return
		}
		rtt = minGrowthRTT
	}
	rate := float64(bytes) / float64(elapsed)
	used := rate * float64(rtt) / float64(in.window)
	paid := 1.2
	if rtt >= minStandRTT {
		paid = 1.35
	}
	if used <= 0.85 && (used <= 0.5 || rate < paid*in.rate) || !s.widenLocked(in.window/2, rtt) {
		return
	}
	in.rate = rate
	s.probeLocked(now)
}

// widenLocked makes the window larger by so much, or by what the peer's share of the budget has. It tells whether it did.
func (s *session) widenLocked(by uint64, rtt time.Duration) bool {
	in := &s.in
	by = min(by, s.host.maxWindow.Load()-in.window)
	if by = s.takeWindowLocked(by); by == 0 {
		return false
	}
	in.window += by
	if rtt >= minStandRTT {
		in.epochFrom = in.limitSaid
	}
	return true
}

// takeWindowLocked reserves so much of the budget, or what part of it there is, and returns how much that is.
func (s *session) takeWindowLocked(by uint64) uint64 {
	for !s.windows.take(int64(by)) {
		if by /= 2; by < minGrowth {
			s.refusedLocked(&s.windows)
			return 0
		}
	}
	return by
}

// takeBackLocked takes back what the peer may send above the floor and hasn't sent. It is for when nothing is read from a stream
// any more: the next one begins with the limit that is said then.
func (s *session) takeBackLocked() {
	in := &s.in
	if in.window == wire.InitialWindow || s.reset != nil || s.closed {
		return
	}
	in.before = max(in.before, in.window)
	in.limit = max(in.received, in.acked+wire.InitialWindow)
	in.limitSaid = in.limit
	in.trim = wire.InitialWindow
	s.trimLocked()
}

// regainLocked has the window be again as it was before takeBackLocked, or what the peer's share of the budget has of that. It
// grows anew if the session was idle, or waited for long.
func (s *session) regainLocked(now time.Time) {
	in := &s.in
	before := in.before
	in.before = 0
	if before > in.window && now.Sub(s.lastData) <= idleBeforeYield {
		if by := s.takeWindowLocked(before - in.window); by > 0 {
			in.window += by
			in.limit = max(in.limit, in.acked+in.window)
			in.trim = 0
			return
		}
	}
	if before > 0 {
		in.settled, in.rate, in.epochFrom = false, 0, 0
	}
}

// trimLocked takes back what of the window was too much, once it isn't promised any more.
func (s *session) trimLocked() {
	in := &s.in
	if window := max(in.trim, in.limit-in.acked); window < in.window {
		s.windows.give(int64(in.window - window))
		in.window = window
	}
	if in.window <= in.trim {
		in.trim = 0
	}
}

// probeLocked asks for a ping, once in two round trips at most. The first one
// may have waited behind data; while the window grows, better ones follow.
func (s *session) probeLocked(now time.Time) {
	if s.pingSince.IsZero() && now.After(s.nextProbe) {
		s.pingLocked(now)
		s.nextProbe = now.Add(min(max(2*s.minRTT, 50*time.Millisecond), time.Second))
	}
}

// pingLocked asks the peer for a sign of life. The time runs from now on, not
// from when the ping leaves: on a path that is dead, what is to be sent may
// wait for ever behind what nobody takes.
func (s *session) pingLocked(now time.Time) {
	s.pingDue, s.pingSince, s.waitsSince = true, now, 0
}
