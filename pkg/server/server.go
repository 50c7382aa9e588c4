// Package server is the role P4: it takes the streams that relays bring, decides by its own
// services whether a client may reach a target, dials the target, P5, and hands both to a session.
//
// The way of a stream: link.Accept reads its tip `incoming`; understand finds out who asks for what
// (serve.go); session.Server finds or makes the session and asks decide; the dialer reaches P5
// (dial.go); pkg/ledger logs and counts how the session ended.
//
//	s, err := server.New(server.Config{Settings: settings, Identity: key, Logger: logger})
//	go s.Run(ctx)                    // until ctx is done
//	err = s.Apply(ctx, newSettings)  // a reload
//	s.Snapshot()                     // for status and metrics
//
// A reload swaps policy.Services behind an atomic pointer. Sessions that the new services do not
// allow end at once; so do those whose right a relay withdraws.
package server

import (
	"context"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ptthqd/pkg/budget"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/ledger"
	"ptthqd/pkg/link"
	"ptthqd/pkg/origin"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/quiet"
	"ptthqd/pkg/session"
	"ptthqd/pkg/spare"
	"ptthqd/pkg/uplink"
	"ptthqd/pkg/wire"
)

// Config is what a Server needs. All but Settings and Identity may be zero.
type Config struct {
	Settings *config.Config // the first config; Apply changes it
	Identity ident.PrivateKey
	Logger   *slog.Logger // nil: no log
	// Dial connects to P5 in the place of net.Dialer.DialContext. Its connections have CloseWrite.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Host knows the addresses of this machine. Nil: the system is asked.
	Host *Host

	// Dialled is called after each dial of a target, with its outcome and how long it took. It must
	// not block.
	Dialled func(status wire.Status, took time.Duration)
	// AdjustDialer may change each dialer of a relay before it runs. Tests set it.
	AdjustDialer func(*link.Dialer)
}

// A Server is a P4. Call Run once; the other methods may be called at any time, from any goroutine.
type Server struct {
	config   Config
	node     string // this node's ID
	log      *slog.Logger
	host     *Host
	dialer   dialer
	relays   *uplink.Set
	sessions *session.Server
	ledger   *ledger.Ledger
	hits     quiet.Hits
	repeats  quiet.Repeats // shortages of memory
	rates    rates

	settings atomic.Pointer[config.Config]
	services atomic.Pointer[policy.Services]
	stopping atomic.Bool // a drain has begun
	// rivalAt is when another process with this node's key was last at a relay; nil: never.
	rivalAt atomic.Pointer[time.Time]

	applying sync.Mutex // held by Apply
}

// New makes a server and starts nothing. It fails if the services are not valid.
func New(c Config) (*Server, error) {
	services, err := policy.NewServices(c.Settings.Services)
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, node: c.Settings.ID, log: c.Logger, host: c.Host}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.host == nil {
		s.host = new(Host)
	}
	s.dialer.dial, s.dialer.guarded, s.dialer.hit = c.Dial, c.Dial, s.hits.Hit
	if c.Dial == nil {
		s.dialer.dial = (&net.Dialer{Control: s.spareDescriptors, Resolver: s.host.Resolver}).DialContext
		s.dialer.guarded = (&net.Dialer{Control: s.guard, Resolver: s.host.Resolver}).DialContext
	}
	s.ledger = &ledger.Ledger{Role: string(config.RoleServer), ID: s.node, Logger: s.log}
	s.relays = uplink.New(uplink.Config{
		ID: s.node, Identity: c.Identity, Logger: s.log,
		Serve: s.serveLink, Refused: s.refused, Limits: linkLimits, Adjust: s.adjustDialer,
	})
	s.sessions = session.NewServer(session.ServerConfig{
		Node:          s.node,
		Decide:        s.decide,
		Origin:        origin.Is,
		Contested:     s.contested,
		ResumeTimeout: c.Settings.ResumeTimeout,
		Ended:         s.ended,
		Limits:        sessionLimits(c.Settings.Limits),
		Logger:        s.log,
		LimitHit:      s.hits.Hit,
		Short:         func(short budget.Shortage) { ledger.WarnShortage(s.log, &s.repeats, short) },
	})
	s.adopt(c.Settings, services)
	return s, nil
}

// adjustDialer completes the dialer of a relay with what only a server needs.
func (s *Server) adjustDialer(d *link.Dialer) {
	d.OnContested = func() { s.rivalAt.Store(new(time.Now())) }
	d.OnRevoked = s.revoked
	d.LimitHit = s.hits.Hit
	if s.config.AdjustDialer != nil {
		s.config.AdjustDialer(d)
	}
}

// spareDescriptors refuses a socket that would take one of the last file descriptors, which
// limits.spare_descriptors keeps for links, logs and reloads.
func (s *Server) spareDescriptors(_, _ string, socket syscall.RawConn) error {
	if !spare.Reached(socket, s.settings.Load().Limits.SpareDescriptors) {
		return nil
	}
	s.hits.Hit("spare_descriptors")
	return os.NewSyscallError("socket", syscall.EMFILE)
}

// rivalTime is for how long another process with this node's key counts as alive after it was at a
// relay. While both live, each hears of the other every few seconds.
const rivalTime = time.Minute

// contested reports whether another process with this node's key is alive, as far as is known.
func (s *Server) contested() bool {
	at := s.rivalAt.Load()
	return at != nil && time.Since(*at) < rivalTime
}

// Run serves until ctx is done. Then it refuses new connections, and gives the others drain_timeout
// to end, as long as data moves in one of them. It resets the rest, closes the links, and returns
// when all that it started has ended.
func (s *Server) Run(ctx context.Context) error {
	defer s.repeats.Close()
	defer s.ledger.Close()
	uplinked, endLinks := context.WithCancel(context.WithoutCancel(ctx))
	defer endLinks()
	carrying, endSessions := context.WithCancel(uplinked)
	defer endSessions()
	var links, sessions sync.WaitGroup
	links.Go(func() { _ = s.relays.Run(uplinked) })
	sessions.Go(func() { _ = s.sessions.Run(carrying) })

	<-ctx.Done()
	s.stopping.Store(true)
	if s.sessions.Moving() {
		s.relays.Drain(s.settings.Load().DrainTimeout, s.sessions.Moving, nil)
	}
	endSessions()
	sessions.Wait()
	endLinks()
	links.Wait()
	return nil
}

// Force ends the drain: the connections that are left are reset.
func (s *Server) Force() { s.relays.Force() }

// Apply puts another config in force, or fails and changes nothing. Sessions that the new services
// do not allow end at once, also detached ones; the others are not touched.
func (s *Server) Apply(_ context.Context, next *config.Config) error {
	services, err := policy.NewServices(next.Services)
	if err != nil {
		return err
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	s.adopt(next, services)
	s.sessions.End(func(i session.Info) bool {
		return !s.judge(services, i.Client, i.Target).Allowed
	}, session.OutcomeRevoked)
	return nil
}

// adopt puts a config in force, for what comes.
func (s *Server) adopt(next *config.Config, services *policy.Services) {
	s.settings.Store(next)
	s.services.Store(services)
	s.dialer.limit(next.Limits.Dials, next.Limits.DialsPerTarget)
	s.rates.limit(next.Limits.OpensPerSecond)
	s.sessions.Set(sessionLimits(next.Limits), next.ResumeTimeout)
	s.relays.Apply(next)
}

func sessionLimits(l config.Limits) session.Limits {
	return session.Limits{
		WindowBudget:    int64(l.SessionMemory),
		RetainedBudget:  int64(l.RetainedMemory),
		MaxWindow:       int(l.SessionWindow),
		Sessions:        l.Sessions,
		SessionsPerPeer: l.SessionsPerClient,
		DetachedPerPeer: l.DetachedPerClient,
		Tombstones:      l.Tombstones,
		DialTimeout:     l.DialTimeout,
	}
}

func linkLimits(l config.Limits) link.Limits {
	return link.Limits{
		Streams:     int64(l.StreamsPerPeer),
		PendingTips: l.PendingTips,
		TipTimeout:  l.TipTimeout,
	}
}

// Snapshot is what a server knows at one moment. It shares nothing with the server.
type Snapshot struct {
	Relays   []uplink.State   // in the config's order
	Services []policy.Service // in the config's order
	Sessions []session.Info   // the oldest first
	Dials    int              // under way, or waiting for a slot
	Counts   ledger.Counts    // of the connections that have ended
	Memory   session.Memory

	LinkMemory, LinkMemoryLimit int64 // bytes that the windows of links have, and may have, grown by

	LimitsHit map[string]uint64 // how often each limit of the config was reached
}

// Snapshot returns the state of the server. The counts are taken before the sessions, so that no
// session is in both.
func (s *Server) Snapshot() Snapshot {
	now := Snapshot{
		Relays:    s.relays.States(),
		Services:  s.services.Load().All(),
		Counts:    s.ledger.Counts(),
		Sessions:  s.sessions.Sessions(),
		Dials:     s.dialer.count(),
		Memory:    s.sessions.Memory(),
		LimitsHit: s.hits.Counts(),
	}
	now.LinkMemory, now.LinkMemoryLimit = s.relays.Memory()
	return now
}
