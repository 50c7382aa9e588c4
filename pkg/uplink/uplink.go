// Package uplink keeps one link to each relay of the config, for a client or a server.
//
// A [Set] dials all relays without end, and knows which links are live. A reload hands it the next
// config: new relays are dialled, the links of old ones are emptied and closed, and the others are
// not disturbed.
//
//	relays := uplink.New(uplink.Config{ID: "laptop", Identity: key, Logger: logger, Serve: serve})
//	relays.Apply(settings)       // and again at each reload
//	go relays.Run(ctx)           // until ctx is done
//	for _, l := range relays.Live() { … }
//	<-relays.Changed()           // Live has something else to say
//	relays.Drain(timeout, sessions.Moving, nil) // before ctx ends
//
// The package is no part of a role because client and server both use it, and roles do not import
// each other. The Set owns its links and their memory budget: nobody else closes a link. Its
// methods may be called from any goroutine.
package uplink

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"ptthqd/pkg/budget"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
)

// Config is what a Set needs. The functions may be nil, but for Serve.
type Config struct {
	ID       string // what this node calls itself
	Identity ident.PrivateKey
	Logger   *slog.Logger

	// Serve is called for each live link, in a goroutine of its own, and returns soon after ctx is
	// done.
	Serve func(ctx context.Context, l *link.Link)
	// Retire empties the live link of a relay that the config has no longer. The link is closed
	// when Retire returns, which it does early when ctx is done.
	Retire func(ctx context.Context, l *link.Link)
	// Refused is called when every relay has said that it does not know this node's key, and no
	// link is live. No link can be expected then. It must not block.
	Refused func()
	// Limits returns the limits of new links. Windows is set by the Set.
	Limits func(config.Limits) link.Limits
	// Adjust may change each dialer before it runs, all but Serve, OnRefused and OnWelcome.
	Adjust func(*link.Dialer)
}

// A Set is the relays of one process.
type Set struct {
	config   Config
	instance wire.Instance
	windows  *budget.Budget // of all links
	forced   chan struct{}
	force    sync.Once

	mu      sync.Mutex
	running context.Context    // that of Run; nil while no dialer may begin
	members map[string]*member // by address
	order   []string           // addresses, as in the config
	live    []liveLink
	changed chan struct{}  // closed at the next change; nil if no caller waits
	work    sync.WaitGroup // dialers and retirements
}

// A member is one relay of the set, or one that is retiring.
type member struct {
	relay   config.Relay
	dialer  *link.Dialer
	refused bool               // at the last dial the relay did not know this node's key
	called  string             // what the relay calls this node; empty until it has said so
	stop    context.CancelFunc // ends the dialer; nil until it runs
	keep    context.CancelFunc // ends the retirement; nil if the relay is not retiring
}

type liveLink struct {
	*link.Link
	member *member
}

// New makes a Set without relays.
func New(c Config) *Set {
	return &Set{
		config:   c,
		instance: wire.NewInstance(),
		windows:  budget.New("link_memory", 0), // Apply sets it
		forced:   make(chan struct{}),
		members:  make(map[string]*member),
	}
}

// Run dials the relays until ctx is done. It returns when all links are closed and Serve has
// returned for each. Call it once.
func (s *Set) Run(ctx context.Context) error {
	s.mu.Lock()
	s.running = ctx
	for _, m := range s.members {
		s.startLocked(m)
	}
	s.mu.Unlock()
	<-ctx.Done()
	s.mu.Lock()
	s.running = nil
	s.mu.Unlock()
	s.work.Wait()
	return context.Cause(ctx)
}

// startLocked dials a relay if the set runs.
func (s *Set) startLocked(m *member) {
	if s.running == nil || s.running.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(s.running)
	m.stop = stop
	s.work.Go(func() {
		defer stop()
		if err := m.dialer.Run(ctx); err != nil && ctx.Err() == nil {
			s.cannotDial(m, err)
		}
	})
}

func (s *Set) cannotDial(m *member, err error) {
	s.config.Logger.Error("relay can't be dialled",
		slog.String("relay", m.relay.Address), slog.Any("error", err))
}

// Apply puts the relays and limits of a config in force. Limits count for links that are made from
// now on.
func (s *Set) Apply(next *config.Config) {
	s.windows.SetLimit(int64(next.Limits.LinkMemory))
	var limits link.Limits
	if s.config.Limits != nil {
		limits = s.config.Limits(next.Limits)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.order = nil
	for _, r := range next.Relays {
		s.order = append(s.order, r.Address)
		m := s.members[r.Address]
		if m == nil {
			s.joinLocked(r, limits)
			continue
		}
		m.dialer.SetLimits(limits)
		if !slices.Equal(m.relay.Keys, r.Keys) {
			if err := m.dialer.SetKeys(r.Keys); err != nil {
				s.cannotDial(m, err)
			}
		}
		m.relay = r
		if m.keep != nil { // it came back before it was gone
			m.keep()
			m.keep = nil
		}
	}
	for address, m := range s.members {
		if m.keep == nil && !slices.Contains(s.order, address) {
			s.retireLocked(m)
		}
	}
	s.changedLocked()
}

// joinLocked makes a relay a member, and dials it if the set runs.
func (s *Set) joinLocked(r config.Relay, limits link.Limits) {
	limits.Windows = s.windows
	d := &link.Dialer{
		Address: r.Address, Keys: r.Keys, Identity: s.config.Identity, Instance: s.instance,
		Logger: s.config.Logger, Limits: limits,
	}
	if s.config.Adjust != nil {
		s.config.Adjust(d)
	}
	m := &member{relay: r, dialer: d}
	revoked := d.OnRevoked
	d.Serve = func(ctx context.Context, l *link.Link) { s.serve(ctx, m, l) }
	d.OnRefused = func() { s.refuse(m) }
	d.OnWelcome = func(name string) { s.welcome(m, name) }
	d.OnRevoked = func(l *link.Link, r *wire.Revoked) {
		if revoked != nil {
			revoked(l, r)
		}
		s.askAgain()
	}
	s.members[r.Address] = m
	s.startLocked(m)
}

// retireLocked removes a relay once its link is empty.
func (s *Set) retireLocked(m *member) {
	if s.running == nil || m.stop == nil {
		delete(s.members, m.relay.Address)
		return
	}
	ctx, keep := context.WithCancel(s.running)
	m.keep = keep
	s.work.Go(func() {
		defer keep()
		if l := m.dialer.State().Link; l != nil && s.config.Retire != nil {
			s.config.Retire(ctx, l)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if ctx.Err() == nil {
			m.stop()
			delete(s.members, m.relay.Address)
		}
	})
}

// serve counts a link among the live ones while the role serves it.
func (s *Set) serve(ctx context.Context, m *member, l *link.Link) {
	s.mu.Lock()
	m.refused = false
	s.live = append(s.live, liveLink{l, m})
	s.changedLocked()
	s.mu.Unlock()

	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-l.PeerClosing():
			s.askAgain()
		case <-ctx.Done():
		}
	})
	s.config.Serve(ctx, l)
	watch.Wait()

	s.mu.Lock()
	s.live = slices.DeleteFunc(s.live, func(other liveLink) bool { return other.Link == l })
	s.changedLocked()
	s.mu.Unlock()
}

// welcome notes what a relay calls this node.
func (s *Set) welcome(m *member, name string) {
	s.mu.Lock()
	was := m.called
	m.called = name
	s.mu.Unlock()
	if name != s.config.ID && name != was {
		s.config.Logger.Warn("the relay calls this node otherwise than its own config does",
			slog.String("relay", m.relay.Address), slog.String("name", name), slog.String("id", s.config.ID))
	}
}

// refuse notes that a relay does not know this node's key.
func (s *Set) refuse(m *member) {
	s.mu.Lock()
	m.refused = true
	all := len(s.live) == 0
	for _, other := range s.members {
		all = all && (other.refused || other.keep != nil)
	}
	s.mu.Unlock()
	if all && s.config.Refused != nil {
		s.config.Refused()
	}
}

func (s *Set) changedLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// askAgain closes Changed although the links are the same: a relay has withdrawn a right or is
// closing, so a session that waits before another try may get an answer now.
func (s *Set) askAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changedLocked()
}

// drainPoll is the interval at which Drain asks whether something moves.
const drainPoll = 100 * time.Millisecond

// Drain gives the sessions over the links time to end: it returns when moving reports false, after
// the timeout, when ended is closed, or after Force.
func (s *Set) Drain(timeout time.Duration, moving func() bool, ended <-chan struct{}) {
	expired := time.NewTimer(timeout)
	defer expired.Stop()
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for {
		select {
		case <-poll.C:
			if !moving() {
				return
			}
		case <-ended:
			return
		case <-expired.C:
			return
		case <-s.forced:
			return
		}
	}
}

// Force makes Drain return at once, also one that comes later.
func (s *Set) Force() { s.force.Do(func() { close(s.forced) }) }
