package session

import (
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/wire"
)

// A forward is the goroutine that keeps one session of the client going.
type forward struct {
	*session
	client  *Client
	request Request

	begun       time.Duration // process time
	opened      bool          // a reply 200 has come
	saidAcked   uint64        // by the tip of the current attempt
	saidLimit   uint64
	firstTry    time.Time       // of the attempts whose outcome isn't known
	unknown     bool            // the current attempt is that one
	patience    *awake.Timer    // ends the wait for its reply; under the session's lock
	detachedAt  time.Time       // when the last stream was lost, or left to be moved from
	excluded    map[string]bool // relays that refused for good
	refusal     *wire.Reply     // the last refusal
	tried       map[any]bool    // links that failed in this round
	rounds      int             // that have failed since the loss
	carriedAt   time.Time       // when the current stream, or the last one, took over
	shortLived  int             // streams in a row that were lost within shortLife
	notBefore   time.Time       // the next attempt
	lastFailure string
	onlyRoute   bool            // no other relay is left to be asked in this round
	stopping    bool            // the server has said that it is about to stop
	elsewhere   bool            // the last stream was lost beyond its link: another relay may still reach the server
	otherRoutes <-chan struct{} // closed when the routes of the last choice are others
}

// run opens the session, reads frames, and resumes, until the end.
func (f *forward) run() {
	s := f.session
	defer func() { // whatever ended the session, no stream stays behind
		s.mu.Lock()
		st := s.stream
		s.stream = nil
		s.dropQuotaLocked()
		s.dropRestLocked()
		s.mu.Unlock()
		if st != nil {
			st.Reset(wire.CodeLost)
		}
	}()
	for {
		st := f.connect()
		if st == nil {
			return
		}
		if f.finished(st, s.readFrames(st)) {
			return
		}
	}
}

// readFrames is read, between the marks that others wait for.
func (s *session) readFrames(st wire.Stream) error {
	s.mu.Lock()
	if s.stream != st {
		s.mu.Unlock()
		return errMove
	}
	s.reading = true
	s.mu.Unlock()
	err := s.read(st)
	s.mu.Lock()
	s.reading = false
	s.cond.Broadcast()
	s.mu.Unlock()
	return err
}

// finished decides what the end of a stream means: the end of the session, or
// another attempt.
func (f *forward) finished(st wire.Stream, err error) bool {
	s := f.session
	var bad *protocolError
	var reset *wire.ResetError
	switch {
	case errors.Is(err, errEnded):
		s.sayGoodbye(st)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.detachLocked()
		f.closeLocked(f.howLocked())
		return true
	case errors.Is(err, errMove):
		f.detachedAt = time.Now()
		return false // the stream is kept until another has taken over
	case errors.As(err, &bad):
		s.mu.Lock()
		s.brokenLocked(bad)
		s.resetLocked(EndProtocol, resetByProtocol)
		s.detachLocked()
		f.closeLocked(EndProtocol)
		s.mu.Unlock()
		st.Reset(wire.CodeProtocol)
		return true
	case errors.As(err, &reset) && reset.Remote && (reset.Code == wire.CodeRevoked || reset.Code == wire.CodeProtocol):
		s.mu.Lock()
		defer s.mu.Unlock()
		s.detachLocked()
		f.endedLocked(reset.Code)
		st.Reset(reset.Code)
		return true
	}
	f.elsewhere = reset != nil && reset.Remote
	st.Reset(wire.CodeLost)
	s.mu.Lock()
	defer s.mu.Unlock()
	f.lostLocked(err.Error())
	return false
}

// lostLocked notes the loss of the stream.
func (f *forward) lostLocked(why string) {
	s := f.session
	s.waitIdleLocked()
	s.detachLocked()
	s.takeBackLocked()
	f.tried, f.rounds = nil, 0
	f.detachedAt = time.Now()
	if f.shortLived++; time.Since(f.carriedAt) > shortLife {
		f.shortLived = 0
	}
	if f.shortLived > 1 {
		f.notBefore = f.detachedAt.Add(backoff(f.shortLived - 2))
	}
	if f.opened && s.reset == nil && !s.ended {
		s.setState(Detached)
		s.tellDetachedLocked(why)
	}
}

// shortLife is how long a stream must carry the session to count as a success: a
// relay or server that grants every attempt, and loses it, isn't asked as often
// as it can answer.
const shortLife = time.Second

// backoff is how long to wait after n failures.
func backoff(n int) time.Duration {
	d := min(50*time.Millisecond<<min(n, 6), 2*time.Second)
	return d/2 + rand.N(d)
}

// waitIdleLocked waits until nobody writes to the stream, which was reset or
// frozen.
func (s *session) waitIdleLocked() {
	for s.writing {
		s.cond.Wait()
	}
}

// sayGoodbye ends the session's half of st when nobody writes to it any more.
func (s *session) sayGoodbye(st wire.Stream) {
	s.mu.Lock()
	s.frozen = true
	_ = st.SetWriteDeadline(time.Now().Add(stopTimeout))
	s.waitIdleLocked()
	done := s.goodbye
	s.goodbye = true
	s.mu.Unlock()
	if !done {
		_ = st.End(nil)
	}
	drain(st) // the end that the peer has said, or is about to say: who cancels that makes it a loss
}

// howLocked is how the session has ended.
func (f *forward) howLocked() End {
	if f.reset != nil {
		return *f.reset
	}
	return EndClosed
}

// endedLocked ends the session, since its stream was reset with a code that forbids to resume it.
func (f *forward) endedLocked(code wire.StreamCode) {
	if code == wire.CodeProtocol {
		f.foundBrokenLocked()
		f.closeLocked(EndProtocol)
		return
	}
	f.endedBy = f.relayOrServer()
	f.closeLocked(EndRevoked)
}

// relayOrServer is who has said what does not tell: the relay passes on what the server says.
func (f *forward) relayOrServer() string { return "relay or " + f.request.Server }

// refusedLocked ends a session that was open, since a request to resume it was refused.
func (f *forward) refusedLocked(end End, r *wire.Reply) {
	f.endedBy, f.endReason = r.Node, r.Text
	f.closeLocked(end)
}

// closeLocked ends the session.
func (f *forward) closeLocked(end End) {
	sum := Summary{End: end}
	switch {
	case f.opened:
		sum.Status = wire.StatusOpen
	case f.refusal != nil:
		sum.Status, sum.Text, sum.Node = f.refusal.Status, f.refusal.Text, f.refusal.Node
	}
	f.session.closeLocked(sum)
}

// connect brings a stream that carries the session: a first one, another, or,
// when the session was to move and nobody else took it, the one that it has.
// It returns nil when the session is closed.
func (f *forward) connect() wire.Stream {
	s := f.session
	s.host.clock.Hold() // time-outs are in its time
	defer s.host.clock.Release()
	if s.attempt == 0 {
		f.begun = s.host.clock.Now()
	}
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return nil
		}
		old, moving := s.stream, s.moving
		s.mu.Unlock()
		route, wait := f.choose(old != nil, moving)
		switch {
		case route.Open != nil:
			if st := f.tryInTurn(route, old); st != nil {
				return st
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

// choose picks the link for the next attempt. With none to try it says how long
// to wait; a negative time means that there is no hope left.
func (f *forward) choose(moving bool, why string) (Route, time.Duration) {
	s := f.session
	left := f.timeLeft()
	if left <= 0 {
		return Route{}, -1
	}
	f.otherRoutes = f.client.config.Router.Changed() // before Routes: no change is missed in between
	if wait := time.Until(f.notBefore); wait > 0 && !moving {
		return Route{}, min(left, wait)
	}
	routes := f.client.config.Router.Routes()
	s.mu.Lock()
	current := s.route.Link
	s.mu.Unlock()
	for pass := range 2 {
		for _, r := range routes {
			if f.excluded[r.Relay] || f.tried[r.Link] {
				continue
			}
			if (moving || f.elsewhere) && r.Link == current && (pass == 0 || moving && why != deadPath) {
				continue // elsewhere first; here only if the link itself is well
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
		return Route{}, -1 // all have refused
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

// deadPath is the reason for a move that the link isn't to blame for.
const deadPath = "the path is dead: no answer to a ping"

// timeLeft is how long the session may still look for a stream.
func (f *forward) timeLeft() time.Duration {
	s := f.session
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping || s.reset != nil && *s.reset == EndRevoked: // nobody is left to be told
		return 0
	case s.stream != nil && f.opened:
		return s.granted
	case s.reset != nil && s.attempt == 0: // nobody has heard of it
		return 0
	case s.reset != nil && !f.opened: // somebody may have
		return f.client.limits().OpenTimeout - time.Since(s.info.Since)
	case s.reset != nil:
		return s.granted - time.Since(s.info.Since)
	case !f.opened && s.attempt == 0:
		return holdTime - f.age()
	case !f.opened:
		return f.client.limits().OpenTimeout - f.age()
	}
	return s.granted - time.Since(f.detachedAt)
}

// age is how long this process has run since the session began.
func (f *forward) age() time.Duration { return f.host.clock.Now() - f.begun }

func (f *forward) isReset() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reset != nil
}

// pause waits for a change of the links or of the session, d at most.
func (f *forward) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.changed:
	case <-f.otherRoutes:
		f.tried = nil
	}
}

// giveUpLocked ends a session for which no stream was to be had. One that the
// server may have opened without this end's knowing is reset first, so that the
// server hears of it if it can.
func (f *forward) giveUpLocked() {
	s := f.session
	switch {
	case s.reset != nil:
		f.closeLocked(*s.reset)
	case s.ended:
		f.closeLocked(EndClosed)
	case f.opened && f.refusal == nil:
		f.closeLocked(EndExpired)
	case f.opened:
		f.refusedLocked(EndRevoked, f.refusal)
	case f.refusal != nil && f.firstTry.IsZero():
		f.closeLocked(EndRefused)
	case s.attempt > 0:
		if f.refusal == nil {
			f.refusal = &wire.Reply{Status: wire.StatusTimeout, Text: "no answer: " + f.lastFailure}
		}
		s.resetLocked(EndRefused, resetByExpiry)
	default:
		f.refusal = &wire.Reply{Status: wire.StatusNotConnected, Text: "no link to a relay"}
		f.closeLocked(EndUnattached)
	}
}

// carryOn goes on with the stream that the session was to leave, since nobody
// else would take it. It returns false if that stream is lost.
func (f *forward) carryOn(st wire.Stream) bool {
	s := f.session
	s.mu.Lock()
	f.tried = nil
	if err := s.lost; err != nil {
		st.Reset(wire.CodeLost)
		f.lostLocked(err.Error())
		s.mu.Unlock()
		return false
	}
	s.frozen, s.moving = false, ""
	_ = st.SetWriteDeadline(time.Time{})
	_ = st.SetReadDeadline(time.Time{})
	if s.reset != nil {
		s.hurryLocked()
	}
	s.cond.Broadcast()
	s.sendLocked(false)
	return true
}
