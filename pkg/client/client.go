// Package client is P2: it listens on TCP for P1 and carries each connection
// that it accepts over a link to a relay, to the server and target of its mapping.
//
// The road of a connection:
//
//	accept (accept.go) → wait for a live link, if there is none → session.Forward → one line in the ledger
//
// What a reload can change is a mapping behind an atomic pointer of its
// listener (apply.go); links come and go in pkg/uplink; a session outlives both.
package client

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/ledger"
	"ptthqd/pkg/link"
	"ptthqd/pkg/origin"
	"ptthqd/pkg/quiet"
	"ptthqd/pkg/session"
	"ptthqd/pkg/uplink"
	"ptthqd/pkg/wire"
)

// Config is what a Client needs. All but Settings and Identity may be zero.
type Config struct {
	Settings *config.Config   // what it begins with; Apply changes it
	Identity ident.PrivateKey // of this node
	Logger   *slog.Logger     // nil for none
	// RuntimeDirectory is where mappings that listen on a Unix socket have its file.
	RuntimeDirectory string
	// Inherit offers the listeners that the process has inherited under a name:
	// "127.0.0.1:2200" or "[::1]:2200" for an address, "unix:NAME" for a Unix socket, "systemd:NAME" for
	// one that the service manager made. The client closes them. Nil, or none: it binds its own.
	Inherit func(name string) []net.Listener
	// KeepSockets says that somebody keeps the listeners over a restart (see
	// Sockets): the files of Unix sockets stay when Run returns.
	KeepSockets bool
	// Rebound is called when listeners have been bound that could not be bound before: Sockets has more now. Nil: nobody cares.
	Rebound func()
	// Opened is told of each connection that its server has granted, how long after it was accepted. It must not wait. Nil: nobody.
	Opened func(mapping string, took time.Duration)
	// AdjustDialer may change how links are dialled, before each Run. Tests set it.
	AdjustDialer func(*link.Dialer)
}

// A Client is a P2. Call Run once; the other methods may be called at any time,
// from any goroutine.
type Client struct {
	config   Config
	log      *slog.Logger
	binder   bind.Binder
	instance wire.Instance
	relays   *uplink.Set
	sessions *session.Client
	ledger   ledger.Ledger
	hits     quiet.Hits
	repeats  quiet.Repeats // of what goes wrong with accepting, and of shortages

	settings atomic.Pointer[config.Config]
	windows  *link.Budget   // of all links
	gate     gate           // all connections
	held     gate           // those that wait for a link
	conns    sync.WaitGroup // the goroutines of connections

	ready, over chan struct{} // closed when each listener was tried; when Run ends
	forced      chan struct{}
	force       sync.Once
	place       *origin.Place   // of what is accepted; set by Run
	carrying    context.Context // of the connections; set by Run before any is accepted

	mu        sync.Mutex // one Apply at a time; guards what follows
	accepting context.Context
	listeners map[config.Listen]*listener
	vacant    map[config.Listen]*vacancy
}

// New makes a client; nothing happens before Run. It fails if the settings make
// no sense together.
func New(c Config) (*Client, error) {
	if _, err := wantedListeners(c.Settings); err != nil {
		return nil, err
	}
	client := &Client{
		config:    c,
		log:       c.Logger,
		binder:    bind.Binder{Directory: c.RuntimeDirectory, Streams: c.Inherit},
		ready:     make(chan struct{}),
		over:      make(chan struct{}),
		forced:    make(chan struct{}),
		listeners: make(map[config.Listen]*listener),
		vacant:    make(map[config.Listen]*vacancy),
		instance:  wire.NewInstance(),
		windows:   link.NewBudget(int64(c.Settings.Limits.LinkMemory)),
	}
	if client.log == nil {
		client.log = slog.New(slog.DiscardHandler)
	}
	client.ledger.Role, client.ledger.ID = string(config.RoleClient), c.Settings.ID
	client.ledger.Logger = client.log
	client.relays = &uplink.Set{Dialer: client.dialer, Serve: client.serveLink, Retire: client.retire, Refused: client.refused, ID: c.Settings.ID, Logger: client.log}
	client.sessions = session.NewClient(session.ClientConfig{
		Router: router{client.relays},
		Limits: sessionLimits(c.Settings.Limits),
		Logger: client.log,

		LimitHit: client.hits.Hit,
		Short:    func(s session.Shortage) { ledger.WarnShortage(client.log, &client.repeats, s) },
	})
	client.adopt(c.Settings)
	return client, nil
}

// refused ends all sessions: they wait for a relay to come back, and none will
// take this node again: its key was withdrawn while it was away.
func (c *Client) refused() {
	c.sessions.End(func(session.Info) bool { return true }, session.EndRevoked)
}

// Run binds the listeners, those that can't be bound again and again, and serves
// until ctx is done. Then it accepts nothing more, gives the connections drain_timeout to
// end, resets those that are left, and closes the links. It returns when all
// that it started has ended.
func (c *Client) Run(ctx context.Context) error {
	defer close(c.over)
	defer c.repeats.Close()
	defer c.ledger.Close()
	uplinked, endLinks := context.WithCancel(context.WithoutCancel(ctx))
	defer endLinks()
	carrying, endSessions := context.WithCancel(uplinked)
	defer endSessions()
	c.carrying = carrying
	c.place = origin.New()
	defer c.place.Close()
	if err := c.listen(ctx); err != nil {
		return err
	}
	close(c.ready)

	var links, sessions, filling sync.WaitGroup
	defer filling.Wait()
	filling.Go(func() { bind.Retry(ctx, func() { c.fill(ctx) }) })
	links.Go(func() { _ = c.relays.Run(uplinked) })
	sessions.Go(func() { _ = c.sessions.Run(carrying) })

	<-ctx.Done()
	c.stopAccepting()
	drained := make(chan struct{})
	go c.awaitConnections(drained)
	c.drain(drained)
	endSessions()
	<-drained
	c.closeListeners()
	sessions.Wait()
	endLinks()
	links.Wait()
	return nil
}

// drainPoll is how often a drain looks whether something still moves.
const drainPoll = 100 * time.Millisecond

// drain gives the connections drain_timeout to end, for as long as something moves in one of them. New ones wait in the
// queues of the listeners meanwhile.
func (c *Client) drain(drained <-chan struct{}) {
	timeout := time.NewTimer(c.settings.Load().DrainTimeout)
	defer timeout.Stop()
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for {
		select {
		case <-poll.C:
			if !c.sessions.Moving() {
				return
			}
		case <-drained:
			return
		case <-timeout.C:
			return
		case <-c.forced:
			return
		}
	}
}

func (c *Client) awaitConnections(drained chan<- struct{}) {
	c.conns.Wait()
	close(drained)
}

// Ready is closed when each listener was tried. Relays may still be out of reach.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Force cuts the drain short: the connections that are left are reset.
func (c *Client) Force() { c.force.Do(func() { close(c.forced) }) }

// adopt puts in force what can't fail: limits, relays.
func (c *Client) adopt(next *config.Config) {
	c.settings.Store(next)
	c.gate.setLimit(next.Limits.Sessions)
	c.held.setLimit(next.Limits.HeldConnections)
	c.sessions.SetLimits(sessionLimits(next.Limits))
	c.windows.SetLimit(int64(next.Limits.LinkMemory))
	relays := make([]uplink.Relay, len(next.Relays))
	for i, r := range next.Relays {
		relays[i] = uplink.Relay{Address: r.Address, Keys: r.Keys}
	}
	c.relays.Apply(relays)
}

func sessionLimits(l config.Limits) session.Limits {
	return session.Limits{
		WindowBudget:   int64(l.SessionMemory),
		RetainedBudget: int64(l.RetainedMemory),
		MaxWindow:      int(l.SessionWindow),
		Sessions:       l.Sessions,
	}
}

// dialer makes the dialer of a relay.
func (c *Client) dialer(r uplink.Relay) *link.Dialer {
	d := &link.Dialer{Address: r.Address, Keys: r.Keys, Identity: c.config.Identity, Instance: c.instance, Logger: c.log, Limits: link.Limits{Windows: c.windows}}
	if c.config.AdjustDialer != nil {
		c.config.AdjustDialer(d)
	}
	return d
}

// serveLink does what a live link asks for: P2 opens streams and nobody opens
// any to it; what the relay says on the control stream moves sessions.
func (c *Client) serveLink(ctx context.Context, l *link.Link) {
	closing := l.PeerClosing()
	for {
		// Asked again after each change: there may have been nowhere else to go.
		changed := c.relays.Changed()
		if closing == nil {
			c.sessions.Move(l, "the relay is closing")
		}
		select {
		case <-ctx.Done():
			return
		case <-closing:
			closing = nil
		case <-changed:
		}
	}
}

// retire has the sessions leave the link of a relay that is in the config no
// more. It gives them drain_timeout to find another.
func (c *Client) retire(ctx context.Context, l *link.Link) {
	ctx, cancel := context.WithTimeout(ctx, c.settings.Load().DrainTimeout)
	defer cancel()
	poll := time.NewTicker(retirePoll)
	defer poll.Stop()
	for {
		changed := c.relays.Changed()
		c.sessions.Move(l, "the relay is in the config no more")
		for settled := false; !settled; {
			if !c.sessions.Carries(l) {
				return
			}
			select {
			case <-changed:
				settled = true
			case <-poll.C:
			case <-l.Done():
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

// retirePoll is how often a link that is being emptied is looked at.
const retirePoll = 50 * time.Millisecond

// router is the live links as sessions see them.
type router struct{ relays *uplink.Set }

func (r router) Changed() <-chan struct{} { return r.relays.Changed() }

func (r router) Routes() []session.Route {
	live := r.relays.Live()
	routes := make([]session.Route, len(live))
	for i, l := range live {
		routes[i] = session.Route{
			Link:    l,
			Relay:   l.Peer(),
			RTT:     l.RTT(),
			Overdue: l.Unanswered,
			Open: func(tip *wire.Connect, data []byte) (wire.Stream, error) {
				stream, err := l.Open(append(wire.Append(nil, tip), data...))
				if err != nil {
					return nil, err
				}
				return stream, nil
			},
		}
	}
	return routes
}

// Sockets are the listening sockets by the names under which Inherit is asked
// for them, for whoever keeps them over a restart. They are the client's own:
// use their descriptors within Control alone.
func (c *Client) Sockets() map[string][]syscall.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	sockets := make(map[string][]syscall.Conn)
	for _, l := range c.listeners {
		for _, s := range l.sockets {
			if conn, ok := s.Listener.(syscall.Conn); ok {
				sockets[s.name] = append(sockets[s.name], conn)
			}
		}
	}
	return sockets
}

// Snapshot is what a client knows at one moment. It shares nothing with the client.
type Snapshot struct {
	Relays   []uplink.State // in the config's order
	Mappings []Mapping      // in the config's order, the disabled ones too
	Sessions []session.Info // the oldest first
	Held     int            // connections that wait for a link
	Counts   ledger.Counts  // of the connections that have ended
	Memory   session.Memory

	LinkMemory, LinkMemoryLimit int64 // bytes that the windows of links have grown by

	LimitsHit map[string]uint64 // connections that each limit has kept out or made wait
}

// Mapping tells how a mapping stands.
type Mapping struct {
	config.Mapping
	Listening   []string // the addresses, as bound; empty if it is disabled
	Connections int      // through its listener at the moment
	Failed      error    // why it does not listen though it is enabled; it is tried again by itself
}

// Snapshot tells how the client stands.
func (c *Client) Snapshot() Snapshot {
	s := Snapshot{
		Relays:   c.relays.States(),
		Counts:   c.ledger.Counts(), // before the sessions, so that none is in both
		Sessions: c.sessions.Sessions(),
		Held:     c.held.count(),
		Memory:   c.sessions.Memory(),

		LinkMemory: c.windows.Used(), LinkMemoryLimit: c.windows.Limit(),
		LimitsHit: c.hits.Counts(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.settings.Load().Mappings {
		status := Mapping{Mapping: m}
		if l := c.listeners[m.Listen]; l != nil && l.mapping.Load().Name == m.Name {
			status.Connections = l.gate.count()
			for _, socket := range l.sockets {
				status.Listening = append(status.Listening, cmp.Or(l.bound.Path, socket.Addr().String()))
			}
		}
		if v := c.vacant[m.Listen]; v != nil && v.mapping.Name == m.Name {
			status.Failed = v.err
		}
		s.Mappings = append(s.Mappings, status)
	}
	return s
}

// Failing are the mappings that should listen, and can't at the moment.
func (c *Client) Failing() (list []Mapping) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.settings.Load().Mappings {
		if v := c.vacant[m.Listen]; v != nil && v.mapping.Name == m.Name {
			list = append(list, Mapping{Mapping: m, Failed: v.err})
		}
	}
	return list
}

var errStopped = errors.New("the client has stopped")
