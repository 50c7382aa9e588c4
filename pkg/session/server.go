package session

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"ptthqd/pkg/wire"
)

// A Refusal is why a connection can't be opened.
type Refusal struct {
	Status wire.Status
	Text   string // for people at the client's end
}

func (r *Refusal) Error() string { return r.Status.String() + ": " + r.Text }

// A Dial connects to P5. A *Refusal is passed on as it is; other errors become
// 502, and those about time 504.
type Dial func(context.Context) (Conn, error)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	// Node is the server's ID: who refuses, in replies.
	Node string
	// Decide says whether a client may reach a target now, and how to dial it.
	// It is asked at each open and each resume, and must not block.
	Decide func(client, target string) (Dial, *Refusal)
	// Origin reports whether an open with this mark came by a connection that this process
	// has dialled, from local to another address of this host. Nil: none ever did.
	Origin func(mark []byte, local, to string) bool
	// Contested reports whether another process with the server's key may have the sessions that this one does not know:
	// then clients are to ask again. It must not block. Nil: there is none.
	Contested func() bool
	// ResumeTimeout is the longest time that a detached session is kept. 0
	// means 10 minutes.
	ResumeTimeout time.Duration
	// Ended is called once for each session when it is over, and for each
	// request that was refused. It may be nil.
	Ended  func(Summary)
	Limits Limits
	Logger *slog.Logger // nil for none
	// LimitHit is told of each session that a limit keeps out, ends, or holds up, by the limit's name in the config. It must not
	// block. Nil: nobody.
	LimitHit func(limit string)
	// Short is told when a client's share of a memory budget is used up, and has not been within the last minute. It is called
	// with locks held, and must not block. Nil: nobody.
	Short func(Shortage)
}

// The limits that are counted, as the config names them.
const (
	limitSessions  = "sessions"
	limitPerClient = "sessions_per_client"
	limitDetached  = "detached_per_client"
)

func (v *Server) limitHit(limit string) {
	if v.config.LimitHit != nil {
		v.config.LimitHit(limit)
	}
}

const (
	// tombstoneTime is how long the server remembers a session that has ended
	// (PROTOCOL.md, section 5, rule 8).
	tombstoneTime = 2 * time.Minute
	// farewellTime is how long the server reads on after a refusal, so that
	// what the client has sent behind its tip doesn't cut off the reply.
	farewellTime = 5 * time.Second
)

// A Server holds the sessions of a P4.
type Server struct {
	config  ServerConfig
	host    *host
	started time.Time
	all     sync.WaitGroup // the sessions' lives

	// mu may be taken while a session's lock is held, not the other way round.
	mu       sync.Mutex
	stopped  bool
	sessions map[sessionKey]*session
	clients  map[string]*load
	dialled  map[string][]*session // by their own address, those whose P5 is on this host
	tombs    map[sessionKey]*tombstone
	order    []*tombstone // the same, the oldest first
	burial   *time.Timer  // runs while there are tombstones
}

type sessionKey struct {
	client string
	token  wire.Token
}

// load is what one client takes.
type load struct{ sessions, detached int }

// A tombstone answers for a session that has ended. While it does, there is no
// other session under its key.
type tombstone struct {
	key     sessionKey
	granted wire.Granted
	expires time.Time
}

// NewServer makes a server without sessions.
func NewServer(c ServerConfig) *Server {
	c.Limits = c.Limits.withDefaults()
	orDefault(&c.ResumeTimeout, DefaultResumeTimeout)
	return &Server{
		config:   c,
		host:     newHost(c.Logger, c.Limits, c.LimitHit, c.Short),
		started:  time.Now(),
		sessions: make(map[sessionKey]*session),
		clients:  make(map[string]*load),
		tombs:    make(map[sessionKey]*tombstone),
	}
}

// Run does what the sessions need besides their own goroutines. When ctx is
// done it resets the sessions that are left, and returns when they are gone.
func (v *Server) Run(ctx context.Context) error {
	sweeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sweep sync.WaitGroup
	sweep.Go(func() { v.host.sweep(sweeping) })
	<-ctx.Done()
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	for _, s := range v.list() {
		s.mu.Lock()
		if s.end == nil && s.reset == nil && !s.closed {
			v.declineLocked(s, &Refusal{wire.StatusRefused, "the server is stopping"}, stopTimeout)
			continue
		}
		s.resetLocked(EndStopped, resetByStop)
		s.sendLocked(false)
	}
	v.all.Wait()
	stop()
	sweep.Wait()
	v.host.notices.flush()
	v.mu.Lock()
	if v.burial != nil {
		v.burial.Stop()
	}
	v.mu.Unlock()
	return context.Cause(ctx)
}

func (v *Server) list() []*session {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]*session, 0, len(v.sessions))
	for _, s := range v.sessions {
		all = append(all, s)
	}
	return all
}

// Sessions tells of all sessions, the oldest first.
func (v *Server) Sessions() []Info { return infos(v.list()) }

// Count returns how many sessions there are.
func (v *Server) Count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.sessions)
}

// Moving reports whether data has gone by in a session just now. A stop waits only while it does.
func (v *Server) Moving() bool { return moving(v.list()) }

// Set changes the limits and the resume timeout for what comes from now on.
func (v *Server) Set(l Limits, resume time.Duration) {
	l = l.withDefaults()
	orDefault(&resume, DefaultResumeTimeout)
	v.mu.Lock()
	v.config.Limits, v.config.ResumeTimeout = l, resume
	v.mu.Unlock()
	v.host.limit(l)
}

// Memory tells how the budgets stand.
func (v *Server) Memory() Memory { return v.host.memory() }

// End ends the sessions that match at once, detached ones too. The client is
// told not to resume them.
func (v *Server) End(match func(Info) bool, why End) {
	for _, s := range v.list() {
		s.mu.Lock()
		if s.closed || !match(s.snapshotLocked()) {
			s.mu.Unlock()
			continue
		}
		v.endLocked(s, why, wire.CodeRevoked)
	}
}

// withdraw ends a session, if there is one, whose client may not have it any
// more.
func (v *Server) withdraw(key sessionKey) {
	v.mu.Lock()
	s := v.sessions[key]
	v.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		v.endLocked(s, EndRevoked, wire.CodeRevoked)
	}
}

// endLocked ends s at once, its stream with a code that forbids to resume it, and unlocks it.
func (v *Server) endLocked(s *session, why End, code wire.StreamCode) {
	st := s.stream
	if s.reset == nil {
		s.reset = &why
	}
	s.detachLocked()
	s.settle()
	s.mu.Unlock()
	if st != nil {
		st.Reset(code)
	}
}

// Holder tells under which of its names a client has the session of a token, or had it; "" if it has none.
func (v *Server) Holder(names []string, token wire.Token) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, name := range names {
		key := sessionKey{name, token}
		if v.sessions[key] != nil || v.tombs[key] != nil {
			return name
		}
	}
	return ""
}

// Attach finds or makes the session that a stream is to carry which a relay has opened for client, and whose tip `incoming`
// was read: inner is what it held. It owns st. Whoever has called it calls Carry on what it returns.
func (v *Server) Attach(client string, inner wire.Message, st wire.Stream, via Route) Carrier {
	return Carrier{v, v.attach(client, inner, st, via), st}
}

// A Carrier is a stream that carries a session, unless that was refused.
type Carrier struct {
	server  *Server
	session *session // nil where it was refused
	stream  wire.Stream
}

// Carry blocks as long as the stream is in use. It needs little stack: where a session is idle for days, it is in here.
func (c Carrier) Carry() {
	if c.session != nil {
		err := c.session.readFrames(c.stream)
		c.server.carried(c.session, c.stream, err)
	}
}

// attach is Attach. Where there is no session it has said on st why.
func (v *Server) attach(client string, inner wire.Message, st wire.Stream, via Route) *session {
	switch m := inner.(type) {
	case *wire.Open:
		return v.open(client, m, st, via)
	case *wire.Resume:
		return v.resume(client, m, st, via)
	}
	v.refuse(st, &Refusal{wire.StatusMalformed, "the inner message is neither open nor resume"})
	return nil
}

// open makes a session, or takes the newer stream for one that was made by an
// attempt before this.
func (v *Server) open(client string, m *wire.Open, st wire.Stream, via Route) *session {
	key := sessionKey{client, m.Token}
	info := Info{Client: client, Server: v.config.Node, Source: m.Source, Target: m.Target, Relay: via.Relay, Link: via.Link}
	reject := func(r *Refusal) {
		v.refuse(st, r)
		info.ID = m.Token.ConnectionID()
		v.report(Summary{Info: info, Status: r.Status, Text: r.Text, End: EndRefused})
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
	case made:
		return s
	}
	return v.takeOver(s, m.Attempt, st, via, func() (uint64, *Refusal) {
		if s.out.known > 0 || s.info.Target != m.Target {
			return 0, &Refusal{wire.StatusMalformed, "a second opening of a session that is open"}
		}
		return 0, nil
	})
}

// admit finds the session of an open, its tombstone, or makes one, within the
// limits, and begins its life. Whoever finds a new one in the table, to end it
// or to take it over, finds it with its stream.
func (v *Server) admit(key sessionKey, m *wire.Open, info Info, above []string, dial Dial, st wire.Stream, via Route) (s *session, made bool, tomb *wire.Granted, r *Refusal) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if t := v.tombs[key]; t != nil {
		return nil, false, &t.granted, nil
	}
	if s := v.sessions[key]; s != nil {
		return s, false, nil, nil
	}
	of := v.clients[key.client]
	if of == nil {
		of = new(load)
	}
	switch {
	case v.stopped:
		return nil, false, nil, &Refusal{wire.StatusRefused, "the server is stopping"}
	case m.Attempt > 1 && m.Age > time.Since(v.started):
		return nil, false, nil, v.unknown("the server has restarted since the first attempt")
	case len(v.sessions) >= v.config.Limits.Sessions:
		v.limitHit(limitSessions)
		return nil, false, nil, &Refusal{wire.StatusTooMany, "the server has as many sessions as its limit allows"}
	case of.sessions >= v.config.Limits.SessionsPerPeer:
		v.limitHit(limitPerClient)
		return nil, false, nil, &Refusal{wire.StatusTooMany, "the client has as many sessions at the server as the limit allows"}
	}
	of.sessions++
	v.clients[key.client] = of
	s = newSession(v.host, true, key.token, info)
	s.attempt, s.origin, s.above = m.Attempt, m.Origin, above
	s.granted = min(m.ResumeTimeout, v.config.ResumeTimeout)
	s.settle = func() { v.bury(key, s) }
	s.mu.Lock() // out of order, but nobody else knows the session yet
	s.attachLocked(st, via, 0)
	s.frozen = true // nothing goes before the reply
	s.out.limit = m.Limit
	s.mu.Unlock()
	v.sessions[key] = s
	v.all.Go(func() { v.live(s, dial) })
	return s, true, nil, nil
}

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

func (v *Server) limits() Limits {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.config.Limits
}

func (v *Server) report(sum Summary) {
	if v.config.Ended != nil {
		v.config.Ended(sum)
	}
}

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

// refusalOf turns the error of a dial into what the client is told.
func refusalOf(err error) *Refusal {
	var r *Refusal
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &r):
		return r
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return &Refusal{wire.StatusTimeout, err.Error()}
	}
	return &Refusal{wire.StatusRefused, err.Error()}
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

// carried decides what the end of st means.
func (v *Server) carried(s *session, st wire.Stream, err error) {
	s.mu.Lock()
	if s.stream != st {
		closed := s.closed
		s.mu.Unlock()
		if closed {
			drain(st) // a refusal may be on its way
		} else {
			st.Reset(wire.CodeLost)
		}
		return
	}
	var bad *protocolError
	var reset *wire.ResetError
	switch {
	case errors.Is(err, errEnded):
		s.mu.Unlock()
		s.sayGoodbye(st)
		s.mu.Lock()
		if s.stream == st {
			s.detachLocked()
			s.settle()
		}
		s.mu.Unlock()
		return
	case errors.As(err, &bad):
		s.brokenLocked(bad)
		v.endLocked(s, EndProtocol, wire.CodeProtocol)
		return
	case errors.As(err, &reset) && reset.Remote && reset.Code == wire.CodeProtocol:
		s.foundBrokenLocked()
		v.endLocked(s, EndProtocol, wire.CodeProtocol)
		return
	case errors.As(err, &reset) && reset.Remote && reset.Code == wire.CodeRevoked:
		if s.reset == nil {
			s.endedBy = "relay"
		}
		v.endLocked(s, EndRevoked, wire.CodeRevoked)
		return
	}
	s.detachLocked() // writers see that and stop
	st.Reset(wire.CodeLost)
	if s.reset != nil || s.ended {
		s.settle()
		s.mu.Unlock()
		return
	}
	v.detached(s, err)
	s.mu.Unlock()
}

// detached lets s wait for another stream, within the limits. The caller holds
// its lock.
func (v *Server) detached(s *session, why error) {
	if s.end != nil {
		s.setState(Detached)
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
		s.resetLocked(EndExpired, resetByExpiry)
		return
	}
	s.expiry = time.AfterFunc(s.granted, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stream == nil && s.waiting {
			s.resetLocked(EndExpired, resetByExpiry)
		}
	})
}

// reattached is the opposite of detached. The caller holds the lock of s.
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

// bury closes a session that was reset or has ended, and leaves a tombstone.
// The caller holds the session's lock.
func (v *Server) bury(key sessionKey, s *session) {
	if s.closed {
		return
	}
	end := EndClosed
	if s.reset != nil {
		end = *s.reset
	}
	granted := wire.Granted{
		Version: wire.Version, Received: s.in.received, Acked: s.in.acked, Limit: s.in.limit,
		Reset: s.reset != nil,
	}
	sum := Summary{End: end}
	if s.end != nil { // it was dialled
		sum.Status = wire.StatusOpen
	}
	s.closeLocked(sum)
	v.reattached(s)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.removeLocked(key, s)
	if end == EndRevoked || end == EndExpired || v.stopped {
		return // 403 or 410 will answer
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

// removed takes a closed session out of the table. The caller holds its lock.
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

// resume goes on with a session over a new stream.
func (v *Server) resume(client string, m *wire.Resume, st wire.Stream, via Route) *session {
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
			refusal = no // it ended when the right was withdrawn
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
		case s.closed: // since it was found
			v.epitaphLocked(s, st)
		default:
			v.endLocked(s, EndResetByP1, wire.CodeRevoked)
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
		if s.end == nil {
			return 0, &Refusal{wire.StatusMalformed, "the session isn't open yet"}
		}
		if err := s.checkOffsetsLocked(m.Received, m.Acked, m.Limit); err != nil {
			return 0, &Refusal{wire.StatusMalformed, err.Error()}
		}
		s.out.limit = m.Limit   // which may be lower than before
		s.out.sent = m.Received // what was sent beyond that is lost
		if err := s.ackLocked(m.Acked - s.out.acked); err != nil {
			return 0, &Refusal{wire.StatusMalformed, err.Error()}
		}
		s.info.Resumes++
		return m.Received, nil
	})
}

// unknown is the answer about a session that this process does not know.
func (v *Server) unknown(text string) *Refusal {
	if v.config.Contested != nil && v.config.Contested() {
		return &Refusal{wire.StatusNotConnected, "another process with this server's key may have the session"}
	}
	return &Refusal{wire.StatusNoSession, text}
}

// takeOver makes st the stream of a session that exists, if attempt is the
// newest. check is called when nobody reads or writes the old stream any more,
// with the lock held: it says from which offset on to send, or why not to.
// takeOver returns the session if st is to carry it.
func (v *Server) takeOver(s *session, attempt uint64, st wire.Stream, via Route, check func() (uint64, *Refusal)) *session {
	s.mu.Lock()
	if attempt <= s.attempt {
		s.mu.Unlock()
		v.refuse(st, &Refusal{wire.StatusNotNewest, "a newer attempt has been seen"})
		return nil
	}
	s.attempt = attempt
	old := s.stream
	if old != nil {
		s.detachLocked()
		old.Reset(wire.CodeLost)
	}
	for (s.reading || s.writing) && s.attempt == attempt && !s.closed {
		s.cond.Wait()
	}
	switch {
	case s.attempt != attempt:
		s.mu.Unlock()
		v.refuse(st, &Refusal{wire.StatusNotNewest, "a newer attempt has been seen"})
		return nil
	case s.closed || s.reset != nil || s.ended:
		s.settle()
		v.epitaphLocked(s, st)
		return nil
	}
	sent, refusal := check()
	if refusal != nil {
		s.brokenLocked(errors.New(refusal.Text))
		v.endLocked(s, EndProtocol, wire.CodeProtocol)
		v.refuse(st, refusal)
		return nil
	}
	v.reattached(s)
	s.takeBackLocked()
	s.regainLocked(time.Now())
	s.attachLocked(st, via, sent)
	s.frozen = true // nothing goes before the reply
	if s.end == nil {
		s.mu.Unlock() // the reply follows when P5 is dialled
	} else {
		if !s.ended {
			s.tellResumedLocked(via.Relay, attempt, 0)
		}
		v.grantLocked(s)
	}
	return s
}

// epitaphLocked answers for a session that is closed. It unlocks it.
func (v *Server) epitaphLocked(s *session, st wire.Stream) {
	sum := s.final
	s.mu.Unlock()
	if sum.End == EndRefused {
		v.refuse(st, &Refusal{sum.Status, sum.Text})
		return
	}
	v.mu.Lock()
	tomb := v.tombs[sessionKey{sum.Client, s.token}]
	v.mu.Unlock()
	if tomb == nil {
		v.refuse(st, &Refusal{wire.StatusNoSession, "the session has ended: " + string(sum.End)})
		return
	}
	v.complete(st, tomb.granted)
}

// refuse says no on a stream and ends it.
func (v *Server) refuse(st wire.Stream, r *Refusal) {
	v.say(st, r)
	drain(st)
}

// say writes a refusal, and the end of the stream.
func (v *Server) say(st wire.Stream, r *Refusal) {
	_, _ = st.Write(wire.Append(nil, &wire.Reply{Status: r.Status, Text: r.Text, Node: v.config.Node}))
	_ = st.End(nil)
}

// complete says that the session has ended.
func (v *Server) complete(st wire.Stream, granted wire.Granted) {
	_, _ = st.Write(wire.Append(nil, &wire.Reply{
		Status: wire.StatusComplete, Node: v.config.Node, Inner: wire.Append(nil, &granted),
	}))
	_ = st.End(nil)
	drain(st)
}

// drain reads what still comes on a stream until the client ends it, for a
// while, and ends its own half of reading.
func drain(st wire.Stream) {
	_ = st.SetReadDeadline(time.Now().Add(farewellTime))
	b := takeBuffer(smallBuffer)
	defer b.unref()
	for {
		if _, err := st.Read(b.b); err != nil {
			st.CancelRead(wire.CodeLost)
			return
		}
	}
}
