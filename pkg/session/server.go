package session

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ptthqd/pkg/budget"
	"ptthqd/pkg/wire"
)

// A Dial connects to P5. If it fails with a *Refusal, the client gets that; a timeout becomes
// status 504, any other error 502.
type Dial func(context.Context) (Conn, error)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	// Node is the server's ID, as its replies name it.
	Node string
	// Decide returns how to dial a target, or a refusal if the client may not reach it now. It is
	// called for each open and each resume, and must not block.
	Decide func(client, target string) (Dial, *Refusal)
	// Origin reports whether an open with this mark came by the connection that this process has
	// dialled from the address local to the address to, both on this host. Nil: none ever did.
	Origin func(mark []byte, local, to string) bool
	// Contested reports whether another process with the server's key may have the sessions that
	// this process does not know. If so, clients are told to try again. It must not block. Nil:
	// there is no other process.
	Contested func() bool
	// ResumeTimeout is how long a detached session is kept at most. 0 means 10 minutes.
	ResumeTimeout time.Duration
	// Ended is called once for each session when it is over, and for each open that is refused
	// before it has a session. It may be nil.
	Ended  func(Summary)
	Limits Limits
	Logger *slog.Logger // nil for none
	// LimitHit is called for each session that a limit keeps out, ends or holds up, with the
	// limit's name in the config. It must not block. May be nil.
	LimitHit func(limit string)
	// Short is called when a client's share of a memory budget is used up, if it was not within the
	// last minute. It is called with locks held, and must not block. May be nil.
	Short func(budget.Shortage)
}

// The config's names of the limits whose hits are counted.
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
	// tombstoneTime is how long the server remembers a session that has ended (PROTOCOL.md, 5.8).
	tombstoneTime = 2 * time.Minute
	// farewellTime is how long the server reads on after a refusal. If it stopped at once, what the
	// client has sent behind its tip could cut off the reply.
	farewellTime = 5 * time.Second
)

// A Server holds the sessions of a P4.
type Server struct {
	config  ServerConfig
	shared  *shared
	started time.Time
	all     sync.WaitGroup // the goroutines of live, one for each session

	// mu may be taken while a session's lock is held, not the other way round.
	mu       sync.Mutex
	stopped  bool
	sessions map[sessionKey]*session
	clients  map[string]*load
	dialled  map[string][]*session // sessions whose P5 is on this host, by dialledFrom
	tombs    map[sessionKey]*tombstone
	order    []*tombstone // those of tombs, the oldest first
	burial   *time.Timer  // runs forget, while there are tombstones
}

// NewServer makes a server without sessions.
func NewServer(c ServerConfig) *Server {
	c.Limits = c.Limits.withDefaults()
	orDefault(&c.ResumeTimeout, DefaultResumeTimeout)
	return &Server{
		config:   c,
		shared:   newShared(c.Logger, c.Limits, c.LimitHit, c.Short),
		started:  time.Now(),
		sessions: make(map[sessionKey]*session),
		clients:  make(map[string]*load),
		tombs:    make(map[sessionKey]*tombstone),
	}
}

// Run does what time alone brings about, until ctx is done. Then it resets the remaining sessions,
// and returns when they are gone.
func (v *Server) Run(ctx context.Context) error {
	sweeping, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sweep sync.WaitGroup
	sweep.Go(func() { v.shared.sweep(sweeping) })
	<-ctx.Done()
	v.mu.Lock()
	v.stopped = true
	v.mu.Unlock()
	for _, s := range v.list() {
		s.mu.Lock()
		if s.local == nil && !s.ending.reset() && !s.closed {
			v.declineUnlock(s, &Refusal{wire.StatusRefused, "the server is stopping"}, stopTimeout)
			continue
		}
		s.resetLocked(OutcomeStopped, resetByStop)
		s.sendUnlock(false)
	}
	v.all.Wait()
	stop()
	sweep.Wait()
	v.shared.notices.flush()
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

// Sessions returns what all sessions are and do, the oldest first.
func (v *Server) Sessions() []Info { return infos(v.list()) }

// Set changes the limits from now on, and the resume timeout of sessions that are yet to open.
func (v *Server) Set(l Limits, resume time.Duration) {
	l = l.withDefaults()
	orDefault(&resume, DefaultResumeTimeout)
	v.mu.Lock()
	v.config.Limits, v.config.ResumeTimeout = l, resume
	v.mu.Unlock()
	v.shared.limit(l)
}

// Memory returns the state of the memory budgets.
func (v *Server) Memory() Memory { return v.shared.memory() }

// End ends the sessions that match at once, detached ones too. The client is told not to resume
// them.
func (v *Server) End(match func(Info) bool, why Outcome) {
	for _, s := range v.list() {
		s.mu.Lock()
		if s.closed || !match(s.snapshotLocked()) {
			s.mu.Unlock()
			continue
		}
		v.endUnlock(s, why, wire.CodeRevoked)
	}
}

// withdraw ends the session under key, if there is one, since its client has lost the right to it.
func (v *Server) withdraw(key sessionKey) {
	v.mu.Lock()
	s := v.sessions[key]
	v.mu.Unlock()
	if s != nil {
		s.mu.Lock()
		v.endUnlock(s, OutcomeRevoked, wire.CodeRevoked)
	}
}

// endUnlock ends s at once, resets its stream with a code that forbids to resume it, and unlocks s.
func (v *Server) endUnlock(s *session, why Outcome, code wire.StreamCode) {
	at := s.at
	if !s.ending.reset() {
		s.ending.how = why
	}
	s.detachLocked()
	s.settle()
	s.mu.Unlock()
	if at != nil {
		at.stream.Reset(code)
	}
}

// Holder returns under which of its names a client has the session of a token, or its tombstone; ""
// under none.
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
