// Package client is the role P2: it listens on TCP for P1, and forwards each connection that it
// accepts over a link to a relay, to the server and target of its mapping.
//
// The way of a connection: a listener's accept loop takes it (accept.go); it waits for a place and
// for a live link (carry.go); a session of pkg/session carries it to its end; pkg/ledger logs and
// counts how it ended.
//
//	c, err := client.New(client.Config{Settings: settings, Identity: key, Logger: logger})
//	go c.Run(ctx)                    // until ctx is done
//	<-c.Ready()                      // every listener was tried
//	err = c.Apply(ctx, newSettings)  // a reload
//	c.Snapshot()                     // for status and metrics
//
// Three things have lifetimes of their own. A listener lives while a mapping names its place; its
// mapping is behind an atomic pointer, which a reload swaps (apply.go, listen.go). Links come and
// go in pkg/uplink. A session outlives both.
package client

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/budget"
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
	Settings *config.Config // the first config; Apply changes it
	Identity ident.PrivateKey
	Logger   *slog.Logger // nil: no log
	// RuntimeDirectory has the files of Unix sockets on which mappings listen.
	RuntimeDirectory string
	// Inherit returns the listeners that the process has inherited under a name, and hands them
	// over: the client closes them. Names are "127.0.0.1:2200" or "[::1]:2200" for an address,
	// "unix:NAME" for a Unix socket, "systemd:NAME" for a socket that the service manager made.
	// The client binds what was not inherited. Nil: nothing was.
	Inherit func(name string) []net.Listener
	// KeepSockets says that somebody keeps the listeners over a restart (see Sockets): the files
	// of Unix sockets stay when Run returns.
	KeepSockets bool
	// Rebound is called when a listener is bound that could not be bound before: Sockets has more
	// now.
	Rebound func()
	// Opened is called when the server has granted a connection, with the time since it was
	// accepted. It must not block.
	Opened func(mapping string, took time.Duration)
	// AdjustDialer may change each dialer of a relay before it runs. Tests set it.
	AdjustDialer func(*link.Dialer)
}

// A Client is a P2. Call Run once; the other methods may be called at any time, from any goroutine.
type Client struct {
	config   Config
	log      *slog.Logger
	binder   bind.Binder
	relays   *uplink.Set
	sessions *session.Client
	ledger   *ledger.Ledger
	hits     quiet.Hits
	repeats  quiet.Repeats // failures to accept, limits that are reached, shortages of memory

	settings atomic.Pointer[config.Config]
	gate     gate           // all connections
	held     gate           // the connections that wait for a link
	conns    sync.WaitGroup // the goroutines of connections

	ready    chan struct{}   // closed when each listener was tried
	over     chan struct{}   // closed when Run ends
	place    *origin.Place   // marks accepted connections; set by Run
	carrying context.Context // ends with the sessions; set by Run before any connection is accepted

	mu        sync.Mutex      // held by Apply; guards the fields below
	accepting context.Context // that of Run; nil while nothing is accepted
	listeners map[config.Listen]*listener
	vacant    map[config.Listen]*vacancy
}

// New makes a client and starts nothing. It fails if two mappings listen at the same place.
func New(cfg Config) (*Client, error) {
	if _, err := wantedListeners(cfg.Settings); err != nil {
		return nil, err
	}
	c := &Client{
		config:    cfg,
		log:       cfg.Logger,
		binder:    bind.Binder{Directory: cfg.RuntimeDirectory, Streams: cfg.Inherit},
		ready:     make(chan struct{}),
		over:      make(chan struct{}),
		listeners: make(map[config.Listen]*listener),
		vacant:    make(map[config.Listen]*vacancy),
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.ledger = &ledger.Ledger{Role: string(config.RoleClient), ID: cfg.Settings.ID, Logger: c.log}
	c.relays = uplink.New(uplink.Config{
		ID: cfg.Settings.ID, Identity: cfg.Identity, Logger: c.log,
		Serve: c.serveLink, Retire: c.retire, Refused: c.refused, Adjust: cfg.AdjustDialer,
	})
	c.sessions = session.NewClient(session.ClientConfig{
		Router: router{c.relays},
		Limits: sessionLimits(cfg.Settings.Limits),
		Logger: c.log,

		LimitHit: c.hits.Hit,
		Short:    func(s budget.Shortage) { ledger.WarnShortage(c.log, &c.repeats, s) },
	})
	c.adopt(cfg.Settings)
	return c, nil
}

// Run binds the listeners and serves until ctx is done. A listener that cannot be bound is tried
// again and again. When ctx is done, Run accepts nothing more and gives the connections
// drain_timeout to end, as long as data moves in one of them. It resets the rest, closes the links,
// and returns when all that it started has ended.
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
	ended := make(chan struct{})
	go c.awaitConnections(ended)
	c.relays.Drain(c.settings.Load().DrainTimeout, c.sessions.Moving, ended)
	endSessions()
	<-ended
	c.closeListeners()
	sessions.Wait()
	endLinks()
	links.Wait()
	return nil
}

func (c *Client) awaitConnections(ended chan<- struct{}) {
	c.conns.Wait()
	close(ended)
}

// Ready is closed when each listener was tried. A listener may be unbound and no relay reachable.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Force ends the drain: the connections that are left are reset.
func (c *Client) Force() { c.relays.Force() }

// adopt puts in force what cannot fail: limits and relays.
func (c *Client) adopt(next *config.Config) {
	c.settings.Store(next)
	c.gate.setLimit(next.Limits.Sessions)
	c.held.setLimit(next.Limits.HeldConnections)
	c.sessions.SetLimits(sessionLimits(next.Limits))
	c.relays.Apply(next)
}

func sessionLimits(l config.Limits) session.Limits {
	return session.Limits{
		WindowBudget:   int64(l.SessionMemory),
		RetainedBudget: int64(l.RetainedMemory),
		MaxWindow:      int(l.SessionWindow),
		Sessions:       l.Sessions,
	}
}

// refused ends all sessions when no relay knows this node's key any more: they could never resume.
func (c *Client) refused() {
	c.sessions.End(func(session.Info) bool { return true }, session.OutcomeRevoked)
}

// serveLink moves sessions away from a link whose relay is closing. Peers open no streams to a
// client.
func (c *Client) serveLink(ctx context.Context, l *link.Link) {
	closing := l.PeerClosing()
	for {
		changed := c.relays.Changed()
		if closing == nil { // again after each change: there may have been no other link before
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

// retirePoll is the interval at which retire asks whether the link is empty.
const retirePoll = 50 * time.Millisecond

// retire moves the sessions away from the link of a relay that the config has no longer. It gives
// them drain_timeout to find another link.
func (c *Client) retire(ctx context.Context, l *link.Link) {
	const why = "the relay is in the config no more"
	ctx, cancel := context.WithTimeout(ctx, c.settings.Load().DrainTimeout)
	defer cancel()
	poll := time.NewTicker(retirePoll)
	defer poll.Stop()
	changed := c.relays.Changed()
	c.sessions.Move(l, why)
	for c.sessions.Carries(l) {
		select {
		case <-changed:
			changed = c.relays.Changed()
			c.sessions.Move(l, why)
		case <-poll.C:
		case <-l.Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// router gives the sessions the live links as routes.
type router struct{ relays *uplink.Set }

func (r router) Changed() <-chan struct{} { return r.relays.Changed() }

// Routes ignores the server: each relay is asked for it.
func (r router) Routes(string) []session.Route {
	live := r.relays.Live()
	routes := make([]session.Route, len(live))
	for i, l := range live {
		routes[i] = session.Route{
			Link:    l,
			Relay:   l.Peer(),
			RTT:     l.RTT(),
			Overdue: l.Unanswered,
			Shared:  true,
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

var errStopped = errors.New("the client has stopped")
