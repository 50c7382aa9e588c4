package session

import (
	"math/rand/v2"
	"slices"
	"time"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/wire"
)

// A forward keeps one session of the client going, in the goroutine that called Forward. All fields
// but patience belong to that goroutine.
type forward struct {
	session *session
	client  *Client
	request *Request

	begun       time.Duration   // process time
	opened      bool            // a reply 200 has come
	saidAcked   uint64          // in the tip of the current attempt
	saidLimit   uint64          // in the tip of the current attempt
	firstTry    time.Time       // when the first attempt of unknown outcome was made; zero if none
	unknown     bool            // the current attempt is the one at firstTry
	patience    *awake.Timer    // ends the wait for the reply; under the session's lock
	detachedAt  time.Time       // when the session lost the last stream, or began to move from it
	excluded    map[string]bool // relays that refused for good
	refusal     *wire.Reply     // the last refusal
	tried       map[any]bool    // links that failed in this round
	rounds      int             // how many rounds have failed since the loss
	attachedAt  time.Time       // when the current stream, or the last one, took over
	shortLived  int             // streams in a row that were lost within shortLife
	notBefore   time.Time       // no attempt is made before
	lastFailure string
	onlyRoute   bool            // no other relay is left to be asked in this round
	stopping    bool            // the server has said that it is about to stop
	elsewhere   bool            // the last stream was lost beyond its link: another relay may work
	otherRoutes <-chan struct{} // closed when the routes have changed since the last choice
}

// run opens the session, reads frames, and resumes, until the end.
func (f *forward) run() {
	s := f.session
	defer func() { // no stream stays behind, whatever ended the session
		s.mu.Lock()
		at := s.at
		s.detachLocked()
		s.mu.Unlock()
		if at != nil {
			at.stream.Reset(wire.CodeLost)
		}
	}()
	for {
		at := f.connect()
		if at == nil || f.finished(at, at.readFrames()) {
			return
		}
	}
}

// finished acts upon the end of a stream, and reports whether the session has ended too.
func (f *forward) finished(at *attachment, err error) bool {
	s := f.session
	v, beyond := judgeStream(err)
	switch v {
	case streamEnded:
		at.sayGoodbye()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.detachLocked()
		f.closeLocked(f.outcomeLocked())
		return true
	case streamLeft:
		f.detachedAt = time.Now()
		return false
	case peerBroke:
		s.mu.Lock()
		s.brokenLocked(err)
		s.resetLocked(OutcomeProtocol, resetByProtocol)
		s.detachLocked()
		f.closeLocked(OutcomeProtocol)
		s.mu.Unlock()
		at.stream.Reset(wire.CodeProtocol)
		return true
	case peerAccuses, streamRevoked:
		s.mu.Lock()
		defer s.mu.Unlock()
		s.detachLocked()
		at.stream.Reset(f.forbiddenLocked(v))
		return true
	case streamLost:
	}
	f.elsewhere = beyond
	at.stream.Reset(wire.CodeLost)
	s.mu.Lock()
	defer s.mu.Unlock()
	f.lostLocked(err.Error())
	return false
}

// lostLocked notes the loss of the stream.
func (f *forward) lostLocked(why string) {
	s := f.session
	s.awaitWriterLocked()
	s.detachLocked()
	s.takeBackLocked()
	f.tried, f.rounds = nil, 0
	f.detachedAt = time.Now()
	if f.shortLived++; time.Since(f.attachedAt) > shortLife {
		f.shortLived = 0
	}
	if f.shortLived > 1 {
		f.notBefore = f.detachedAt.Add(backoff(f.shortLived - 2))
	}
	if f.opened && !s.ending.reset() && !s.ended {
		s.transitionLocked(Detached)
		s.tellDetachedLocked(why)
	}
}

// shortLife is how long a stream must carry the session to count as a success. Attempts after
// shorter ones are delayed: otherwise P2 would ask a relay or server that grants each attempt, and
// loses the stream, as often as it can answer.
const shortLife = time.Second

// backoff returns how long to wait after n failures: between 0.5 and 1.5 × min(50 ms × 2^n, 2 s).
func backoff(n int) time.Duration {
	d := min(50*time.Millisecond<<min(n, 6), 2*time.Second)
	return d/2 + rand.N(d)
}

// sayGoodbye waits until no goroutine writes to the stream any more, ends this end's half of it,
// and reads the peer's half to its end.
func (at *attachment) sayGoodbye() {
	s := at.session
	s.mu.Lock()
	at.frozen = true
	_ = at.stream.SetWriteDeadline(time.Now().Add(stopTimeout))
	s.awaitWriterLocked()
	done := at.goodbye
	at.goodbye = true
	s.mu.Unlock()
	if !done {
		_ = at.stream.Finish(nil)
	}
	drain(at.stream) // cancelling the read now could turn the peer's end into a loss
}

// outcomeLocked returns how the session has ended.
func (f *forward) outcomeLocked() Outcome {
	if f.session.ending.reset() {
		return f.session.ending.how
	}
	return OutcomeClosed
}

// forbiddenLocked ends the session, since its stream was reset with a code that forbids to resume
// it. It returns that code.
func (f *forward) forbiddenLocked(v verdict) wire.StreamCode {
	if v == peerAccuses {
		f.session.foundBrokenLocked()
		f.closeLocked(OutcomeProtocol)
		return wire.CodeProtocol
	}
	f.session.ending.by = f.relayOrServer()
	f.closeLocked(OutcomeRevoked)
	return wire.CodeRevoked
}

// relayOrServer names the origin of a message that doesn't name it: the relay, or the server, whose
// messages the relay passes on.
func (f *forward) relayOrServer() string { return "relay or " + f.request.Server }

// refusedLocked ends a session that was open, since an attempt to resume it was refused.
func (f *forward) refusedLocked(end Outcome, r *wire.Reply) {
	f.session.ending.by, f.session.ending.reason = r.Node, r.Text
	f.closeLocked(end)
}

// closeLocked closes the session, with what the last replies said.
func (f *forward) closeLocked(end Outcome) {
	sum := Summary{Outcome: end}
	switch {
	case f.opened:
		sum.Status = wire.StatusOpen
	case f.refusal != nil:
		sum.Status, sum.Text, sum.Node = f.refusal.Status, f.refusal.Text, f.refusal.Node
	}
	f.session.closeLocked(sum)
}

// connect returns the attachment to a stream that carries the session: to the first one or another,
// or to the present one if the session was to move and no other link took it. It returns nil when
// the session is closed.
func (f *forward) connect() *attachment {
	s := f.session
	s.shared.clock.Hold() // timeouts are in process time
	defer s.shared.clock.Release()
	if s.attempt == 0 {
		f.begun = s.shared.clock.Now()
	}
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil
		}
		old := s.at
		why := ""
		if old != nil {
			why = old.moving
		}
		s.mu.Unlock()
		route, wait := f.choose(old != nil, why)
		switch {
		case route.Link != nil:
			if at := f.tryInTurn(route, old); at != nil {
				return at
			}
		case old != nil:
			if f.carryOn(old) {
				return old
			}
		case wait < 0:
			s.mu.Lock()
			f.giveUpLocked()
			s.mu.Unlock()
		default:
			f.pause(wait)
		}
	}
}

// choose picks the link for the next attempt. If there is none to try it returns how long to wait;
// a negative time means that the session has to give up.
func (f *forward) choose(moving bool, why string) (Route, time.Duration) {
	s := f.session
	left := f.timeLeft()
	if left <= 0 {
		return Route{}, -1
	}
	f.otherRoutes = f.client.config.Router.Changed() // before Routes, so that no change is missed
	if wait := time.Until(f.notBefore); wait > 0 && !moving {
		return Route{}, min(left, wait)
	}
	opening := !f.opened && !f.isReset()
	routes := slices.DeleteFunc(f.client.config.Router.Routes(f.request.Server), func(r Route) bool {
		return !r.opens(opening)
	})
	s.mu.Lock()
	current := s.info.Link
	s.mu.Unlock()
	for pass := range 2 {
		for _, r := range routes {
			if f.excluded[r.Relay] || f.tried[r.Link] {
				continue
			}
			if (moving || f.elsewhere) && r.Link == current && (pass == 0 || moving && why != deadPath) {
				continue // other links first, then this one, unless it is the reason to move
			}
			f.onlyRoute = !slices.ContainsFunc(routes, func(other Route) bool {
				return other.Link != r.Link && !f.excluded[other.Relay] && !f.tried[other.Link]
			})
			return r, 0
		}
	}
	if moving {
		return Route{}, 0
	}
	usable := slices.ContainsFunc(routes, func(r Route) bool { return !f.excluded[r.Relay] })
	if !usable && len(routes) > 0 && f.refusal != nil {
		return Route{}, -1 // all relays have refused
	}
	if len(f.tried) > 0 {
		if !f.opened && f.refusal != nil && !f.stopping && !f.isReset() {
			return Route{}, -1
		}
		// Every link has failed: once more after a while.
		f.tried = nil
		f.rounds++
		return Route{}, min(left, backoff(f.rounds))
	}
	return Route{}, left
}

// deadPath is the reason to move for which the link itself isn't to blame.
const deadPath = "the path is dead: no answer to a ping"

// timeLeft returns how long the session may still look for a stream.
func (f *forward) timeLeft() time.Duration {
	s := f.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping || s.ending.how == OutcomeRevoked: // nobody is left to be told
		return 0
	case s.at != nil && f.opened:
		return s.granted
	case s.ending.reset() && s.attempt == 0: // nobody has heard of it
		return 0
	case s.ending.reset() && !f.opened: // somebody may have
		return f.client.limits().OpenTimeout - time.Since(s.info.Since)
	case s.ending.reset():
		return s.granted - time.Since(s.info.Since)
	case !f.opened && s.attempt == 0:
		return holdTime - f.age()
	case !f.opened:
		return f.client.limits().OpenTimeout - f.age()
	}
	return s.granted - time.Since(f.detachedAt)
}

// age returns how long this process has run since the session began.
func (f *forward) age() time.Duration { return f.session.shared.clock.Now() - f.begun }

func (f *forward) isReset() bool {
	f.session.mu.Lock()
	defer f.session.mu.Unlock()
	return f.session.ending.reset()
}

// pause waits for a change of the links or of the session, for d at most.
func (f *forward) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.session.changed:
	case <-f.otherRoutes:
		f.tried = nil
	}
}

// giveUpLocked ends a session for which there is no stream. A session that the server may have
// opened, without this end's knowing, is only reset at first, so that the server still can hear of
// it.
func (f *forward) giveUpLocked() {
	s := f.session
	switch {
	case s.ending.reset():
		f.closeLocked(s.ending.how)
	case s.ended:
		f.closeLocked(OutcomeClosed)
	case f.opened && f.refusal == nil:
		f.closeLocked(OutcomeExpired)
	case f.opened:
		f.refusedLocked(OutcomeRevoked, f.refusal)
	case f.refusal != nil && f.firstTry.IsZero():
		f.closeLocked(OutcomeRefused)
	case s.attempt > 0:
		if f.refusal == nil {
			f.refusal = &wire.Reply{Status: wire.StatusTimeout, Text: "no answer: " + f.lastFailure}
		}
		s.resetLocked(OutcomeRefused, resetByExpiry)
	default:
		f.refusal = &wire.Reply{Status: wire.StatusNotConnected, Text: "no link to a relay"}
		f.closeLocked(OutcomeUnattached)
	}
}

// carryOn goes on with the stream that the session was to leave, since no other link took it. It
// returns false if that stream is lost.
func (f *forward) carryOn(at *attachment) bool {
	s := f.session
	s.mu.Lock()
	f.tried = nil
	if err := at.lost; err != nil {
		at.stream.Reset(wire.CodeLost)
		f.lostLocked(err.Error())
		s.mu.Unlock()
		return false
	}
	at.frozen, at.moving = false, ""
	_ = at.stream.SetWriteDeadline(time.Time{})
	_ = at.stream.SetReadDeadline(time.Time{})
	if s.ending.reset() {
		s.boundReadLocked()
	}
	s.cond.Broadcast()
	s.sendUnlock(false)
	return true
}
