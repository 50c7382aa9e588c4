package session

import (
	"time"

	"ptthqd/pkg/wire"
)

type sessionKey struct {
	client string
	token  wire.Token
}

// A load counts the sessions of one client.
type load struct{ sessions, detached int }

// A tombstone answers for a session that has ended. While it exists, there is no session under its
// key.
type tombstone struct {
	key     sessionKey
	granted wire.Granted
	expires time.Time
}

// admit finds the session of an open or its tombstone. Without either it makes a session, within
// the limits, and starts its goroutine. A session is attached before it is in the table, so that no
// goroutine finds it there without its stream, to end it or to take it over.
func (v *Server) admit(key sessionKey, m *wire.Open, info Info, above []string, dial Dial, st wire.Stream, via *Route) (s *session, made *attachment, tomb *wire.Granted, r *Refusal) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if t := v.tombs[key]; t != nil {
		return nil, nil, &t.granted, nil
	}
	if s := v.sessions[key]; s != nil {
		return s, nil, nil, nil
	}
	of := v.clients[key.client]
	if of == nil {
		of = new(load)
	}
	switch {
	case v.stopped:
		return nil, nil, nil, &Refusal{wire.StatusRefused, "the server is stopping"}
	case m.Attempt > 1 && m.Age > time.Since(v.started):
		return nil, nil, nil, v.unknown("the server has restarted since the first attempt")
	case len(v.sessions) >= v.config.Limits.Sessions:
		v.limitHit(limitSessions)
		return nil, nil, nil, &Refusal{wire.StatusTooMany, "the server has as many sessions as its limit allows"}
	case of.sessions >= v.config.Limits.SessionsPerPeer:
		v.limitHit(limitPerClient)
		return nil, nil, nil, &Refusal{wire.StatusTooMany, "the client has as many sessions at the server as the limit allows"}
	}
	of.sessions++
	v.clients[key.client] = of
	s = newSession(v.shared, true, key.token, info)
	s.attempt, s.origin, s.above = m.Attempt, m.Origin, above
	s.granted = min(m.ResumeTimeout, v.config.ResumeTimeout)
	s.settle = func() { v.bury(key, s) }
	s.mu.Lock() // out of order, but nobody else knows the session yet
	made = s.attachLocked(st, *via, 0)
	made.frozen = true // nothing goes before the reply
	s.out.limit = m.Limit
	s.mu.Unlock()
	v.sessions[key] = s
	v.all.Go(func() { v.live(s, dial) })
	return s, made, nil, nil
}

// removed takes a closed session out of the table. The caller holds the session's lock.
func (v *Server) removed(s *session) {
	v.reattached(s)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.removeLocked(sessionKey{s.info.Client, s.token}, s)
}

func (v *Server) removeLocked(key sessionKey, s *session) {
	if v.sessions[key] != s {
		return
	}
	delete(v.sessions, key)
	v.undialLocked(s)
	if of := v.clients[key.client]; of != nil {
		if of.sessions--; of.sessions == 0 {
			delete(v.clients, key.client)
		}
	}
}

// bury closes a session that was reset or has ended, and leaves a tombstone. The caller holds the
// session's lock.
func (v *Server) bury(key sessionKey, s *session) {
	if s.closed {
		return
	}
	end := OutcomeClosed
	if s.ending.reset() {
		end = s.ending.how
	}
	granted := wire.Granted{
		Version: wire.Version, Received: s.in.received, Acked: s.in.acked, Limit: s.in.limit,
		Reset: s.ending.reset(),
	}
	sum := Summary{Outcome: end}
	if s.local != nil { // P5 was dialled
		sum.Status = wire.StatusOpen
	}
	s.closeLocked(sum)
	v.reattached(s)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.removeLocked(key, s)
	if end == OutcomeRevoked || end == OutcomeExpired || v.stopped {
		return // without a tombstone, 403 or 410 is the answer
	}
	if len(v.order) >= v.config.Limits.Tombstones {
		v.forgetLocked(1)
	}
	t := &tombstone{key, granted, time.Now().Add(tombstoneTime)}
	v.tombs[key] = t
	v.order = append(v.order, t)
	if v.burial == nil {
		v.burial = time.AfterFunc(tombstoneTime, v.forget)
	}
}

// forget drops the tombstones that have expired.
func (v *Server) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := time.Now()
	n := 0
	for n < len(v.order) && !v.order[n].expires.After(now) {
		n++
	}
	v.forgetLocked(n)
	v.burial = nil
	if len(v.order) > 0 && !v.stopped {
		v.burial = time.AfterFunc(v.order[0].expires.Sub(now), v.forget)
	}
}

// forgetLocked drops the n oldest tombstones.
func (v *Server) forgetLocked(n int) {
	for i, t := range v.order[:n] {
		delete(v.tombs, t.key)
		v.order[i] = nil
	}
	if v.order = v.order[n:]; len(v.order) == 0 {
		v.order = nil
	}
}
