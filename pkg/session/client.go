package session

import (
	"cmp"
	"context"
	crand "crypto/rand"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/wire"
)

// A Router knows the ways from a client to its servers. It is safe for
// concurrent use.
type Router interface {
	// Routes returns the live links, the best first: those that are not
	// suspect and whose relay isn't closing, by smoothed round trip.
	Routes() []Route
	// Changed returns a channel that is closed when Routes will next have
	// changed.
	Changed() <-chan struct{}
}

// ClientConfig is what a Client needs.
type ClientConfig struct {
	Router Router
	Limits Limits
	Logger *slog.Logger // nil for none
	// LimitHit is told of each session that a limit keeps out or holds up, by the limit's name in the config. It must not block.
	// Nil: nobody.
	LimitHit func(limit string)
	// Short is told when a server's share of a memory budget is used up, and has not been within the last minute. It is called
	// with locks held, and must not block. Nil: nobody.
	Short func(Shortage)
}

// A Client holds the sessions of a P2.
type Client struct {
	config ClientConfig
	host   *host

	mu       sync.Mutex
	sessions map[*session]struct{}
	stopped  bool
	all      sync.WaitGroup // of Forward
}

// NewClient makes a client without sessions.
func NewClient(c ClientConfig) *Client {
	c.Limits = c.Limits.withDefaults()
	client := &Client{
		config:   c,
		host:     newHost(c.Logger, c.Limits, c.LimitHit, c.Short),
		sessions: make(map[*session]struct{}),
	}
	client.host.all = client.list
	return client
}

// Run does what the sessions need besides their own goroutines. When ctx is
// done it resets the sessions that are left, tells the other end as far as it
// can be told within stopTimeout, and returns when they are gone.
func (c *Client) Run(ctx context.Context) error {
	sweeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sweep sync.WaitGroup
	sweep.Go(func() { c.host.sweep(sweeping) })
	<-ctx.Done()
	c.mu.Lock()
	c.stopped = true
	c.mu.Unlock()
	for _, s := range c.list() {
		s.stop()
	}
	c.all.Wait()
	stop()
	sweep.Wait()
	c.host.notices.flush()
	return context.Cause(ctx)
}

// DefaultResumeTimeout is how long a detached session is kept, unless said
// otherwise.
const DefaultResumeTimeout = 10 * time.Minute

// stopTimeout is how long a session that is reset waits for the other end to
// confirm it.
const stopTimeout = 2 * time.Second

// holdTime is how long an accepted P1 waits for a live link (PROTOCOL.md,
// section 4).
const holdTime = 5 * time.Second

// A Request says where a connection is to go.
type Request struct {
	Mapping       string
	Server        string
	Target        string // canonical text
	Source        string // P1's address
	ResumeTimeout time.Duration
	Origin        []byte // the mark of a P1 on this host, by which a server knows its own; nil for none
	// Opened is called once, when the server has granted the session. It must not wait, nor ask the session. Nil: nobody is told.
	Opened func()
}

// NewToken makes a token, from which a connection's ID follows.
func NewToken() (token wire.Token) {
	_, _ = crand.Read(token[:]) // never fails
	return token
}

// Forward carries conn, an accepted connection of P1, to its end. It owns conn
// from the call on, and blocks until the session is over. When ctx is done the
// session is reset.
func (c *Client) Forward(ctx context.Context, conn Conn, r Request) Summary {
	f := c.Begin(conn, r)
	f.Carry(ctx)
	return f.Summary()
}

// A Forwarding is what Forward does, in two steps, for whoever has many at
// once: the stack on which Carry waits is most of what an idle connection
// costs, and what Begin and Summary need of it is given back by then.
type Forwarding struct{ forward forward }

// Begin makes the session of conn, which it owns from the call on. Carry must
// follow.
func (c *Client) Begin(conn Conn, r Request) *Forwarding {
	s := newSession(c.host, false, NewToken(), Info{
		Mapping: r.Mapping, Server: r.Server, Source: r.Source, Target: r.Target,
	})
	s.end = newEnd(conn)
	s.changed = make(chan struct{}, 1)
	s.granted = r.ResumeTimeout
	if text := c.add(s); text != "" {
		s.mu.Lock()
		s.closeLocked(Summary{Status: wire.StatusTooMany, Text: text, End: EndRefused})
		s.mu.Unlock()
	} else {
		s.prime()
	}
	return &Forwarding{forward{session: s, client: c, request: r}}
}

// Carry blocks until the session is over. When ctx is done the session is
// reset.
func (f *Forwarding) Carry(ctx context.Context) {
	s := f.forward.session
	if s.final == nil { // it is admitted
		if ctx.Done() != nil {
			defer context.AfterFunc(ctx, s.stop)()
		}
		s.work.Go(s.readTCP)
		f.forward.run()
		s.work.Wait()
		f.forward.client.remove(s)
		return
	}
	s.work.Wait()
}

// Summary tells how the session ended. It is there when Carry has returned.
func (f *Forwarding) Summary() Summary { return *f.forward.final }

// stop resets the session because this process stops.
func (s *session) stop() {
	s.mu.Lock()
	s.stopLocked()
	s.sendLocked(false)
}

func (c *Client) add(s *session) (refusal string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stopped:
		return "this process is stopping"
	case len(c.sessions) >= c.config.Limits.Sessions:
		if c.config.LimitHit != nil {
			c.config.LimitHit(limitSessions)
		}
		return "this process has as many sessions as its limit allows"
	}
	c.sessions[s] = struct{}{}
	c.all.Add(1)
	return ""
}

func (c *Client) remove(s *session) {
	c.mu.Lock()
	delete(c.sessions, s)
	c.mu.Unlock()
	c.all.Done()
}

func (c *Client) list() []*session {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*session, 0, len(c.sessions))
	for s := range c.sessions {
		all = append(all, s)
	}
	return all
}

// Sessions tells of all sessions, the oldest first.
func (c *Client) Sessions() []Info { return infos(c.list()) }

// Count returns how many sessions there are.
func (c *Client) Count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sessions)
}

// Carries reports whether a session has a stream on a link, or is getting one.
func (c *Client) Carries(link any) bool { return c.host.lines.use(link) }

// Moving reports whether data has gone by in a session just now. A stop waits only while it does.
func (c *Client) Moving() bool { return moving(c.list()) }

// SetLimits changes the limits for what comes from now on.
func (c *Client) SetLimits(l Limits) {
	l = l.withDefaults()
	c.mu.Lock()
	c.config.Limits = l
	c.mu.Unlock()
	c.host.limit(l)
}

func (c *Client) limits() Limits {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config.Limits
}

// Memory tells how the budgets stand.
func (c *Client) Memory() Memory { return c.host.memory() }

func infos(all []*session) []Info {
	out := make([]Info, len(all))
	for i, s := range all {
		out[i] = s.snapshot()
	}
	slices.SortFunc(out, func(a, b Info) int { return a.Opened.Compare(b.Opened) })
	return out
}

// Move makes the sessions that a link carries go elsewhere, since it is
// suspect, closing, or replaced. Where there is no other way they stay, so it
// is to be called again when a new link is up.
func (c *Client) Move(link any, why string) {
	for _, s := range c.list() {
		s.mu.Lock()
		if s.stream != nil && s.route.Link == link {
			s.moveLocked(why)
		}
		if s.pending != nil && s.pendingLink == link && s.reset == nil {
			_ = s.pending.SetReadDeadline(longAgo)
		}
		s.mu.Unlock()
	}
}

// End resets the sessions that match, at both ends.
func (c *Client) End(match func(Info) bool, why End) {
	for _, s := range c.list() {
		s.mu.Lock()
		if !match(s.snapshotLocked()) {
			s.mu.Unlock()
			continue
		}
		s.resetLocked(why, resetByRemoval)
		s.sendLocked(false)
	}
}

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
