// Package relay is the role P3: it joins the stream of a client with a stream to a server, where
// the policy allows it.
//
// A [Relay] is handed each admitted link. For each stream that a client opens on the link it reads
// the tip (request.go), asks the policy, enters the connection into the table (table.go), opens a
// stream to the server, and joins the two with pkg/splice: see open and join. Beyond the tip it
// reads only the server's reply. What is refused is in refusal.go, what a reload ends in change.go.
//
//	r := relay.New(relay.Config{Policy: p, Logger: logger})
//	listener := &link.Listener{Admit: r.Admit, Serve: r.Serve, …}
//	r.Apply(newPolicy, newLimits)  // a reload
//	r.Drain(ctx)                   // before the listener closes the links
//	r.Snapshot()                   // for status and metrics
//
// The relay owns the streams of the links that it serves; the links and their sockets belong to the
// listener. It is a security boundary: it dials nothing, and imports no package that could.
package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/quiet"
	"ptthqd/pkg/splice"
	"ptthqd/pkg/wire"
)

// Config is what a relay needs. [Relay.Apply] changes Policy and Limits later.
type Config struct {
	Name   string        // the relay's name in its replies; default "relay"
	Policy *policy.Relay // the peers, and who may reach what
	Limits Limits
	Logger *slog.Logger // default: slog.Default()
	// Opened is called when a server has granted a connection, with the time since its request. It
	// must not block. Nil: not called.
	Opened func(took time.Duration)
}

// Limits bound what peers can make grow. Zero fields have their default.
type Limits struct {
	Connections          int // connections in all; default 65536
	ConnectionsPerClient int // connections of one client; default 16384
	OpensPerSecond       int // requests of one client to connect; twice that in a burst; default 10000
	Parked               int // requests that wait for their servers' links; default 16384

	// ParkTime is how long a request waits for its server's link. Zero: 5 seconds. Negative: not
	// at all.
	ParkTime time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Connections <= 0 {
		l.Connections = 65536
	}
	if l.ConnectionsPerClient <= 0 {
		l.ConnectionsPerClient = 16384
	}
	if l.OpensPerSecond <= 0 {
		l.OpensPerSecond = 10000
	}
	if l.Parked <= 0 {
		l.Parked = 16384
	}
	if l.ParkTime == 0 {
		l.ParkTime = parkTime
	}
	return l
}

const (
	// parkTime is the default of Limits.ParkTime (PROTOCOL.md, section 4).
	parkTime = 5 * time.Second
	// recently is for how long a server is expected back after its last link, and every server
	// after the relay's start. A new connection waits for such a server as a resume does.
	recently = time.Minute
	// youngParkTime is the least time that a new connection waits in the relay's first minute. An
	// idle server notices the death of the relay with its next heartbeat, after 10 s at most, and
	// then dials.
	youngParkTime = 12 * time.Second
	// New connections may take 1/openShare of Limits.Parked, and those of one client 1/clientShare.
	// The rest is for resumes.
	openShare, clientShare = 2, 16
	// refusalTime is how long a refused client has to take the reply.
	refusalTime = 5 * time.Second
	// sweepTime is the interval at which each link is searched for stalled joins.
	sweepTime = 2 * time.Second
)

// Relay is the role P3. Its methods may be called from several goroutines.
type Relay struct {
	name    string
	log     *slog.Logger
	granted func(took time.Duration) // Config.Opened
	rules   atomic.Pointer[rules]
	closing atomic.Bool
	since   time.Time // the relay's start

	changing sync.Mutex // held by Apply, and while a link enters the table of links
	links    links
	table    table
	counts   counts
	hits     quiet.Hits
	stallers stallers
	sweeps   sweeps
	lines    quiet.Pace // lines about connections, by peer
}

// rules are what a reload swaps.
type rules struct {
	policy *policy.Relay
	limits Limits
}

// New makes a relay. It starts nothing.
func New(cfg Config) *Relay {
	r := &Relay{
		name: cfg.Name, log: cfg.Logger, granted: cfg.Opened, since: time.Now(),
		links: newLinks(), table: newTable(), counts: newCounts(),
	}
	if r.name == "" {
		r.name = wire.NodeRelay
	}
	if r.log == nil {
		r.log = slog.Default()
	}
	r.links.ids = otherNames(cfg.Policy)
	r.rules.Store(&rules{policy: cfg.Policy, limits: cfg.Limits.withDefaults()})
	return r
}

// Admit returns the ID of the peer with this key, or an error for the log: [link.Listener]'s Admit.
func (r *Relay) Admit(key ident.PublicKey) (string, error) {
	peer, known := r.rules.Load().policy.PeerByKey(key)
	if !known {
		return "", fmt.Errorf("public key %v belongs to no peer; "+
			"if it should, add it to a [[peers]] of this relay", key)
	}
	return peer.ID, nil
}

// LimitHit counts a hit of a limit outside of the relay: [link.Listener]'s LimitHit.
func (r *Relay) LimitHit(limit string) { r.hits.Hit(limit) }

// Serve serves an admitted link: [link.Listener]'s Serve. It returns when the link has ended, or
// ctx is done, and every stream of the link is finished. The listener closes the link when ctx is
// done.
//
// An idle link waits in Accept for days. arrived runs on a goroutine of its own, since a stack that
// has grown does not shrink to the size of a new one.
func (r *Relay) Serve(ctx context.Context, l *link.Link) {
	var n *neighbour
	done := make(chan struct{})
	go func() {
		defer close(done)
		n = r.arrived(l)
	}()
	<-done
	for n != nil {
		r.payOff(ctx, n)
		s, tip, err := l.Accept(ctx)
		if err != nil {
			r.departed(n)
			return
		}
		n.work.Go(func() { r.connect(n, s, tip) })
	}
}

// arrived enters a link into the table of links and greets the peer. If the peer's key was
// withdrawn since the handshake, arrived closes the link and returns nil.
func (r *Relay) arrived(l *link.Link) *neighbour {
	n := &neighbour{link: l, lines: &r.lines, refusals: newRefusals()}
	if !r.arrive(n) {
		l.Close(wire.CloseRevoked, withdrawnKey)
		return nil
	}
	r.sweeps.begin(r)
	n.work.Go(func() { r.greet(n, r.closing.Load()) }) // may block
	return n
}

// refusalCost is how many tokens of opens_per_second a request takes that is refused with 400, 403
// or 429. Its answer is most of the work that a connection makes at its beginning, for no use.
const refusalCost = 10

// charge takes the tokens of a refusal beyond the one that each request takes.
func (n *neighbour) charge() {
	n.opens.ReserveN(time.Now(), min(refusalCost-1, n.opens.Burst()))
}

// payOff waits until the peer owes no tokens of opens_per_second. Further requests wait in QUIC
// meanwhile: to answer each with a 429 would be the work that the limit is against.
func (r *Relay) payOff(ctx context.Context, n *neighbour) {
	owed := -n.opens.Tokens()
	if owed <= 0 {
		return
	}
	r.hits.Hit(limitOpens)
	timer := time.NewTimer(time.Duration(owed / float64(n.opens.Limit()) * float64(time.Second)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-n.link.Done():
	case <-ctx.Done():
	}
}

// departed removes a link that has ended, once all joins over it have ended.
func (r *Relay) departed(n *neighbour) {
	n.work.Wait()
	n.refusals.Close()
	r.sweeps.end()
	if rivals := r.links.remove(n); len(rivals) > 0 {
		n.log().Warn(sharedKey, "key", n.link.Key(), "from", rivals)
	}
}

const sharedKey = "several nodes hold this peer's key. " +
	"Each needs one of its own, made with `ptthqd keygen`"

// Rival notes that a process was turned away because another process with the same key answers:
// [link.Listener]'s Rival.
func (r *Relay) Rival(peer string, from netip.Addr) {
	if rivals := r.links.contest(peer, from); len(rivals) > 0 {
		key, _ := r.links.lastKey(peer)
		r.log.Warn(sharedKey, "peer", peer, "key", key, "from", rivals)
	}
}

// arrive enters a link into the table of links. It reports false if the peer's key was withdrawn
// since the handshake: an Apply either finds the link in the table, or came before this call.
func (r *Relay) arrive(n *neighbour) bool {
	r.changing.Lock()
	defer r.changing.Unlock()
	rules := r.rules.Load()
	peer, known := rules.policy.PeerByKey(n.link.Key())
	if !known || !peer.Is(n.link.Peer()) {
		return false
	}
	n.role = peer.Role
	n.call(peer.ID, r.log)
	n.opens = rate.NewLimiter(rate.Limit(rules.limits.OpensPerSecond), 2*rules.limits.OpensPerSecond)
	r.links.add(n)
	return true
}

// greet sends a new link what its peer has missed.
func (r *Relay) greet(n *neighbour, closing bool) {
	_ = n.link.SendWelcome(n.id())
	r.sendWithdrawn(n)
	if closing {
		_ = n.link.SendClosing() // fails only if the link is ending
	}
}

// sweeps runs a sweep every sweepTime while there are links. One timer serves all links: a
// goroutine per link would be most of what an idle link costs here. The zero value is ready.
type sweeps struct {
	mu    sync.Mutex
	links int
	timer *time.Timer
	goOn  bool // the timer or a sweep runs
}

// begin counts a link.
func (s *sweeps) begin(r *Relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links++
	switch {
	case s.goOn:
	case s.timer == nil:
		s.timer = time.AfterFunc(sweepTime, r.sweep)
	default:
		s.timer.Reset(sweepTime)
	}
	s.goOn = true
}

// end counts a link less. The last one stops the timer.
func (s *sweeps) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links--; s.links == 0 && s.timer.Stop() {
		s.goOn = false
	}
}

// again sets the timer for the next sweep if there are links.
func (s *sweeps) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.goOn = s.links > 0; s.goOn {
		s.timer.Reset(sweepTime)
	}
}

// sweep looks for stalled joins; the timer calls it.
func (r *Relay) sweep() {
	defer r.sweeps.again()
	now := time.Now()
	for _, n := range r.links.all() {
		r.resetStalled(n, now)
	}
}

// connect serves one stream of a client, from its tip to its end.
func (r *Relay) connect(from *neighbour, s wire.Stream, tip wire.Message) {
	c, onward := r.open(from, s, tip)
	if c == nil {
		return
	}
	reply := &replyReader{Stream: onward, seen: func(m *wire.Reply) { r.replied(c, m) }}
	end := c.join.Run(c.ctx, s, reply)
	r.logEnd(c, end)
	r.table.remove(c)
}

// open decides about a stream and opens a stream to the server. If it refuses, it has answered and
// returns nil.
func (r *Relay) open(from *neighbour, s wire.Stream, tip wire.Message) (*connection, wire.Stream) {
	inTime := from.opens.Allow() // every request takes a token
	q, inner, err := parseRequest(from, tip)
	if err != nil {
		status := wire.StatusMalformed
		if bad, ok := errors.AsType[*wire.InnerError](err); ok {
			status = bad.Status()
		}
		r.refuse(from, s, q, refusal{status: status, text: err.Error()})
		return nil, nil
	}
	if !inTime {
		r.hits.Hit(limitOpens)
		r.refuse(from, s, q, refusal{
			status: wire.StatusTooMany,
			text:   fmt.Sprintf("more than %d requests a second", r.rules.Load().limits.OpensPerSecond),
		})
		return nil, nil
	}
	c, no := r.enter(from, q)
	if c == nil {
		r.refuse(from, s, q, no)
		return nil, nil
	}
	onward, no := r.openNextHop(c, s, inner)
	if onward == nil {
		r.table.remove(c)
		r.refuse(from, s, q, no)
		return nil, nil
	}
	if from.log().Enabled(c.ctx, slog.LevelDebug) {
		from.log().Debug("connection opening", q.attributes()...)
	}
	return c, onward
}

// enter asks the policy about a request, and enters the connection into the table.
func (r *Relay) enter(from *neighbour, q request) (*connection, refusal) {
	rules := r.rules.Load()
	if d := q.decide(rules.policy); !d.Allowed {
		return nil, notAllowed(q, d)
	}
	to, _ := rules.policy.Peer(q.server)
	q.to = to.ID
	if r.closing.Load() {
		return nil, refusal{reset: wire.CodeClosing, text: aboutToStop}
	}
	if left := r.stallers.left(pair{q.client, q.server}); left > 0 {
		return nil, refusal{
			status: wire.StatusTooMany,
			text: fmt.Sprintf("connections between %s and %s have held up those of others again and again; "+
				"in %v there may be new ones", q.client, q.server, left.Round(time.Second)),
		}
	}
	c := newConnection(q, from)
	if err := r.table.add(c, rules.limits); err != nil {
		r.hits.Hit(err.limit)
		return nil, refusal{status: wire.StatusTooMany, text: err.Error()}
	}
	// A change of the rules either finds c in the table, or is noticed here.
	if now := r.rules.Load(); now != rules {
		if d := q.decide(now.policy); !d.Allowed || !belongs(now.policy, from) {
			r.table.remove(c)
			return nil, notAllowed(q, d)
		}
	}
	if r.closing.Load() {
		c.reset(wire.CodeClosing, aboutToStop)
	}
	return c, refusal{}
}

// openNextHop opens a stream to the server. It may wait for the server's link first.
func (r *Relay) openNextHop(c *connection, s wire.Stream, inner []byte) (wire.Stream, refusal) {
	until := time.Now().Add(r.parkTime(c))
	for {
		to, no := r.nextHop(c, s, until)
		if to == nil {
			return nil, no
		}
		tip := &wire.Incoming{Client: c.client, Inner: inner, Others: r.otherNames(c.client)}
		onward, err := to.link.Open(wire.Append(nil, tip))
		switch {
		case err == nil:
			r.table.opening(c, to)
			return onward, refusal{}
		case to.link.Err() == nil || !time.Now().Before(until):
			if errors.Is(err, link.ErrStreamLimit) {
				r.hits.Hit(limitStreams)
			}
			return nil, notOpened(to, err)
		} // otherwise the link has just ended, and another one may come in time
	}
}

// otherNames returns the names of a client besides this one.
func (r *Relay) otherNames(client string) []string {
	peer, _ := r.rules.Load().policy.Peer(client)
	if len(peer.Others) == 0 {
		return nil
	}
	return slices.DeleteFunc(peer.Names(), func(name string) bool { return name == client })
}

// parkTime returns how long a request waits for its server's link. A resume waits for park_timeout.
// A new connection does so if its client has no other relay to ask and the server is expected back.
func (r *Relay) parkTime(c *connection) time.Duration {
	park := r.rules.Load().limits.ParkTime
	switch {
	case park <= 0:
		return 0
	case c.resume:
		return park
	case !c.hold:
		return 0
	case time.Since(r.since) < recently:
		return max(park, youngParkTime)
	case r.links.here(c.server, recently):
		return park
	}
	return 0
}

// nextHop returns the link of a connection's server. It waits for the link until the given time.
func (r *Relay) nextHop(c *connection, s wire.Stream, until time.Time) (*neighbour, refusal) {
	to := r.links.get(c.server)
	if wait := time.Until(until); to == nil && wait > 0 {
		if text := r.table.park(c, r.rules.Load().limits.Parked); text != "" {
			r.hits.Hit(limitParked)
			return nil, refusal{
				status: wire.StatusNotConnected,
				text:   fmt.Sprintf("server %s is not connected to the relay, and %s", c.server, text),
			}
		}
		r.counts.parked.Add(1)
		to = r.links.await(c.ctx, s.Context(), c.server, wait)
		r.table.unpark(c)
	}
	if c.ctx.Err() != nil {
		return nil, stopped(context.Cause(c.ctx))
	}
	if to == nil {
		return nil, refusal{
			status: wire.StatusNotConnected,
			text:   fmt.Sprintf("server %s is not connected to the relay", c.server),
		}
	}
	return to, refusal{}
}

// logEnd logs how a connection ended.
func (r *Relay) logEnd(c *connection, end splice.End) {
	reply := c.reply.Load()
	if reply != nil && c.probed(reply.Status) {
		c.from.log().Debug("probe answered", append(c.attributes(), slog.String("node", c.server))...)
		return
	}
	if reply != nil && !granted(reply.Status) {
		c.from.noteRefusal(c.request, refusal{status: reply.Status, text: reply.Text}, c.server)
		return
	}
	how, by, reason := explain(end)
	code := wire.Status(0) // no answer
	if reply != nil {
		code = reply.Status
	}
	c.from.say(slog.LevelInfo, "connection ended", func() []any {
		return append(c.attributes(),
			slog.String("end", how),
			slog.Uint64("code", uint64(code)),
			slog.String("by", by),
			slog.String("reason", reason),
			slog.Uint64("bytes_up", c.join.Forth.Bytes()),
			slog.Uint64("bytes_down", c.join.Back.Bytes()),
			slog.Duration("duration", time.Since(c.since).Round(time.Millisecond)),
		)
	})
}

// replied notes the server's answer, which has just passed. It does not keep m.Inner, which lies in
// a pooled buffer.
func (r *Relay) replied(c *connection, m *wire.Reply) {
	c.reply.Store(&wire.Reply{Status: m.Status, Text: m.Text, Node: m.Node})
	if !c.probed(m.Status) {
		r.counts.reply(m.Status, c.resume)
	}
	if granted(m.Status) {
		r.table.opened(c)
		if !c.resume && r.granted != nil {
			r.granted(time.Since(c.since))
		}
		if c.from.log().Enabled(c.ctx, slog.LevelDebug) {
			c.from.log().Debug("connection open",
				append(c.attributes(), slog.Uint64("code", uint64(m.Status)))...)
		}
	} else {
		r.table.setState(c, StateRefused)
	}
}

// probed reports whether the status is the good answer to a probe: the server says that it has no
// such session, and thereby that it is reached.
func (q request) probed(s wire.Status) bool { return q.probe && s == wire.StatusNoSession }

func granted(s wire.Status) bool { return s == wire.StatusOpen || s == wire.StatusComplete }

// The ends of a connection at a relay, beside the names of stream codes. A close and a reset of the
// TCP connection look alike here, since both end the streams in order and the relay reads no
// frames.
const (
	endComplete = "complete"
	endFailed   = "failed" // reset with an unknown code, of a later version
)

// explain returns how a connection ended, which node ended it, and why.
func explain(end splice.End) (how, by, reason string) {
	reset, isReset := errors.AsType[*wire.ResetError](end.Cause)
	switch {
	case end.By == splice.Nobody:
		return endComplete, "both", "both ends have finished"
	case end.By == splice.Context && isReset:
		return reset.Code.String(), "relay", end.Cause.Error()
	}
	by = "client"
	if end.By == splice.B {
		by = "server"
	}
	switch {
	case isReset && !reset.Code.Known():
		reason = "it has reset the stream with a code that is not known: " + reset.Code.String()
		return endFailed, by, reason
	case isReset && reset.Remote:
		return reset.Code.String(), by, "it has reset the stream"
	case isReset:
		return reset.Code.String(), by, "its link was lost"
	}
	return endFailed, by, end.Cause.Error()
}
