package session

import (
	"cmp"
	"errors"
	"time"

	"ptthqd/pkg/wire"
)

// tryInTurn is try, with a turn of those that resume over the route's line. It returns nil also if something else was to be
// done while it waited for that.
func (f *forward) tryInTurn(r Route, old wire.Stream) wire.Stream {
	s := f.session
	clock := &s.host.clock
	l := s.host.lines.acquire(r, s.peerName(), clock.Now())
	defer s.host.lines.release(r.Link, s.peerName())
	if !f.opened { // there is a P1 that waits, and a P5 that may take its time
		return f.try(r, old, l)
	}
	s.mu.Lock()
	urgent := time.Since(s.lastData) < busyFor
	s.mu.Unlock()
	if w := l.turns.take(urgent); w != nil && !f.awaitTurn(&l.turns, w) {
		return nil
	}
	begun := clock.Now()
	defer func() { l.turns.give(clock.Now()-begun <= max(quickTurn, 2*r.RTT)) }()
	return f.try(r, old, l)
}

// awaitTurn waits for a turn, or for a change as pause does; then it reports false.
func (f *forward) awaitTurn(t *turns, w *turn) bool {
	timer := time.NewTimer(max(0, f.timeLeft()))
	defer timer.Stop()
	select {
	case <-w.ready:
		return true
	case <-timer.C:
	case <-f.changed:
	case <-f.otherRoutes:
		f.tried = nil
	}
	return !t.leave(w)
}

// awaitReplyLocked bounds the wait for the reply on st, which is pending; but not while the path brings others something, who
// may have been before it in a queue: then it may take most.
func (f *forward) awaitReplyLocked(st wire.Stream, l *line, timeout, most time.Duration) {
	s := f.session
	clock := &s.host.clock
	begun := clock.Now()
	var expire func()
	expire = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pending != st {
			return
		}
		now := clock.Now()
		if left := begun + most - now; left > 0 && now-time.Duration(l.heardAt.Load()) < timeout/2 {
			f.patience = clock.AfterFunc(min(timeout/2, left), expire)
			return
		}
		_ = st.SetReadDeadline(longAgo)
	}
	f.patience = clock.AfterFunc(timeout, expire)
}

// try makes one attempt over a route. old is the stream that the session has
// while it moves. It returns nil if the attempt failed.
func (f *forward) try(r Route, old wire.Stream, l *line) wire.Stream {
	s := f.session
	s.mu.Lock()
	if old != nil {
		// Neither read nor written until the reply has come.
		s.frozen = true
		_ = old.SetWriteDeadline(longAgo)
		s.waitIdleLocked()
	}
	s.attempt++
	opening := !f.opened && s.reset == nil
	first := opening && s.attempt == 1
	if old == nil && !opening {
		s.takeBackLocked()
		s.regainLocked(time.Now())
	}
	inner := f.tipLocked(opening)
	timeout := max(2*time.Second, 4*r.RTT)
	most := 10 * timeout
	if opening {
		// Longer than P4 dials, and short enough for another attempt.
		whole := f.client.limits().OpenTimeout
		most = max(whole-f.age(), time.Second)
		timeout = max(min(whole/2, most), time.Second)
	}
	s.mu.Unlock()

	var data []byte
	var n int
	if first {
		data, n = s.firstFrame()
	}
	st, err := r.Open(&wire.Connect{Server: f.request.Server, Inner: inner, Hold: opening && f.onlyRoute}, data)
	if err != nil {
		s.attempt-- // nobody has heard of it
		f.failed(r, err.Error())
		return nil
	}
	f.unknown = f.firstTry.IsZero()
	if f.unknown {
		f.firstTry = time.Now()
	}
	s.mu.Lock()
	s.pending, s.pendingLink = st, r.Link
	f.awaitReplyLocked(st, l, timeout, most)
	if first {
		// P4 reads while it dials, so P1's first bytes go right behind the tip.
		s.attachLocked(st, r, 0)
		s.sentFirstLocked(n)
	}
	if s.stopping || opening && s.reset != nil { // meanwhile
		s.hurryLocked()
	}
	s.sendLocked(false)
	reply, granted, err := readReply(st)
	s.mu.Lock()
	s.pending, s.pendingLink = nil, nil
	f.patience.Stop()
	s.mu.Unlock()
	if err == nil {
		l.hear(s.host.clock.Now())
	}
	if err == nil && (reply.Status == wire.StatusOpen || reply.Status == wire.StatusComplete) && granted == nil {
		err = errors.New("the reply grants nothing")
	}
	if err != nil {
		st.Reset(wire.CodeLost)
		f.dropAttempt(st, old)
		var reset *wire.ResetError
		if errors.As(err, &reset) && reset.Remote && (reset.Code == wire.CodeRevoked || reset.Code == wire.CodeProtocol) {
			s.mu.Lock()
			f.endedLocked(reset.Code)
			s.mu.Unlock()
			return nil
		}
		f.failed(r, err.Error())
		if old != nil {
			f.loseOld(old)
		}
		return nil
	}
	return f.answer(st, r, old, opening, reply, granted)
}

// tipLocked makes the inner tip of an attempt.
func (f *forward) tipLocked(opening bool) []byte {
	s := f.session
	f.saidAcked, f.saidLimit = s.in.acked, s.in.limit
	if opening {
		var age time.Duration
		if !f.firstTry.IsZero() {
			age = time.Since(f.firstTry)
		}
		return wire.Append(nil, &wire.Open{
			Version: wire.Version, Token: s.token, Attempt: s.attempt, Age: age,
			Source: f.request.Source, Target: f.request.Target,
			Limit: s.in.limit, ResumeTimeout: f.request.ResumeTimeout, Origin: f.request.Origin,
		})
	}
	return wire.Append(nil, &wire.Resume{
		Version: wire.Version, Token: s.token, Attempt: s.attempt,
		Source: f.request.Source, Target: f.request.Target,
		Received: s.in.received, Acked: s.in.acked, Limit: s.in.limit,
		Unconfirmed: s.reset != nil,
	})
}

// readReply reads the reply at the head of st.
func readReply(st wire.Stream) (*wire.Reply, *wire.Granted, error) {
	m, err := wire.Read(st)
	if err != nil {
		return nil, nil, err
	}
	reply, ok := m.(*wire.Reply)
	if !ok {
		return nil, nil, errors.New("the answer is not a reply")
	}
	if len(reply.Inner) == 0 {
		return reply, nil, nil
	}
	inner, n, err := wire.Parse(reply.Inner)
	if err != nil {
		return nil, nil, err
	}
	granted, ok := inner.(*wire.Granted)
	if !ok || n != len(reply.Inner) {
		return nil, nil, errors.New("the reply's inner part is not a grant")
	}
	return reply, granted, nil
}

// dropAttempt takes the first attempt's stream away from the session again.
func (f *forward) dropAttempt(st, old wire.Stream) {
	s := f.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stream == st && old == nil {
		s.frozen = true
		_ = st.SetWriteDeadline(longAgo)
		s.waitIdleLocked()
		s.detachLocked()
	}
}

// loseOld gives the old stream up: it is not known what P4 has made of the
// attempt to replace it.
func (f *forward) loseOld(old wire.Stream) {
	old.Reset(wire.CodeLost)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lostLocked("an attempt to move had no answer")
}

// failed notes that an attempt over a route came to nothing.
func (f *forward) failed(r Route, why string) {
	if f.tried == nil {
		f.tried = make(map[any]bool)
	}
	f.tried[r.Link] = true
	f.lastFailure = why
	f.session.logger().Debug("attempt failed", "server", f.request.Server, "relay", r.Relay, "reason", why)
}

// answer acts upon a reply. It returns the stream if that carries the session
// now.
func (f *forward) answer(st wire.Stream, r Route, old wire.Stream, opening bool, reply *wire.Reply, granted *wire.Granted) wire.Stream {
	s := f.session
	if reply.Status == wire.StatusOpen {
		return f.accepted(st, r, old, granted)
	}
	// The reply is all that comes on this stream.
	f.dropAttempt(st, old)
	finish(st)
	// A server may call itself otherwise than it was asked for: its own config names it, or it is being renamed.
	byRelay := reply.Node != f.request.Server && (reply.Node == "" || reply.Node == wire.NodeRelay)
	reply.Node = cmp.Or(reply.Node, f.relayOrServer())
	s.mu.Lock()
	defer s.mu.Unlock()
	if reply.Status == wire.StatusComplete {
		switch {
		case s.reset != nil:
			f.closeLocked(*s.reset)
		case granted.Reset:
			f.closeLocked(EndResetByP5)
		case s.in.done():
			f.closeLocked(EndClosed)
		default:
			s.brokenLocked(violated("the session is complete, it says, and has not sent all"))
			f.closeLocked(EndProtocol)
		}
		return nil
	}
	if f.unknown {
		f.firstTry = time.Time{} // it is known now
	}
	if s.reset == nil {
		f.refusal = reply
	}
	again := false
	f.stopping = reply.Status == wire.StatusNotConnected && !byRelay && opening
	switch reply.Status {
	case wire.StatusNotConnected:
		again = true
	case wire.StatusNotAllowed:
		again = byRelay
		if again {
			if f.excluded == nil {
				f.excluded = make(map[string]bool)
			}
			f.excluded[r.Relay] = true
		}
	case wire.StatusTooMany:
		again = byRelay || !opening
	case wire.StatusNotNewest, wire.StatusRefused, wire.StatusTimeout:
		again = !opening
	case wire.StatusNoSession:
		if s.out.done() && s.in.done() {
			f.closeLocked(EndClosed)
			return nil
		}
	default: // no other attempt would have another answer
	}
	if again {
		f.failed(r, reply.Status.String())
		if f.opened && s.reset == nil && reply.Status != wire.StatusNotAllowed {
			f.refusal = nil // it may yet be otherwise
		}
		return nil
	}
	switch {
	case s.reset != nil:
		f.closeLocked(*s.reset)
	case opening:
		f.closeLocked(EndRefused)
	case reply.Status == wire.StatusNoSession:
		f.refusedLocked(EndRestarted, reply)
	case reply.Status == wire.StatusNotAllowed:
		f.refusedLocked(EndRevoked, reply)
	default:
		f.refusedLocked(EndProtocol, reply)
	}
	return nil
}

// finish ends both halves of a stream on which nothing more is to be said.
func finish(st wire.Stream) {
	_ = st.End(nil)
	st.CancelRead(wire.CodeLost)
}

// accepted takes the session over to st.
func (f *forward) accepted(st wire.Stream, r Route, old wire.Stream, g *wire.Granted) wire.Stream {
	s := f.session
	if old != nil {
		old.Reset(wire.CodeLost)
	}
	s.mu.Lock()
	first := s.stream == st
	err := s.checkOffsetsLocked(g.Received, g.Acked, g.Limit)
	if err == nil && first && g.Limit < s.out.sent {
		err = violated("a limit of %d, after %d were sent", g.Limit, s.out.sent)
	}
	if err != nil {
		s.brokenLocked(err)
		f.closeLocked(EndProtocol)
		s.mu.Unlock()
		st.Reset(wire.CodeProtocol)
		return nil
	}
	if !first {
		s.waitIdleLocked()
		s.attachLocked(st, r, g.Received)
		// P1 has been served on while the reply was on its way.
		s.in.ackedSaid, s.in.limitSaid = f.saidAcked, f.saidLimit
		s.ackDue = s.in.acked != f.saidAcked
		if s.attempt > 1 && f.opened {
			s.info.Resumes++
		}
	}
	s.arrivedLocked(g.Received)
	s.out.limit = g.Limit // which may be lower than before
	if err := s.ackLocked(g.Acked - s.out.acked); err != nil {
		s.brokenLocked(err)
		f.closeLocked(EndProtocol)
		s.mu.Unlock()
		st.Reset(wire.CodeProtocol)
		return nil
	}
	s.granted = min(f.request.ResumeTimeout, g.ResumeTimeout)
	switch {
	case s.reset != nil: // it is to be confirmed
		_ = st.SetReadDeadline(time.Now().Add(stopTimeout))
	case s.moving != "":
		_ = st.SetReadDeadline(longAgo)
	default:
		_ = st.SetReadDeadline(time.Time{})
	}
	if !f.opened && f.request.Opened != nil {
		f.request.Opened()
	}
	resumed := f.opened && s.reset == nil
	f.opened, f.refusal, f.firstTry = true, nil, time.Time{}
	f.carriedAt = time.Now()
	f.tried, f.rounds = nil, 0
	if s.reset == nil && !s.ended {
		s.setState(Attached)
	}
	if resumed {
		s.tellResumedLocked(r.Relay, s.attempt, time.Since(f.detachedAt))
	}
	s.sendLocked(false)
	return st
}

// checkOffsetsLocked checks what the peer says of where it stands.
func (s *session) checkOffsetsLocked(received, acked, limit uint64) error {
	o := &s.out
	switch {
	case received > o.most:
		return violated("received %d of %d", received, o.most)
	case received < o.known || acked < o.acked:
		return violated("received %d, acknowledged %d, after %d and %d", received, acked, o.known, o.acked)
	case limit < received:
		return violated("a limit of %d, after %d were received", limit, received)
	case limit-acked > 2*wire.MaxWindow:
		return violated("a window of %d bytes; %d is the most", limit-acked, wire.MaxWindow)
	}
	return nil
}
