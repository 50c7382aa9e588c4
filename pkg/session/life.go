package session

import (
	"context"
	"net"
	"time"

	"ptthqd/pkg/wire"
)

// live dials P5, and begins the rest of the session's life on a new stack: the stack on which it
// has dialled stays twice as large as waiting needs, 4 KiB of each idle connection.
func (v *Server) live(s *session, dial Dial) {
	if v.connect(s, dial) {
		v.all.Go(func() {
			s.pump()
			v.outlive(s)
		})
		return
	}
	v.outlive(s)
}

// outlive waits until a session whose P5 is not read any more is over, and reports it.
func (v *Server) outlive(s *session) {
	s.mu.Lock()
	for !s.closed || s.busyLocked() {
		s.cond.Wait()
	}
	s.mu.Unlock()
	s.work.Wait()
	v.report(*s.final)
}

// connect dials P5, replies, and reports whether the session goes on. It keeps dialling if the
// stream is lost: the client will bring another one.
func (v *Server) connect(s *session, dial Dial) bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	s.cancelDial = cancel
	s.mu.Unlock()
	conn, err := v.dialInTime(ctx, dial)
	if err == nil {
		if refusal := v.lookAgain(s); refusal != nil {
			abort(&tcpSide{Conn: conn})
			err = refusal
		}
	}
	s.mu.Lock()
	s.cancelDial = nil
	if s.closed || s.ending.reset() {
		s.mu.Unlock()
		if err == nil {
			abort(&tcpSide{Conn: conn})
		}
		return false
	}
	if err != nil {
		v.declineUnlock(s, refusalOf(err), farewellTime)
		return false
	}
	s.local = newTCPSide(conn)
	if a, ok := conn.(interface{ RemoteAddr() net.Addr }); ok && a.RemoteAddr() != nil {
		s.info.Peer = a.RemoteAddr().String()
	}
	v.dialledLocked(s, conn)
	s.deliverQueueLocked()
	if s.in.fin && !s.in.delivering && !s.in.done() {
		s.deliverFinLocked()
	}
	if s.at == nil {
		if !s.ending.reset() { // it is, if P5 didn't take the end
			s.transitionLocked(Detached)
		}
		s.mu.Unlock()
		return true
	}
	v.grantUnlock(s)
	return true
}

// dialInTime dials for DialTimeout at most, in process time. While the process didn't run, it could
// not see P5's answer. So if the deadline passes with more than 1 s of process time left,
// dialInTime dials again.
func (v *Server) dialInTime(ctx context.Context, dial Dial) (Conn, error) {
	clock := &v.shared.clock
	clock.Hold()
	defer clock.Release()
	end := clock.Now() + v.limits().DialTimeout
	for {
		ctx, cancel := context.WithTimeout(ctx, end-clock.Now())
		conn, err := dial(ctx)
		late := err != nil && ctx.Err() == context.DeadlineExceeded && end-clock.Now() > time.Second
		cancel()
		if !late {
			return conn, err
		}
	}
}

// declineUnlock ends a session that isn't open yet with a refusal, and unlocks it. The reader of
// its stream goes on until the client has ended the stream, for patience at most.
func (v *Server) declineUnlock(s *session, r *Refusal, patience time.Duration) {
	at := s.at
	s.detachLocked()
	s.closeLocked(Summary{Status: r.Status, Text: r.Text, Outcome: OutcomeRefused})
	v.removed(s)
	s.mu.Unlock()
	if at != nil {
		v.say(at.stream, r)
		_ = at.stream.SetReadDeadline(time.Now().Add(patience))
	}
}

// grantUnlock replies 200 on the session's stream, lets frames follow, and unlocks the session.
func (v *Server) grantUnlock(s *session) {
	at := s.at
	for at.writing && s.at == at {
		s.cond.Wait()
	}
	if s.at != at || s.closed {
		s.mu.Unlock()
		return
	}
	at.ackedSaid, at.limitSaid = s.in.acked, s.in.limit
	if !s.ending.reset() && !s.ended {
		s.transitionLocked(Attached)
	}
	reply := wire.Append(nil, &wire.Reply{
		Status: wire.StatusOpen, Node: v.config.Node,
		Inner: wire.Append(nil, &wire.Granted{
			Version: wire.Version, Received: s.in.received, Acked: s.in.acked, Limit: s.in.limit,
			ResumeTimeout: s.granted,
		}),
	})
	at.writing, at.frozen = true, false
	asked := s.in.received > 0
	s.mu.Unlock()
	if asked { // P5 may answer at once; the reply can leave with that
		at.stream.WriteLater(reply)
		at.wrote(nil, 0, nil)
		return
	}
	n, err := at.stream.Write(reply)
	at.wrote(reply, n, err)
}
