// Package relay is the role P3: it admits links, decides who may reach what,
// and joins the stream of a client with a stream to a server. It reads the
// tips and the reply of a connection and copies the rest without looking.
//
// A [Relay] is handed each admitted link; for each stream that a client opens on it
// it reads the tip, decides, opens the next hop, joins and accounts, in this
// order and in one screen: see connect.
//
//	r := relay.New(relay.Config{Policy: p, Logger: logger})
//	listener := &link.Listener{Admit: r.Admit, Serve: r.Serve, …}
//
// The relay owns the streams of the links that it serves, not the links' sockets.
// It is a security boundary: it dials nothing, and imports no package that could.
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

// Config is what a relay is made of. What a reload can change goes through [Relay.Apply] later.
type Config struct {
	Name   string        // how the relay calls itself in its replies; default "relay"
	Policy *policy.Relay // who is known, and who may reach what
	Limits Limits
	Logger *slog.Logger // default: slog.Default()
	// Opened is told how long after its request each connection was granted by its server. It must not block. Nil: nobody.
	Opened func(took time.Duration)
}

// Limits bound what peers can make grow. Zero fields have their default.
type Limits struct {
	Connections          int // connections in all; default 65536
	ConnectionsPerClient int // connections of one client; default 16384
	OpensPerSecond       int // requests of one client to connect, sustained; twice that in a burst; default 10000
	Parked               int // requests that wait for their servers' links; default 16384

	// ParkTime is how long they wait. Zero: 5 seconds. Negative: not at all.
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
	// parkTime is how long a request waits for its server's link, by default (PROTOCOL.md, section 4).
	parkTime = 5 * time.Second
	// recently is for how long after its last link a server is expected back, and after the relay's start each server: a new
	// connection waits for it as a resume does.
	recently = time.Minute
	// youngParkTime is how long it waits at least in the relay's first minute: an idle server notices with its next heartbeat,
	// 10 s later at most, that the relay was killed, and then dials.
	youngParkTime = 12 * time.Second
	// openShare and clientShare are which parts of Limits.Parked new connections may take, all together and those of one client.
	openShare, clientShare = 2, 16
	// refusalTime is how long a refused client has to take the reply.
	refusalTime = 5 * time.Second
	// sweepTime is how often each link is looked at for stalled joins.
	sweepTime = 2 * time.Second
)

// Relay is the role P3. Its methods may be called from several goroutines.
type Relay struct {
	name    string
	log     *slog.Logger
	tell    func(took time.Duration) // Config.Opened
	rules   atomic.Pointer[rules]
	closing atomic.Bool
	since   time.Time

	changing sync.Mutex // held by Apply
	links    links
	table    table
	counts   counts
	hits     quiet.Hits
	stallers stallers
	sweeps   sweeps
	lines    quiet.Pace // about connections, by peer
}

// rules are what a reload swaps.
type rules struct {
	policy *policy.Relay
	limits Limits
}

// New makes a relay. It starts nothing.
func New(cfg Config) *Relay {
	r := &Relay{name: cfg.Name, log: cfg.Logger, tell: cfg.Opened, since: time.Now(), links: newLinks(), table: newTable(), counts: newCounts()}
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

// Admit tells which peer a key belongs to: [link.Listener]'s question at each handshake.
func (r *Relay) Admit(key ident.PublicKey) (string, error) {
	peer, known := r.rules.Load().policy.PeerByKey(key)
	if !known {
		return "", fmt.Errorf("public key %v belongs to no peer; if it should, add it to a [[peers]] of this relay", key)
	}
	return peer.ID, nil
}

// LimitHit counts a hit of a limit outside of the relay: [link.Listener]'s LimitHit.
func (r *Relay) LimitHit(limit string) { r.hits.Hit(limit) }

// Serve works for an admitted link until the link ends or ctx is done, and
// returns when every stream of it is finished: [link.Listener]'s Serve. It is the
// listener that closes the link when ctx is done.
func (r *Relay) Serve(ctx context.Context, l *link.Link) {
	// An idle link waits in here, on the smallest stack that there is. None becomes as small again that has grown, so what
	// takes more is done on another, which is gone afterwards, or by calls that return.
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
		r.accept(n, s, tip)
	}
}

// arrived notes a link, and greets it. It has closed one whose key has been withdrawn since the handshake.
func (r *Relay) arrived(l *link.Link) *neighbour {
	n := &neighbour{link: l, lines: &r.lines, refusals: newRefusals()}
	if !r.arrive(n) {
		l.Close(wire.CloseRevoked, withdrawnKey)
		return nil
	}
	r.sweeps.begin(r)
	n.work.Go(func() { r.greet(n, r.closing.Load()) }) // it may have to wait for the peer
	return n
}

// accept takes a stream of a link.
//
//go:noinline
func (r *Relay) accept(n *neighbour, s wire.Stream, tip wire.Message) {
	spawn := n.work.Go
	spawn(func() { r.connect(n, s, tip, spawn) })
}

// refusalCost is what a request that is refused with 400, 403 or 429 takes of opens_per_second: to answer it is most of
// the work that a connection makes at its beginning, and nobody has any good of it.
const refusalCost = 10

// charge takes what a refused request costs beyond the one token that each request takes.
func (n *neighbour) charge() {
	n.opens.ReserveN(time.Now(), min(refusalCost-1, n.opens.Burst()))
}

// payOff waits until the peer owes nothing of opens_per_second. Its further requests wait in QUIC meanwhile: an answer to
// each, even a 429, would be what the limit is against.
//
//go:noinline
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

// departed forgets a link when all is ended that was joined over it, as its streams are.
func (r *Relay) departed(n *neighbour) {
	n.work.Wait()
	n.refusals.Close()
	r.sweeps.end()
	if rivals := r.links.remove(n); len(rivals) > 0 {
		n.log().Warn(sharedKey, "key", n.link.Key(), "from", rivals)
	}
}

const sharedKey = "several nodes hold this peer's key. Each needs one of its own, made with `ptthqd keygen`"

// Rival notes that a process was turned away, as another one with the key of its peer answers: [link.Listener]'s Rival.
func (r *Relay) Rival(peer string, from netip.Addr) {
	if rivals := r.links.contest(peer, from); len(rivals) > 0 {
		key, _ := r.links.lastKey(peer)
		r.log.Warn(sharedKey, "peer", peer, "key", key, "from", rivals)
	}
}

// arrive enters a link into the table of links, unless its key has been withdrawn
// since the handshake.
func (r *Relay) arrive(n *neighbour) bool {
	r.changing.Lock() // an Apply finds this link in the table, or has happened before
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

// greet tells a new link what its peer has missed.
func (r *Relay) greet(n *neighbour, closing bool) {
	_ = n.link.SendWelcome(n.id())
	r.sendWithdrawn(n)
	if closing {
		_ = n.link.SendClosing() // a link that can't carry it is ending by itself
	}
}

// sweeps are the looks at all links, while there are any. One timer is for all: a goroutine for each would be most of what
// an idle link takes of this package. The zero value is ready.
type sweeps struct {
	mu    sync.Mutex
	links int
	timer *time.Timer
	goOn  bool // the timer runs, or a sweep does
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

// end takes a link out of the count.
func (s *sweeps) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.links--; s.links == 0 && s.timer.Stop() {
		s.goOn = false
	}
}

// again sets the timer for the next sweep, if there is to be one.
func (s *sweeps) again() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.goOn = s.links > 0; s.goOn {
		s.timer.Reset(sweepTime)
	}
}

// sweep is called by the timer.
func (r *Relay) sweep() {
	defer r.sweeps.again()
	now := time.Now()
	for _, n := range r.links.all() {
		r.resetStalled(n, now)
	}
}

// connect serves one stream of a client, from its tip to its end.
func (r *Relay) connect(from *neighbour, s wire.Stream, tip wire.Message, spawn func(func())) {
	// An idle connection waits in here, so what takes much of the stack is done in a call that returns.
	c, onward := r.open(from, s, tip)
	if c == nil {
		return
	}
	r.join(c, s, onward, spawn)
}

// join copies until the end. It may return before, with the rest of the work in what spawn has started.
func (r *Relay) join(c *connection, s, onward wire.Stream, spawn func(func())) {
	reply := &replyReader{Stream: onward, seen: func(m *wire.Reply) { r.replied(c, m) }}
	c.join.Run(c.ctx, s, reply, spawn, func(end splice.End) {
		r.account(c, end)
		r.table.remove(c)
	})
}

// open decides about a stream and opens the next hop. It has refused what can't be joined.
func (r *Relay) open(from *neighbour, s wire.Stream, tip wire.Message) (*connection, wire.Stream) {
	inTime := from.opens.Allow() // whatever comes of it
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
	c, no := r.admit(from, q)
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

// admit decides about a request and enters it into the table.
func (r *Relay) admit(from *neighbour, q request) (*connection, refusal) {
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
			text:   fmt.Sprintf("connections between %s and %s have held up those of others again and again; in %v there may be new ones", q.client, q.server, left.Round(time.Second)),
		}
	}
	c := newConnection(q, from)
	if err := r.table.add(c, rules.limits); err != nil {
		r.hits.Hit(err.limit)
		return nil, refusal{status: wire.StatusTooMany, text: err.Error()}
	}
	// A change of the rules has either seen c in the table or is seen here.
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

// openNextHop opens a stream to the server. It may wait for the server's link.
func (r *Relay) openNextHop(c *connection, s wire.Stream, inner []byte) (wire.Stream, refusal) {
	until := time.Now().Add(r.patience(c))
	for {
		to, no := r.nextHop(c, s, until)
		if to == nil {
			return nil, no
		}
		onward, err := to.link.Open(wire.Append(nil, &wire.Incoming{Client: c.client, Inner: inner, Others: r.otherNames(c.client)}))
		switch {
		case err == nil:
			r.table.opening(c, to)
			return onward, refusal{}
		case to.link.Err() == nil || !time.Now().Before(until):
			if errors.Is(err, link.ErrStreamLimit) {
				r.hits.Hit(limitStreams)
			}
			return nil, notOpened(to, err)
		} // else the link has just ended, and another may come
	}
}

// otherNames are those that a client has besides this one.
func (r *Relay) otherNames(client string) []string {
	peer, _ := r.rules.Load().policy.Peer(client)
	if len(peer.Others) == 0 {
		return nil
	}
	return slices.DeleteFunc(peer.Names(), func(name string) bool { return name == client })
}

// patience returns how long a request waits for its server's link: a resume park_timeout, and so does a new connection
// whose client has no other relay to ask, if the server is expected back.
func (r *Relay) patience(c *connection) time.Duration {
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

// nextHop returns the link of a connection's server, for which it waits until then.
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

// account logs how a connection ended, once.
func (r *Relay) account(c *connection, end splice.End) {
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
	code := wire.Status(0) // nobody has answered
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

// replied takes note of the server's answer, which has just passed.
func (r *Relay) replied(c *connection, m *wire.Reply) {
	// Not the inner part: it is a piece of a pooled buffer.
	c.reply.Store(&wire.Reply{Status: m.Status, Text: m.Text, Node: m.Node})
	if !c.probed(m.Status) {
		r.counts.reply(m.Status, c.resume)
	}
	if granted(m.Status) {
		r.table.opened(c)
		if !c.resume && r.tell != nil {
			r.tell(time.Since(c.since))
		}
		if c.from.log().Enabled(c.ctx, slog.LevelDebug) {
			c.from.log().Debug("connection open", append(c.attributes(), slog.Uint64("code", uint64(m.Status)))...)
		}
	} else {
		r.table.enter(c, StateRefused)
	}
}

// probed reports whether the status answers a probe in the affirmative: the server knows no session
// of that token, and has thereby shown that it is reached.
func (q request) probed(s wire.Status) bool { return q.probe && s == wire.StatusNoSession }

func granted(s wire.Status) bool { return s == wire.StatusOpen || s == wire.StatusComplete }

// The ends of a connection at a relay, beside the names of the codes with which streams are reset. What the ends have
// agreed on in good order, an end or a reset, looks alike here: a relay doesn't read what it copies.
const (
	endComplete = "complete"
	endFailed   = "failed" // reset with a code of a later version
)

// explain says how a connection ended, who ended it, and why, in words.
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
		return endFailed, by, "it has reset the stream with a code that is not known: " + reset.Code.String()
	case isReset && reset.Remote:
		return reset.Code.String(), by, "it has reset the stream"
	case isReset:
		return reset.Code.String(), by, "its link was lost"
	}
	return endFailed, by, end.Cause.Error()
}
