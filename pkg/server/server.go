// Package server is P4: it takes the streams that relays bring, decides by its
// own services whether the client may reach the target, dials P5, and hands
// both to a session.
//
// The road of a stream:
//
//	link.Accept → the tip `incoming` → admit → session.Server → decide → dial (dial.go) → one line in the ledger
//
// What a reload can change is policy.Services behind an atomic pointer. A right
// that is withdrawn ends at once, whether here or, by the relay's word, there.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

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
	Settings *config.Config   // what it begins with; Apply changes it
	Identity ident.PrivateKey // of this node
	Logger   *slog.Logger     // nil for none
	// Dial connects to P5, as net.Dialer.DialContext, which it is by default.
	// What it returns must have CloseWrite.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Host knows the addresses of this machine. Nil: the system is asked.
	Host *Host

	// Dialled is told how each dial of a target went and how long it took. It must not wait. Nil: nobody.
	Dialled func(status wire.Status, took time.Duration)
	// AdjustDialer may change how links are dialled, before each Run. Tests set it.
	AdjustDialer func(*link.Dialer)
}

// A Server is a P4. Call Run once; the other methods may be called at any time,
// from any goroutine.
type Server struct {
	config   Config
	node     string
	log      *slog.Logger
	host     *Host
	dialer   dialer
	instance wire.Instance
	relays   *uplink.Set
	sessions *session.Server
	ledger   ledger.Ledger
	hits     quiet.Hits
	repeats  quiet.Repeats // of shortages
	rates    rates

	settings atomic.Pointer[config.Config]
	services atomic.Pointer[policy.Services]
	windows  *link.Budget              // of all links
	stopping atomic.Bool               // a drain has begun
	rivalAt  atomic.Pointer[time.Time] // when another process with this node's key was last at a relay; nil: never
	forced   chan struct{}
	force    sync.Once

	applying sync.Mutex // one Apply at a time
}

// New makes a server; nothing happens before Run.
func New(c Config) (*Server, error) {
	services, err := policy.NewServices(c.Settings.Services)
	if err != nil {
		return nil, err
	}
	s := &Server{config: c, node: c.Settings.ID, instance: wire.NewInstance(), log: c.Logger, forced: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.host = c.Host; s.host == nil {
		s.host = new(Host)
	}
	s.dialer.dial, s.dialer.guarded = c.Dial, c.Dial
	if c.Dial == nil {
		s.dialer.dial = (&net.Dialer{Control: s.spareDescriptors, Resolver: s.host.Resolver}).DialContext
		s.dialer.guarded = (&net.Dialer{Control: s.guard, Resolver: s.host.Resolver}).DialContext
	}
	s.dialer.hit = s.hits.Hit
	s.windows = link.NewBudget(int64(c.Settings.Limits.LinkMemory))
	s.ledger.Role, s.ledger.ID = string(config.RoleServer), s.node
	s.ledger.Logger = s.log
	s.relays = &uplink.Set{Dialer: s.newDialer, Serve: s.serveLink, Refused: s.refused, ID: s.node, Logger: s.log}
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
		Short:         func(short session.Shortage) { ledger.WarnShortage(s.log, &s.repeats, short) },
	})
	s.adopt(c.Settings, services)
	return s, nil
}

// refused ends all sessions: they wait for a relay to come back, and none will
// take this node again: its key was withdrawn while it was away.
func (s *Server) refused() {
	s.sessions.End(func(session.Info) bool { return true }, session.EndRevoked)
}

// spareDescriptors refuses a socket that is one of those that connections are to leave alone.
func (s *Server) spareDescriptors(_, _ string, socket syscall.RawConn) error {
	if !spare.Reached(socket, s.settings.Load().Limits.SpareDescriptors) {
		return nil
	}
	s.hits.Hit("spare_descriptors")
	return os.NewSyscallError("socket", syscall.EMFILE)
}

// rivalTime is how long another process with this node's key is reckoned with. As long as it lives, each of the two hears
// of the other every few seconds.
const rivalTime = time.Minute

// contested reports whether another process with this node's key lives, as far as this one knows.
func (s *Server) contested() bool {
	at := s.rivalAt.Load()
	return at != nil && time.Since(*at) < rivalTime
}

// Run serves until ctx is done. Then it refuses new connections, gives the
// others drain_timeout to end, resets those that are left, and closes the
// links. It returns when all that it started has ended.
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
	s.drain()
	endSessions()
	sessions.Wait()
	endLinks()
	links.Wait()
	return nil
}

// drainPoll is how often a drain looks whether something still moves.
const drainPoll = 100 * time.Millisecond

// drain gives the sessions drain_timeout to end, for as long as something moves in one of them: the client opens no new ones
// meanwhile.
func (s *Server) drain() {
	timeout := time.NewTimer(s.settings.Load().DrainTimeout)
	defer timeout.Stop()
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for s.sessions.Moving() {
		select {
		case <-poll.C:
		case <-timeout.C:
			return
		case <-s.forced:
			return
		}
	}
}

// Force cuts the drain short: the connections that are left are reset.
func (s *Server) Force() { s.force.Do(func() { close(s.forced) }) }

// Apply goes over to another config, or fails and changes nothing. Sessions
// that the new services don't allow any more end at once, detached ones too;
// the others are not touched.
func (s *Server) Apply(_ context.Context, next *config.Config) error {
	services, err := policy.NewServices(next.Services)
	if err != nil {
		return err
	}
	s.applying.Lock()
	defer s.applying.Unlock()
	s.adopt(next, services)
	s.sessions.End(func(i session.Info) bool { return !s.judge(services, i.Client, i.Target).Allowed }, session.EndRevoked)
	return nil
}

// adopt puts a config in force.
func (s *Server) adopt(next *config.Config, services *policy.Services) {
	s.settings.Store(next)
	s.services.Store(services)
	s.dialer.limit(next.Limits.Dials, next.Limits.DialsPerTarget)
	s.rates.limit(next.Limits.OpensPerSecond)
	s.sessions.Set(sessionLimits(next.Limits), next.ResumeTimeout)
	relays := make([]uplink.Relay, len(next.Relays))
	for i, r := range next.Relays {
		relays[i] = uplink.Relay{Address: r.Address, Keys: r.Keys}
	}
	s.windows.SetLimit(int64(next.Limits.LinkMemory))
	s.relays.SetLimits(linkLimits(next.Limits))
	s.relays.Apply(relays)
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

// newDialer makes the dialer of a relay.
func (s *Server) newDialer(r uplink.Relay) *link.Dialer {
	limits := linkLimits(s.settings.Load().Limits)
	limits.Windows = s.windows
	d := &link.Dialer{
		Address: r.Address, Keys: r.Keys, Identity: s.config.Identity, Instance: s.instance, Logger: s.log,
		OnContested: func() { s.rivalAt.Store(new(time.Now())) },
		OnRevoked:   s.revoked,
		Limits:      limits,
		LimitHit:    s.hits.Hit,
	}
	if s.config.AdjustDialer != nil {
		s.config.AdjustDialer(d)
	}
	return d
}

// serveLink serves the streams that a relay opens.
func (s *Server) serveLink(ctx context.Context, l *link.Link) {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		stream, tip, err := l.Accept(ctx)
		if err != nil {
			return // the dialler tells why the link is over
		}
		// An idle connection waits in here, so what takes much of the stack is done in calls that return.
		streams.Go(func() { s.serveStream(l, stream, tip).Carry() })
	}
}

// serveStream reads what a stream of a relay asks for, and decides: it is refused, or carries a session from now on.
func (s *Server) serveStream(l *link.Link, stream wire.Stream, tip wire.Message) (carrier session.Carrier) {
	if client, inner := s.understand(l, stream, tip); inner != nil {
		carrier = s.sessions.Attach(client, inner, stream, session.Route{Link: l, Relay: l.Peer(), RTT: l.RTT()})
	}
	return carrier
}

// understand returns which client asks for what. It has refused what can't be served; then there is no inner message.
func (s *Server) understand(l *link.Link, stream wire.Stream, tip wire.Message) (client string, inner wire.Message) {
	info := session.Info{Server: s.node, State: session.Closed, Relay: l.Peer()}
	refuse := func(status wire.Status, text string) {
		s.refuse(stream, &session.Refusal{Status: status, Text: text})
		s.ledger.Record(session.Summary{Info: info, Status: status, Text: text, End: session.EndRefused})
	}
	incoming, ok := tip.(*wire.Incoming)
	if !ok {
		refuse(wire.StatusMalformed, fmt.Sprintf("a server takes no %T", tip))
		return "", nil
	}
	info.Client = incoming.Client
	inner, err := wire.ParseInner(incoming.Inner)
	if bad, ok := errors.AsType[*wire.InnerError](err); ok {
		info.ID = bad.ConnectionID()
		refuse(bad.Status(), bad.Error())
		return "", nil
	}
	names := incoming.Names()
	switch m := inner.(type) {
	case *wire.Resume:
		client = cmp.Or(s.sessions.Holder(names, m.Token), s.nameFor(names, m.Target))
	case *wire.Open:
		client = cmp.Or(s.sessions.Holder(names, m.Token), s.nameFor(names, m.Target))
	}
	if open, ok := inner.(*wire.Open); ok {
		if refusal := s.admit(incoming.Client); refusal != nil {
			info.ID, info.Source, info.Target = open.Token.ConnectionID(), open.Source, open.Target
			refuse(refusal.Status, refusal.Text)
			return "", nil
		}
	}
	return client, inner
}

// nameFor returns the name of a client, of those by which the relay knows it, under which it may reach a target; the one
// that it goes by if it may under none.
func (s *Server) nameFor(names []string, target string) string {
	if len(names) > 1 {
		services := s.services.Load()
		for _, name := range names {
			if s.judge(services, name, target).Allowed {
				return name
			}
		}
	}
	return names[0]
}

// admit says whether a client may open a connection at this moment, whatever
// its target.
func (s *Server) admit(client string) *session.Refusal {
	if s.stopping.Load() {
		return &session.Refusal{Status: wire.StatusNotConnected, Text: "the server is stopping"}
	}
	if !s.rates.allow(client) {
		s.hits.Hit("opens_per_second")
		return &session.Refusal{Status: wire.StatusTooMany, Text: "too many new connections a second from this client (limits.opens_per_second of the server)"}
	}
	return nil
}

// refusalTime is how long a refused stream is read on. A reset instead would overtake the reply
// where the client still sends behind its tip.
const refusalTime = 5 * time.Second

// refuse answers a stream with a refusal, and finishes the stream.
func (s *Server) refuse(stream wire.Stream, r *session.Refusal) {
	deadline := time.Now().Add(refusalTime)
	_ = stream.SetReadDeadline(deadline)
	_ = stream.SetWriteDeadline(deadline)
	_, err := stream.Write(wire.Append(nil, &wire.Reply{Status: r.Status, Text: r.Text, Node: s.node}))
	if err == nil {
		err = stream.End(nil)
	}
	if err != nil {
		stream.Reset(wire.CodeLost)
		return
	}
	_, _ = io.Copy(io.Discard, stream)
	stream.CancelRead(wire.CodeLost)
}

// decide answers a session: may the client reach the target, and how.
func (s *Server) decide(client, target string) (session.Dial, *session.Refusal) {
	asked, err := policy.ParseTarget(target)
	if err != nil {
		return nil, &session.Refusal{Status: wire.StatusMalformed, Text: err.Error()}
	}
	services := s.services.Load()
	address, decision := services.Resolve(client, asked, s.host.Owns)
	if !decision.Allowed {
		return nil, notAllowed(client, target)
	}
	return func(ctx context.Context) (session.Conn, error) {
		// The session is in the table now. If a reload came in between, it
		// has looked there too early.
		if now := s.services.Load(); now != services {
			if address, decision = now.Resolve(client, asked, s.host.Owns); !decision.Allowed {
				return nil, notAllowed(client, target)
			}
		}
		return s.dial(ctx, address, decision.Guarded)
	}, nil
}

// dial connects to a target and tells how that went.
func (s *Server) dial(ctx context.Context, target policy.Target, guarded bool) (session.Conn, error) {
	began := time.Now()
	conn, err := s.dialer.connect(ctx, target, guarded)
	status := wire.StatusOpen
	if refusal, ok := errors.AsType[*session.Refusal](err); ok {
		status = refusal.Status
	}
	if s.config.Dialled != nil {
		s.config.Dialled(status, time.Since(began))
	}
	return conn, err
}

// notAllowed is the one text of all such refusals: who isn't allowed doesn't
// learn what there is.
func notAllowed(client, target string) *session.Refusal {
	return &session.Refusal{Status: wire.StatusNotAllowed, Text: fmt.Sprintf("the services of this server do not let %s reach %s", client, target)}
}

// judge is what services decide about a target's text.
func (s *Server) judge(services *policy.Services, client, target string) policy.Decision {
	asked, err := policy.ParseTarget(target)
	if err != nil {
		return policy.Decision{Reason: err.Error()}
	}
	_, decision := services.Resolve(client, asked, s.host.Owns)
	return decision
}

// ended enters a session into the ledger. Unlike the client, this node's own log
// hears which rule refused.
func (s *Server) ended(sum session.Summary) {
	if sum.Status == wire.StatusNotAllowed || sum.End == session.EndRevoked {
		decision := s.judge(s.services.Load(), sum.Client, sum.Target)
		at := decision.Source.String()
		switch {
		case decision.Allowed && sum.End != session.EndRevoked: // refused when it was dialled, with its reason
		case decision.Allowed:
			sum.Node, sum.Text = "relay", "withdrawn at the relay"
		case at != "":
			sum.Text = decision.Reason + " (" + at + ")"
		default:
			sum.Text = decision.Reason
		}
	}
	s.ledger.Record(sum)
}

// revoked is told by a relay that a client's right to reach a target, or any but
// the kept ones if it is empty, was withdrawn there. Sessions that another relay carries have
// their rights from that.
func (s *Server) revoked(l *link.Link, r *wire.Revoked) {
	relay := l.Peer()
	s.sessions.End(func(i session.Info) bool {
		return i.Client == r.Client && i.Relay == relay && (i.Target == r.Target || r.Target == "" && !slices.Contains(r.Kept, i.Target))
	}, session.EndRevoked)
}

// Snapshot is what a server knows at one moment. It shares nothing with the server.
type Snapshot struct {
	Relays   []uplink.State   // in the config's order
	Services []policy.Service // in the config's order
	Sessions []session.Info   // the oldest first
	Dials    int              // under way or waiting for their turn
	Counts   ledger.Counts    // of the connections that have ended
	Memory   session.Memory

	LinkMemory, LinkMemoryLimit int64 // bytes that the windows of links have grown by

	LimitsHit map[string]uint64 // connections that each limit has kept out, ended, or made wait
}

// Snapshot tells how the server stands.
func (s *Server) Snapshot() Snapshot {
	return Snapshot{
		Relays:   s.relays.States(),
		Services: s.services.Load().All(),
		Counts:   s.ledger.Counts(), // before the sessions, so that none is in both
		Sessions: s.sessions.Sessions(),
		Dials:    s.dialer.count(),
		Memory:   s.sessions.Memory(),

		LinkMemory: s.windows.Used(), LinkMemoryLimit: s.windows.Limit(),
		LimitsHit: s.hits.Counts(),
	}
}
