package session

import (
	"context"
	crand "crypto/rand"
	"log/slog"
	"slices"
	"sync"
	"time"

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

// Forward carries conn, an accepted connection of P1, to its end. It owns conn from the call on, and
// blocks until the session is over. When ctx is done the session is reset.
func (c *Client) Forward(ctx context.Context, conn Conn, r Request) Summary {
	s := newSession(c.host, false, NewToken(), Info{
		Mapping: r.Mapping, Server: r.Server, Source: r.Source, Target: r.Target,
	})
	s.local = newTCPSide(conn)
	s.changed = make(chan struct{}, 1)
	s.granted = r.ResumeTimeout
	if text := c.add(s); text != "" {
		s.mu.Lock()
		s.closeLocked(Summary{Status: wire.StatusTooMany, Text: text, End: EndRefused})
		s.mu.Unlock()
		s.work.Wait()
		return *s.final
	}
	defer c.remove(s)
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, s.stop)()
	}
	s.prime()
	s.work.Go(s.pump)
	f := &forward{session: s, client: c, request: r}
	f.run()
	s.work.Wait()
	return *s.final
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
func (c *Client) End(match func(Info) bool, why End) {
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
