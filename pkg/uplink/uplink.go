// Package uplink keeps one link to each relay of a config, for a client or a
// server: it dials them all for ever, takes relays up and lets them go while
// the others run on, and knows which links are live.
//
//	relays := &uplink.Set{Dialer: dialer, Serve: serve}
//	relays.Apply(config.Relays)
//	err := relays.Run(ctx)
package uplink

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
)

// A Relay is where to dial, and the keys of which one must answer there.
type Relay struct {
	Address string
	Keys    []ident.PublicKey
}

// A Set is the relays of one process. Set the fields, then call Run once. All
// methods may be called from any goroutine.
type Set struct {
	// Dialer makes the dialer of a relay; its Serve is set by the Set.
	Dialer func(Relay) *link.Dialer
	// Serve is called for each live link, as link.Dialer's.
	Serve func(ctx context.Context, l *link.Link)
	// Retire empties the live link of a relay that is in the config no more,
	// before it is closed. It returns early when ctx is done. Nil: links are closed at once.
	Retire func(ctx context.Context, l *link.Link)
	// Refused is called when every relay has said that it doesn't know this
	// node's key, and no link is live: whatever waits for one waits in vain.
	// It must not block. Nil: ignored.
	Refused func()
	// ID is what this node calls itself.
	ID string
	// Logger gets a line where a relay can't be dialled at all, or calls this node otherwise. Nil: none.
	Logger *slog.Logger

	mu      sync.Mutex
	running context.Context    // that of Run, while new dialers may begin
	members map[string]*member // by address
	order   []string           // as in the config
	live    []liveLink
	changed chan struct{}
	work    sync.WaitGroup // of the dialers
}

// A member is one relay of the set, or one that is retiring.
type member struct {
	relay  Relay
	dialer *link.Dialer
	// refused: the relay has not known this node's key when it was dialled last.
	refused bool
	called  string             // what the relay calls this node; empty until it has said so
	stop    context.CancelFunc // ends the dialer; nil until it runs
	keep    context.CancelFunc // ends the retirement; nil if the relay isn't retiring
}

type liveLink struct {
	*link.Link
	member *member
}

// Run dials the relays until ctx is done, and returns when all links are
// closed and Serve has returned for each.
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

// startLocked dials a relay, once the set runs.
func (s *Set) startLocked(m *member) {
	if s.running == nil || s.running.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(s.running)
	m.stop = stop
	s.work.Go(func() {
		defer stop()
		if err := m.dialer.Run(ctx); err != nil && ctx.Err() == nil && s.Logger != nil {
			s.Logger.Error("relay can't be dialled", slog.String("relay", m.relay.Address), slog.Any("error", err))
		}
	})
}

// Apply makes these the relays of the set. Those that stay are not disturbed;
// new ones are dialled at once; the links of those that are gone are retired,
// then closed.
func (s *Set) Apply(relays []Relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.members == nil {
		s.members = make(map[string]*member)
	}
	for _, r := range relays {
		m := s.members[r.Address]
		if m != nil && !slices.Equal(m.relay.Keys, r.Keys) {
			s.setKeysLocked(m, r.Keys)
		}
		if m == nil {
			m = &member{relay: r, dialer: s.Dialer(r)}
			m.dialer.Serve = func(ctx context.Context, l *link.Link) { s.serve(ctx, m, l) }
			m.dialer.OnRefused = func() { s.refuse(m) }
			m.dialer.OnWelcome = func(name string) { s.welcome(m, name) }
			revoked := m.dialer.OnRevoked
			m.dialer.OnRevoked = func(l *link.Link, r *wire.Revoked) {
				if revoked != nil {
					revoked(l, r)
				}
				s.askAgain()
			}
			s.members[r.Address] = m
			s.startLocked(m)
		}
		if m.keep != nil { // it has come back before it was gone
			m.keep()
			m.keep = nil
		}
	}
	s.order = nil
	for _, r := range relays {
		s.order = append(s.order, r.Address)
	}
	for address, m := range s.members {
		if m.keep == nil && !slices.Contains(s.order, address) {
			s.retireLocked(m)
		}
	}
	s.changedLocked()
}

// setKeysLocked changes the keys of a relay, whose link goes on if it is to one of the new ones.
func (s *Set) setKeysLocked(m *member, keys []ident.PublicKey) {
	m.relay.Keys = keys
	if err := m.dialer.SetKeys(keys); err != nil && s.Logger != nil {
		s.Logger.Error("relay can't be dialled", slog.String("relay", m.relay.Address), slog.Any("error", err))
	}
}

// SetLimits changes the limits of the links that are made from then on.
func (s *Set) SetLimits(limits link.Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.members {
		m.dialer.SetLimits(limits)
	}
}

// retireLocked lets a relay go.
func (s *Set) retireLocked(m *member) {
	if s.running == nil || m.stop == nil {
		delete(s.members, m.relay.Address)
		return
	}
	ctx, keep := context.WithCancel(s.running)
	m.keep = keep
	s.work.Go(func() {
		defer keep()
		if l := m.dialer.State().Link; l != nil && s.Retire != nil {
			s.Retire(ctx, l)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if ctx.Err() == nil {
			m.stop()
			delete(s.members, m.relay.Address)
		}
	})
}

// serve has a link counted among the live ones while it is one.
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
			s.mu.Lock()
			s.changedLocked()
			s.mu.Unlock()
		case <-ctx.Done():
		}
	})
	s.Serve(ctx, l)
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
	if name != s.ID && name != was && s.Logger != nil {
		s.Logger.Warn("the relay calls this node otherwise than its own config does",
			slog.String("relay", m.relay.Address), slog.String("name", name), slog.String("id", s.ID))
	}
}

// refuse notes that a relay doesn't know this node's key.
func (s *Set) refuse(m *member) {
	s.mu.Lock()
	m.refused = true
	all := len(s.live) == 0
	for _, other := range s.members {
		all = all && (other.refused || other.keep != nil)
	}
	s.mu.Unlock()
	if all && s.Refused != nil {
		s.Refused()
	}
}

func (s *Set) changedLocked() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// askAgain counts as a change what a relay now decides in another way: who was to wait before another try may get an answer.
func (s *Set) askAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changedLocked()
}

// Changed returns a channel that is closed when Live will next have changed, or a relay has withdrawn a right.
func (s *Set) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// Live returns the links that new streams may be opened over, the lowest
// smoothed round trip first: not those that are over, whose relay is closing,
// or is in the config no more.
func (s *Set) Live() []*link.Link {
	type ranked struct {
		link *link.Link
		rtt  time.Duration
	}
	s.mu.Lock()
	usable := make([]ranked, 0, len(s.live))
	for _, l := range s.live {
		if l.member.keep == nil && !isClosed(l.Done()) && !isClosed(l.PeerClosing()) {
			usable = append(usable, ranked{l.Link, l.RTT()})
		}
	}
	s.mu.Unlock()
	slices.SortStableFunc(usable, func(a, b ranked) int { return int(a.rtt - b.rtt) })
	links := make([]*link.Link, len(usable))
	for i, u := range usable {
		links[i] = u.link
	}
	return links
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// State is how a relay stands.
type State struct {
	Relay
	Up        bool
	Since     time.Time       // when the link came up or went down, or the dialling began
	Attempts  int             // dials since then, while there is no link
	LastError string          // why the last dial failed or the last link ended, for people
	Reason    link.Reason     // the same in one word
	NextDial  time.Time       // when the next dial begins, if it waits; otherwise zero
	Called    string          // what the relay calls this node; empty until it has said so
	Contested time.Time       // when another node with this one's key last took its place at the relay; zero if none has
	Key       ident.PublicKey // that the relay has, of those in the config; zero while there is no link
	Remote    netip.AddrPort  // where the relay's packets come from; invalid while there is no link
	Closing   bool            // the relay has said that it is about to go
	Stats     link.Stats      // of the live link
	Socket    carrier.Stats
	Totals    link.Totals // of all links and dials
}

// States tells how each relay of the config stands, in the config's order.
func (s *Set) States() []State {
	s.mu.Lock()
	defer s.mu.Unlock()
	states := make([]State, 0, len(s.order))
	for _, address := range s.order {
		m := s.members[address]
		if m == nil {
			continue
		}
		d := m.dialer.State()
		state := State{Relay: m.relay, Since: d.Since, Attempts: d.Attempts, LastError: d.LastError, Reason: d.Reason, NextDial: d.NextDial, Called: m.called, Contested: d.Contested, Totals: m.dialer.Totals()}
		if l := d.Link; l != nil {
			state.Key = l.Key()
			state.Up, state.Remote, state.Closing, state.Stats = true, l.RemoteAddr(), isClosed(l.PeerClosing()), l.Stats()
			state.Socket = l.Socket().Stats()
		}
		states = append(states, state)
	}
	return states
}
