package session

import (
	"context"
	"net"
	"time"

	"ptthqd/pkg/wire"
)

// live is the life of a session: it dials P5, reads what P5 sends, and when
// all is over tells of it.
func (v *Server) live(s *session, dial Dial) {
	_ = makeRoom(0)
	if v.connect(s, dial) {
		v.all.Go(func() { v.readTCP(s) }) // on a stack that dialling hasn't made large
		return
	}
	v.outlive(s)
}

// makeRoom has the goroutine's stack grow at once to what dialling takes of it. By itself it grows in steps, each of which copies all
// that is on it by then. Of the time of a server which opens sessions all the while, growing took 9 %, and takes 5, most of it for
// other goroutines; room for 10 KiB is no better.
//
//go:noinline
func makeRoom(i int) byte {
	var room [5 << 10]byte
	return room[i]
}

// readTCP is live from there on.
func (v *Server) readTCP(s *session) {
	if s.pump() {
		v.all.Go(func() { v.readTCP(s) })
		return
	}
	v.outlive(s)
}

// outlive waits for the end of a session whose P5 isn't read any more, and tells of it.
func (v *Server) outlive(s *session) {
	s.mu.Lock()
	for !s.closed || s.reading || s.writing {
		s.cond.Wait()
	}
	s.mu.Unlock()
	s.work.Wait()
	v.tell(s)
}

//go:noinline
func (v *Server) tell(s *session) { v.report(*s.final) } // on a stack that pump does not need while it waits

// connect dials P5 and replies. It goes on when the stream is lost meanwhile:
// the client will come back with another.
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
			abort(&end{Conn: conn})
			err = refusal
		}
	}
	s.mu.Lock()
	s.cancelDial = nil
	if s.closed || s.reset != nil {
		s.mu.Unlock()
		if err == nil {
			abort(&end{Conn: conn})
		}
		return false
	}
	if err != nil {
		v.declineLocked(s, refusalOf(err), farewellTime)
		return false
	}
	s.end = newEnd(conn)
	if a, ok := conn.(interface{ RemoteAddr() net.Addr }); ok && a.RemoteAddr() != nil {
		s.info.Peer = a.RemoteAddr().String()
	}
	v.dialledLocked(s, conn)
	s.deliverQueueLocked()
	if s.in.fin && !s.in.delivering && !s.in.done() {
		s.deliverFinLocked()
	}
	if s.stream == nil {
		s.setState(Detached)
		s.mu.Unlock()
		return true
	}
	v.grantLocked(s)
	return true
}

// dialInTime dials for as long as the limit says. Where the process has not run for a part of that, nobody has looked whether P5
// had answered: it dials again for that time.
func (v *Server) dialInTime(ctx context.Context, dial Dial) (Conn, error) {
	clock := &v.host.clock
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

// declineLocked ends a session that isn't open yet with a refusal, and unlocks
// it. Whoever reads its stream goes on until the client has ended it, but not
// for longer than patience.
func (v *Server) declineLocked(s *session, r *Refusal, patience time.Duration) {
	st := s.stream
	s.detachLocked()
	s.closeLocked(Summary{Status: r.Status, Text: r.Text, End: EndRefused})
	v.removed(s)
	s.mu.Unlock()
	if st != nil {
		v.say(st, r)
		_ = st.SetReadDeadline(time.Now().Add(patience))
	}
}

// grantLocked replies 200 on the session's stream, and lets it write. It
// unlocks the session.
func (v *Server) grantLocked(s *session) {
	st := s.stream
	for s.writing && s.stream == st {
		s.cond.Wait()
	}
	if s.stream != st || s.closed {
		s.mu.Unlock()
		return
	}
	s.in.ackedSaid, s.in.limitSaid = s.in.acked, s.in.limit
	if s.reset == nil && !s.ended {
		s.setState(Attached)
	}
	reply := wire.Append(nil, &wire.Reply{
		Status: wire.StatusOpen, Node: v.config.Node,
		Inner: wire.Append(nil, &wire.Granted{
			Version: wire.Version, Received: s.in.received, Acked: s.in.acked, Limit: s.in.limit,
			ResumeTimeout: s.granted,
		}),
	})
	s.writing, s.frozen = true, false
	asked := s.in.received > 0
	s.mu.Unlock()
	if asked { // P5's answer may come at once, and take this along
		st.WriteLater(reply)
		s.wrote(st, nil, 0, nil)
		return
	}
	n, err := st.Write(reply)
	s.wrote(st, reply, n, err)
}
