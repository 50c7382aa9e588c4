package session

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"ptthqd/pkg/wire"
)

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
		if s.local == nil && !s.ending.reset() && !s.closed {
			v.declineUnlock(s, &Refusal{wire.StatusRefused, "the server is stopping"}, stopTimeout)
			continue
		}
		s.resetLocked(EndStopped, resetByStop)
		s.sendUnlock(false)
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
		v.endUnlock(s, why, wire.CodeRevoked)
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
		v.endUnlock(s, EndRevoked, wire.CodeRevoked)
	}
}

// endLocked ends s at once, its stream with a code that forbids to resume it, and unlocks it.
func (v *Server) endUnlock(s *session, why End, code wire.StreamCode) {
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
