package session

import (
	"context"
	crand "crypto/rand"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ptthqd/pkg/budget"
	"ptthqd/pkg/wire"
)

// A Router knows the live links of a client. It is safe for concurrent use.
type Router interface {
	// Routes returns the ways to a server, the one with the shortest smoothed round trip first.
	// Links that are suspect, or whose relay is closing, are left out. The caller owns the slice.
	Routes(server string) []Route
	// Changed returns a channel that is closed at the next change of Routes.
	Changed() <-chan struct{}
}

// ClientConfig is what a Client needs.
type ClientConfig struct {
	Router Router
	Limits Limits
	Logger *slog.Logger // nil for none
	// LimitHit is called for each session that a limit keeps out or holds up, with the limit's name
	// in the config. It must not block. May be nil.
	LimitHit func(limit string)
	// Short is called when a server's share of a memory budget is used up, if it was not within the
	// last minute. It is called with locks held, and must not block. May be nil.
	Short func(budget.Shortage)
}

// A Client holds the sessions of a P2.
type Client struct {
	config ClientConfig
	shared *shared

	mu       sync.Mutex
	sessions map[*session]struct{}
	stopped  bool
	all      sync.WaitGroup // the calls of Forward
}

// NewClient makes a client without sessions.
func NewClient(c ClientConfig) *Client {
	c.Limits = c.Limits.withDefaults()
	client := &Client{
		config:   c,
		shared:   newShared(c.Logger, c.Limits, c.LimitHit, c.Short),
		sessions: make(map[*session]struct{}),
	}
	client.shared.all = client.list
	return client
}

// Run does what time alone brings about, until ctx is done. Then it resets the remaining sessions,
// gives the other end stopTimeout to confirm that, and returns when the sessions are gone.
func (c *Client) Run(ctx context.Context) error {
	sweeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sweep sync.WaitGroup
	sweep.Go(func() { c.shared.sweep(sweeping) })
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
	c.shared.notices.flush()
	return context.Cause(ctx)
}

// DefaultResumeTimeout is how long a detached session is kept by default.
const DefaultResumeTimeout = 10 * time.Minute

// stopTimeout is how long a session that is reset waits for the other end to confirm that.
const stopTimeout = 2 * time.Second

// holdTime is how long an accepted P1 waits for a live link (PROTOCOL.md, section 4).
const holdTime = 5 * time.Second

// A Request says where a connection is to go.
type Request struct {
	Mapping       string
	Server        string
	Target        string // canonical text
	Source        string // P1's address
	ResumeTimeout time.Duration
	// Origin is the mark of a P1 on this host, by which a server knows a connection that it has
	// dialled itself. Nil for none.
	Origin []byte
	// Opened is called once, when the server has granted the session. It is called with the
	// session's lock held: it must not block, or call the Client. May be nil.
	Opened func()
}

// NewToken returns a random token. The connection ID follows from it.
func NewToken() (token wire.Token) {
	_, _ = crand.Read(token[:]) // never fails
	return token
}

// Forward forwards conn, an accepted connection of P1, and returns when the session is over. It
// owns conn from the call on, and only reads r. When ctx is done it resets the session. The caller
// may keep the summary.
func (c *Client) Forward(ctx context.Context, conn Conn, r *Request) *Summary {
	s := c.begin(conn, r)
	if s.final == nil { // it is admitted
		defer c.remove(s)
		if ctx.Done() != nil {
			defer context.AfterFunc(ctx, s.stop)()
		}
		s.work.Go(s.pump)
		f := &forward{session: s, client: c, request: r}
		f.run()
	}
	s.work.Wait()
	return s.final
}

// begin makes the session of conn. A session that is refused has its final summary.
func (c *Client) begin(conn Conn, r *Request) *session {
	s := newSession(c.shared, false, NewToken(), Info{
		Mapping: r.Mapping, Server: r.Server, Source: r.Source, Target: r.Target,
	})
	s.local = newTCPSide(conn)
	s.changed = make(chan struct{}, 1)
	s.granted = r.ResumeTimeout
	if text := c.add(s); text != "" {
		s.mu.Lock()
		s.closeLocked(Summary{Status: wire.StatusTooMany, Text: text, Outcome: OutcomeRefused})
		s.mu.Unlock()
	} else {
		s.prime()
	}
	return s
}

// stop resets the session because this process stops.
func (s *session) stop() {
	s.mu.Lock()
	s.stopLocked()
	s.sendUnlock(false)
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

// Sessions returns what all sessions are and do, the oldest first.
func (c *Client) Sessions() []Info { return infos(c.list()) }

// SetLimits changes the limits from now on. Sessions keep what they hold.
func (c *Client) SetLimits(l Limits) {
	l = l.withDefaults()
	c.mu.Lock()
	c.config.Limits = l
	c.mu.Unlock()
	c.shared.limit(l)
}

func (c *Client) limits() Limits {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.config.Limits
}

// Memory returns the state of the memory budgets.
func (c *Client) Memory() Memory { return c.shared.memory() }

func infos(all []*session) []Info {
	out := make([]Info, len(all))
	for i, s := range all {
		out[i] = s.snapshot()
	}
	slices.SortFunc(out, func(a, b Info) int { return a.Opened.Compare(b.Opened) })
	return out
}

// Move makes the sessions of a link resume over others, since the link is suspect, closing or
// replaced. Sessions that find no other link stay, so the caller repeats Move when a new link is
// up.
func (c *Client) Move(link any, why string) {
	for _, s := range c.list() {
		s.mu.Lock()
		if s.at != nil && s.at.route.Link == link {
			s.moveLocked(why)
		}
		if s.pending != nil && s.pendingLink == link && !s.ending.reset() {
			_ = s.pending.SetReadDeadline(longAgo)
		}
		s.mu.Unlock()
	}
}

// End resets the sessions that match, at both ends.
func (c *Client) End(match func(Info) bool, why Outcome) {
	for _, s := range c.list() {
		s.mu.Lock()
		if !match(s.snapshotLocked()) {
			s.mu.Unlock()
			continue
		}
		s.resetLocked(why, resetByRemoval)
		s.sendUnlock(false)
	}
}
