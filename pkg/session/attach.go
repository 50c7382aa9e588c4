package session

import (
	"errors"
	"time"

	"ptthqd/pkg/wire"
)

// Open makes the session that a client asks for, or finds the one that an earlier attempt has made,
// and serves it over st until the stream's end. Open owns st.
func (v *Server) Open(client string, m *wire.Open, st wire.Stream, via *Route) {
	if at := v.open(client, m, st, via); at != nil {
		v.left(at, at.readFrames())
	}
}

// Resume finds the session that a client resumes, and serves it over st until the stream's end.
// Resume owns st.
func (v *Server) Resume(client string, m *wire.Resume, st wire.Stream, via *Route) {
	if at := v.resume(client, m, st, via); at != nil {
		v.left(at, at.readFrames())
	}
}

// open returns the session's attachment to st. It returns nil if st carries no session; then it has
// said on st why.
func (v *Server) open(client string, m *wire.Open, st wire.Stream, via *Route) *attachment {
	key := sessionKey{client, m.Token}
	info := Info{Client: client, Server: v.config.Node, Source: m.Source, Target: m.Target, Relay: via.Relay, Link: via.Link}
	reject := func(r *Refusal) {
		v.refuse(st, r)
		info.ID = m.Token.ConnectionID()
		v.report(Summary{Info: info, Status: r.Status, Text: r.Text, Outcome: OutcomeRefused})
	}
	if m.Version != wire.Version {
		reject(&Refusal{wire.StatusVersion, wire.OtherVersion(m.Version)})
		return nil
	}
	if m.Limit > 2*wire.MaxWindow {
		reject(&Refusal{wire.StatusMalformed, "the limit is larger than any window"})
		return nil
	}
	dial, refusal := v.config.Decide(client, m.Target)
	if refusal != nil {
		v.withdraw(key)
		reject(refusal)
		return nil
	}
	above, refusal := v.lineage(m.Origin, m.Source, m.Target)
	if refusal != nil {
		reject(refusal)
		return nil
	}
	s, made, tomb, refusal := v.admit(key, m, info, above, dial, st, via)
	switch {
	case refusal != nil:
		reject(refusal)
		return nil
	case tomb != nil:
		v.complete(st, *tomb)
		return nil
	case made != nil:
		return made
	}
	return v.takeOver(s, m.Attempt, st, via, func() (uint64, *Refusal) {
		if s.out.arrived > 0 || s.info.Target != m.Target {
			return 0, &Refusal{wire.StatusMalformed, "a second opening of a session that is open"}
		}
		return 0, nil
	})
}

// resume returns the session's attachment to st. It returns nil if the session doesn't go on over
// st; then it has said on st why.
func (v *Server) resume(client string, m *wire.Resume, st wire.Stream, via *Route) *attachment {
	key := sessionKey{client, m.Token}
	if m.Version != wire.Version {
		v.refuse(st, &Refusal{wire.StatusVersion, wire.OtherVersion(m.Version)})
		return nil
	}
	v.mu.Lock()
	s, tomb := v.sessions[key], v.tombs[key]
	v.mu.Unlock()
	if s == nil {
		if tomb != nil {
			v.complete(st, tomb.granted)
			return nil
		}
		refusal := v.unknown("the server doesn't know this session; it may have been restarted")
		if _, no := v.config.Decide(client, m.Target); no != nil {
			refusal = no // the session ended when the right was withdrawn
		}
		v.refuse(st, refusal)
		return nil
	}
	if m.Unconfirmed {
		s.mu.Lock()
		switch {
		case m.Attempt <= s.attempt:
			s.mu.Unlock()
			v.refuse(st, &Refusal{wire.StatusNotNewest, "a newer attempt has been seen"})
		case s.closed: // after it was found
			v.epitaphUnlock(s, st)
		default:
			v.endUnlock(s, OutcomeResetByP1, wire.CodeRevoked)
			v.complete(st, wire.Granted{Version: wire.Version, Reset: true})
		}
		return nil
	}
	if _, refusal := v.config.Decide(client, m.Target); refusal != nil {
		v.withdraw(key)
		v.refuse(st, refusal)
		return nil
	}
	return v.takeOver(s, m.Attempt, st, via, func() (uint64, *Refusal) {
		if s.info.Target != m.Target {
			return 0, &Refusal{wire.StatusMalformed, "the session has another target"}
		}
		if s.local == nil {
			return 0, &Refusal{wire.StatusMalformed, "the session isn't open yet"}
		}
		if err := s.checkOffsetsLocked(m.Received, m.Acked, m.Limit); err != nil {
			return 0, &Refusal{wire.StatusMalformed, err.Error()}
		}
		s.out.limit = m.Limit   // may be lower than before
		s.out.sent = m.Received // what was sent beyond that is lost
		if err := s.ackLocked(m.Acked - s.out.acked); err != nil {
			return 0, &Refusal{wire.StatusMalformed, err.Error()}
		}
		s.info.Resumes++
		return m.Received, nil
	})
}

// unknown returns the answer about a session that this process does not know.
func (v *Server) unknown(text string) *Refusal {
	if v.config.Contested != nil && v.config.Contested() {
		return &Refusal{wire.StatusNotConnected, "another process with this server's key may have the session"}
	}
	return &Refusal{wire.StatusNoSession, text}
}

// takeOver makes st the stream of a session that exists, if attempt is the newest. It calls check,
// with the lock held, when no goroutine reads or writes the old stream any more: check returns the
// offset to send from, or a refusal. takeOver returns the attachment, or nil if st doesn't carry
// the session.
func (v *Server) takeOver(s *session, attempt uint64, st wire.Stream, via *Route, check func() (uint64, *Refusal)) *attachment {
	s.mu.Lock()
	if attempt <= s.attempt {
		s.mu.Unlock()
		v.refuse(st, &Refusal{wire.StatusNotNewest, "a newer attempt has been seen"})
		return nil
	}
	s.attempt = attempt
	if old := s.at; old != nil {
		s.detachLocked()
		old.stream.Reset(wire.CodeLost)
	}
	for s.busyLocked() && s.attempt == attempt && !s.closed {
		s.cond.Wait()
	}
	switch {
	case s.attempt != attempt:
		s.mu.Unlock()
		v.refuse(st, &Refusal{wire.StatusNotNewest, "a newer attempt has been seen"})
		return nil
	case s.closed || s.ending.reset() || s.ended:
		s.settle()
		v.epitaphUnlock(s, st)
		return nil
	}
	sent, refusal := check()
	if refusal != nil {
		s.brokenLocked(errors.New(refusal.Text))
		v.endUnlock(s, OutcomeProtocol, wire.CodeProtocol)
		v.refuse(st, refusal)
		return nil
	}
	v.reattached(s)
	s.takeBackLocked()
	s.regainLocked(time.Now())
	at := s.attachLocked(st, *via, sent)
	at.frozen = true // nothing goes before the reply
	if s.local == nil {
		s.mu.Unlock() // connect replies when P5 is dialled
	} else {
		if !s.ended {
			s.tellResumedLocked(via.Relay, attempt, 0)
		}
		v.grantUnlock(s)
	}
	return at
}

// left acts upon the end of an attachment's stream.
func (v *Server) left(at *attachment, err error) {
	s := at.session
	s.mu.Lock()
	if s.at != at {
		closed := s.closed
		s.mu.Unlock()
		if closed {
			drain(at.stream) // a refusal may be on its way
		} else {
			at.stream.Reset(wire.CodeLost)
		}
		return
	}
	switch verdict, _ := judgeStream(err); verdict {
	case streamEnded:
		s.mu.Unlock()
		at.sayGoodbye()
		s.mu.Lock()
		if s.at == at {
			s.detachLocked()
			s.settle()
		}
		s.mu.Unlock()
		return
	case peerBroke:
		s.brokenLocked(err)
		v.endUnlock(s, OutcomeProtocol, wire.CodeProtocol)
		return
	case peerAccuses:
		s.foundBrokenLocked()
		v.endUnlock(s, OutcomeProtocol, wire.CodeProtocol)
		return
	case streamRevoked:
		if !s.ending.reset() {
			s.ending.by = "relay"
		}
		v.endUnlock(s, OutcomeRevoked, wire.CodeRevoked)
		return
	case streamLost, streamLeft:
	}
	s.detachLocked() // the writer sees that and stops
	at.stream.Reset(wire.CodeLost)
	if s.ending.reset() || s.ended {
		s.settle()
	} else {
		v.detached(s, err)
	}
	s.mu.Unlock()
}

// detached lets s wait for another stream, within the limits. The caller holds the lock of s.
func (v *Server) detached(s *session, why error) {
	if s.local != nil {
		s.transitionLocked(Detached)
		s.tellDetachedLocked(why.Error())
	}
	v.mu.Lock()
	of := v.clients[s.info.Client]
	of.detached++
	over := of.detached > v.config.Limits.DetachedPerPeer
	v.mu.Unlock()
	s.waiting = true
	s.takeBackLocked()
	if over {
		v.limitHit(limitDetached)
		s.resetLocked(OutcomeExpired, resetByExpiry)
		return
	}
	s.expiry = time.AfterFunc(s.granted, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.at == nil && s.waiting {
			s.resetLocked(OutcomeExpired, resetByExpiry)
		}
	})
}

// reattached undoes detached, if s waits for a stream. The caller holds the lock of s.
func (v *Server) reattached(s *session) {
	if !s.waiting {
		return
	}
	s.waiting = false
	if s.expiry != nil {
		s.expiry.Stop()
		s.expiry = nil
	}
	v.mu.Lock()
	if of := v.clients[s.info.Client]; of != nil {
		of.detached--
	}
	v.mu.Unlock()
}
