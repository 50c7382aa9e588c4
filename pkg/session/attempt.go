package session

import (
	"cmp"
	"errors"
	"time"

	"ptthqd/pkg/wire"
)

// tryInTurn makes one attempt when the session has its turn to resume over the route's line. It
// returns nil if the attempt failed, or if something changed during the wait for the turn.
func (f *forward) tryInTurn(r Route, old *attachment) *attachment {
	s := f.session
	clock := &s.shared.clock
	l := s.shared.lines.acquire(r, s.peerName(), clock.Now())
	defer s.shared.lines.release(r.Link, s.peerName())
	if !f.opened { // an open takes no turn: P1 waits, and P5 may take its time
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

// awaitTurn waits for a turn, or for a change as pause does. It reports whether the turn has come.
func (f *forward) awaitTurn(t *turns, w *turn) bool {
	timer := time.NewTimer(max(0, f.timeLeft()))
	defer timer.Stop()
	select {
	case <-w.ready:
		return true
	case <-timer.C:
	case <-f.session.changed:
	case <-f.otherRoutes:
		f.tried = nil
	}
	return !t.leave(w)
}

// awaitReplyLocked bounds the wait for the reply on st, which is pending, to timeout. While the
// line still brings something for other sessions, the reply may stand in a queue behind that: then
// the bound is most.
func (f *forward) awaitReplyLocked(st wire.Stream, l *line, timeout, most time.Duration) {
	s := f.session
	clock := &s.shared.clock
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

// An attempt is one try to attach a session over a route.
type attempt struct {
	route   Route
	line    *line
	old     *attachment // the one to replace, if the session moves; else nil
	at      *attachment // of the first attempt, which sends data before the reply; else nil
	stream  wire.Stream
	opening bool // the attempt is to open the session, not to resume it
}

// try makes one attempt over a route. old is the attachment to replace, if the session moves. try
// returns nil if the attempt failed.
func (f *forward) try(r Route, old *attachment, l *line) *attachment {
	s := f.session
	s.mu.Lock()
	if old != nil {
		// The old stream is neither read nor written until the reply has come.
		old.frozen = true
		_ = old.stream.SetWriteDeadline(longAgo)
		s.awaitWriterLocked()
	}
	s.attempt++
	a := &attempt{route: r, line: l, old: old, opening: !f.opened && !s.ending.reset()}
	if old == nil && !a.opening {
		s.takeBackLocked()
		s.regainLocked(time.Now())
	}
	inner := f.tipLocked(a.opening)
	timeout, most := f.replyTimes(a)
	first := a.opening && s.attempt == 1
	s.mu.Unlock()

	var data []byte
	var n int
	if first {
		data, n = s.firstFrame()
	}
	var err error
	a.stream, err = r.stream(a.opening, &wire.Connect{Server: f.request.Server, Inner: inner, Hold: a.opening && f.onlyRoute}, data)
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
	s.pending, s.pendingLink = a.stream, r.Link
	f.awaitReplyLocked(a.stream, l, timeout, most)
	if first {
		// P4 reads while it dials, so P1's first bytes went right behind the tip.
		a.at = s.attachLocked(a.stream, r, 0)
		s.sentFirstLocked(n)
	}
	if s.stopping || a.opening && s.ending.reset() { // while the stream was opened
		s.boundReadLocked()
	}
	s.sendUnlock(false)
	reply, granted, err := readReply(a.stream)
	s.mu.Lock()
	s.pending, s.pendingLink = nil, nil
	f.patience.Stop()
	s.mu.Unlock()
	if err != nil {
		f.unanswered(a, err)
		return nil
	}
	l.hear(s.shared.clock.Now())
	return f.answer(a, reply, granted)
}

// replyTimes returns how long an attempt may wait for its reply: timeout if nothing arrives over
// its line, most otherwise.
func (f *forward) replyTimes(a *attempt) (timeout, most time.Duration) {
	if a.opening {
		// By default half of it is longer than P4 dials. The other half is for another attempt.
		whole := f.client.limits().OpenTimeout
		most = max(whole-f.age(), time.Second)
		return max(min(whole/2, most), time.Second), most
	}
	timeout = max(2*time.Second, 4*a.route.RTT)
	return timeout, 10 * timeout
}

// unanswered acts upon an attempt whose stream ended without a reply.
func (f *forward) unanswered(a *attempt, err error) {
	a.stream.Reset(wire.CodeLost)
	f.dropAttempt(a)
	if v, _ := judgeStream(err); v == peerAccuses || v == streamRevoked {
		f.session.mu.Lock()
		defer f.session.mu.Unlock()
		f.forbiddenLocked(v)
		return
	}
	f.failed(a.route, err.Error())
	if a.old != nil {
		f.loseOld(a.old)
	}
}

// tipLocked returns the inner tip of an attempt.
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
		Unconfirmed: s.ending.reset(),
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
	grants := reply.Status == wire.StatusOpen || reply.Status == wire.StatusComplete
	if len(reply.Inner) == 0 {
		if grants {
			return nil, nil, errors.New("the reply grants nothing")
		}
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

// dropAttempt detaches the session from the stream of the first attempt, if a is that.
func (f *forward) dropAttempt(a *attempt) {
	s := f.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.at != nil && s.at == a.at {
		a.at.frozen = true
		_ = a.stream.SetWriteDeadline(longAgo)
		s.awaitWriterLocked()
		s.detachLocked()
	}
}

// loseOld gives the old stream up, since P4 may have taken the attempt to replace it.
func (f *forward) loseOld(old *attachment) {
	old.stream.Reset(wire.CodeLost)
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	f.lostLocked("an attempt to move had no answer")
}

// failed notes that an attempt over a route has failed.
func (f *forward) failed(r Route, why string) {
	if f.tried == nil {
		f.tried = make(map[any]bool)
	}
	f.tried[r.Link] = true
	f.lastFailure = why
	f.session.logger().Debug("attempt failed", "server", f.request.Server, "relay", r.Relay, "reason", why)
}

// answer acts upon a reply. It returns the attachment to the attempt's stream, or nil if there is
// none.
func (f *forward) answer(a *attempt, reply *wire.Reply, granted *wire.Granted) *attachment {
	if reply.Status == wire.StatusOpen {
		return f.accepted(a, granted)
	}
	// Nothing follows the reply on this stream.
	f.dropAttempt(a)
	finish(a.stream)
	s := f.session
	s.mu.Lock()
	defer s.mu.Unlock()
	if reply.Status == wire.StatusComplete {
		f.completeLocked(granted)
	} else {
		f.refuseLocked(a, reply)
	}
	return nil
}

// completeLocked ends a session that has ended at the server.
func (f *forward) completeLocked(granted *wire.Granted) {
	s := f.session
	switch {
	case s.ending.reset():
		f.closeLocked(s.ending.how)
	case granted.Reset:
		f.closeLocked(OutcomeResetByP5)
	case s.in.done():
		f.closeLocked(OutcomeClosed)
	default:
		s.brokenLocked(violated("the session is complete, it says, and has not sent all"))
		f.closeLocked(OutcomeProtocol)
	}
}

// refuseLocked acts upon a refusal: it ends the session, or lets another attempt follow.
func (f *forward) refuseLocked(a *attempt, reply *wire.Reply) {
	s := f.session
	// A server may reply by another name than the requested one: it has that from its own config,
	// or is being renamed. So a reply is the relay's only if it names the relay or nobody.
	byRelay := reply.Node != f.request.Server && (reply.Node == "" || reply.Node == wire.NodeRelay)
	reply.Node = cmp.Or(reply.Node, f.relayOrServer())
	if f.unknown {
		f.firstTry = time.Time{} // the attempt's outcome is known now
	}
	if !s.ending.reset() {
		f.refusal = reply
	}
	f.stopping = reply.Status == wire.StatusNotConnected && !byRelay && a.opening
	if reply.Status == wire.StatusNoSession && s.out.done() && s.in.done() {
		f.closeLocked(OutcomeClosed)
		return
	}
	v := judgeRefusal(reply.Status, a.opening, byRelay)
	if v.exclude {
		if f.excluded == nil {
			f.excluded = make(map[string]bool)
		}
		f.excluded[a.route.Relay] = true
	}
	switch {
	case v.retry:
		f.failed(a.route, reply.Status.String())
		if f.opened && !s.ending.reset() && reply.Status != wire.StatusNotAllowed {
			f.refusal = nil // another attempt may yet succeed
		}
	case s.ending.reset():
		f.closeLocked(s.ending.how)
	case a.opening:
		f.closeLocked(OutcomeRefused)
	default:
		f.refusedLocked(v.outcome, reply)
	}
}

// finish ends both halves of a stream that has served its purpose.
func finish(st wire.Stream) {
	_ = st.CloseWrite()
	st.CancelRead(wire.CodeLost)
}

// accepted makes the attempt's stream the session's.
func (f *forward) accepted(a *attempt, g *wire.Granted) *attachment {
	s := f.session
	if a.old != nil {
		a.old.stream.Reset(wire.CodeLost)
	}
	s.mu.Lock()
	if err := f.takeGrantLocked(a, g); err != nil {
		s.brokenLocked(err)
		f.closeLocked(OutcomeProtocol)
		s.mu.Unlock()
		a.stream.Reset(wire.CodeProtocol)
		return nil
	}
	at := s.at
	s.granted = min(f.request.ResumeTimeout, g.ResumeTimeout)
	switch {
	case s.ending.reset(): // the peer has yet to confirm that
		_ = at.stream.SetReadDeadline(time.Now().Add(stopTimeout))
	case at.moving != "":
		_ = at.stream.SetReadDeadline(longAgo)
	default:
		_ = at.stream.SetReadDeadline(time.Time{})
	}
	if !f.opened && f.request.Opened != nil {
		f.request.Opened()
	}
	resumed := f.opened && !s.ending.reset()
	f.opened, f.refusal, f.firstTry = true, nil, time.Time{}
	f.attachedAt = time.Now()
	f.tried, f.rounds = nil, 0
	if !s.ending.reset() && !s.ended {
		s.transitionLocked(Attached)
	}
	if resumed {
		s.tellResumedLocked(a.route.Relay, s.attempt, time.Since(f.detachedAt))
	}
	s.sendUnlock(false)
	return at
}

// takeGrantLocked attaches the session to the attempt's stream, from the offsets that the server
// has granted.
func (f *forward) takeGrantLocked(a *attempt, g *wire.Granted) error {
	s := f.session
	first := a.at != nil && s.at == a.at
	if err := s.checkOffsetsLocked(g.Received, g.Acked, g.Limit); err != nil {
		return err
	}
	if first && g.Limit < s.out.sent {
		return violated("a limit of %d, after %d were sent", g.Limit, s.out.sent)
	}
	if !first {
		s.awaitWriterLocked()
		at := s.attachLocked(a.stream, a.route, g.Received)
		// P1 may have taken more data while the reply was on its way.
		at.ackedSaid, at.limitSaid = f.saidAcked, f.saidLimit
		at.ackDue = s.in.acked != f.saidAcked
		if s.attempt > 1 && f.opened {
			s.info.Resumes++
		}
	}
	s.arrivedLocked(g.Received)
	s.out.limit = g.Limit // may be lower than before
	return s.ackLocked(g.Acked - s.out.acked)
}

// checkOffsetsLocked checks the offsets of the peer, as it says them when a session is resumed.
func (s *session) checkOffsetsLocked(received, acked, limit uint64) error {
	o := &s.out
	switch {
	case received > o.highestSent:
		return violated("received %d of %d", received, o.highestSent)
	case received < o.arrived || acked < o.acked:
		return violated("received %d, acknowledged %d, after %d and %d", received, acked, o.arrived, o.acked)
	case limit < received:
		return violated("a limit of %d, after %d were received", limit, received)
	case limit-acked > 2*wire.MaxWindow:
		return violated("a window of %d bytes; %d is the most", limit-acked, wire.MaxWindow)
	}
	return nil
}
