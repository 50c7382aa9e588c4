package daemon

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/budget"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/config"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
)

// relayRole is a relay with its UDP sockets. pkg/relay itself knows no network.
type relayRole struct {
	*relay.Relay
	daemon *daemon
	listen []config.Listen
	binder bind.Binder

	ready, forced chan struct{}
	force         sync.Once

	mu       sync.Mutex
	settings *config.Config
	sockets  []*relaySocket
	vacant   map[config.Listen]error // listeners that can't be bound yet, and why
	links    link.Links              // of all sockets; of a peer's links the newest wins
	windows  *budget.Budget
}

type relaySocket struct {
	*carrier.Socket
	listener *link.Listener
	place    string // "[::]:30380", "systemd:quic"
	ofUnit   bool   // of a socket unit, which systemd has anyway
	conn     net.PacketConn
}

func newRelayRole(d *daemon, c *config.Config) (role, error) {
	rules, err := policy.NewRelay(c.Peers)
	if err != nil {
		return nil, err
	}
	return &relayRole{
		Relay: relay.New(relay.Config{
			Policy: rules, Limits: relayLimits(c), Logger: d.log,
			Opened: func(took time.Duration) { d.metrics.opened("", took) },
		}),
		daemon:   d,
		listen:   c.Listen,
		binder:   bind.Binder{Packets: d.inheritPackets},
		vacant:   make(map[config.Listen]error),
		ready:    make(chan struct{}),
		forced:   make(chan struct{}),
		settings: c,
		windows:  budget.New("link_memory", int64(c.Limits.LinkMemory)),
	}, nil
}

func relayLimits(c *config.Config) relay.Limits {
	return relay.Limits{
		Connections:          c.Limits.Streams,
		ConnectionsPerClient: c.Limits.StreamsPerPeer,
		OpensPerSecond:       c.Limits.OpensPerSecond,
		Parked:               c.Limits.ParkedResumes,
		ParkTime:             cmp.Or(c.Limits.ParkTimeout, -1),
	}
}

// listenerLimits returns the limits of what happens before pkg/relay is called.
func listenerLimits(c *config.Config) link.Limits {
	l := c.Limits
	return link.Limits{
		Streams:             int64(l.StreamsPerPeer),
		PendingTips:         l.PendingTips,
		PendingTipsTotal:    l.PendingTipsTotal,
		TipTimeout:          l.TipTimeout,
		Links:               l.Links,
		Handshakes:          l.Handshakes,
		HandshakesPerSource: l.HandshakesPerSource,
		HandshakeTimeout:    l.HandshakeTimeout,
		HandshakesPerSecond: l.RetryRate,
		AuthPenalty:         l.AuthPenalty,
		AuthPenaltyMax:      l.AuthPenaltyMax,
		PenaltySources:      l.PenaltySources,
		PenaltyExempt:       c.PenaltyExempt,
	}
}

func (r *relayRole) Ready() <-chan struct{} { return r.ready }

func (r *relayRole) Force() { r.force.Do(func() { close(r.forced) }) }

func (r *relayRole) Apply(_ context.Context, next *config.Config) error {
	rules, err := policy.NewRelay(next.Peers)
	if err != nil {
		return err
	}
	applied := r.Relay.Apply(rules, relayLimits(next))
	r.mu.Lock()
	r.settings = next
	r.windows.SetLimit(int64(next.Limits.LinkMemory))
	for _, s := range r.sockets {
		s.listener.SetLimits(listenerLimits(next))
	}
	r.links.Forgive() // the missing key may be in the config now
	r.mu.Unlock()
	if applied != (relay.Applied{}) {
		r.daemon.log.Info("rights were withdrawn", "links_closed", applied.Links,
			"connections_ended", applied.Connections)
	}
	return nil
}

func (r *relayRole) Run(ctx context.Context) error {
	defer r.closeSockets()
	first, err := r.bind(ctx, r.listen)
	if len(first) == 0 {
		return err
	}
	close(r.ready)

	listening, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, 1)
	var serving sync.WaitGroup
	serve := func(sockets []*relaySocket) {
		for _, s := range sockets {
			serving.Go(func() {
				err := s.listener.Run(listening)
				select {
				case ended <- err:
				default: // another one has ended first
				}
			})
		}
	}
	serve(first)
	binding, stopBinding := context.WithCancel(ctx)
	defer stopBinding()
	serving.Go(func() {
		bind.Retry(binding, func() {
			if more, _ := r.bind(binding, r.unbound()); len(more) > 0 {
				serve(more)
				r.daemon.keepSockets()
			}
		})
	})
	var failed error
	select {
	case <-ctx.Done():
		r.drain()
	case failed = <-ended:
	}
	stopBinding()
	stop()
	serving.Wait()
	return failed
}

// drain waits until sessions have moved to other relays, for drain_timeout at most.
func (r *relayRole) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), r.current().DrainTimeout)
	defer cancel()
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-r.forced:
			cancel()
		case <-stop:
		}
	})
	if left := r.Drain(ctx); left > 0 {
		r.daemon.log.Info("connections were cut off that no other relay has taken", "connections",
			left)
	}
	close(stop)
	watch.Wait()
}

func (r *relayRole) current() *config.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.settings
}

func (r *relayRole) Alive(ctx context.Context) error {
	r.mu.Lock()
	sockets := slices.Clone(r.sockets)
	r.mu.Unlock()
	for _, s := range sockets {
		if err := s.listener.Alive(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (r *relayRole) Summary() string {
	var addresses []string
	r.mu.Lock()
	for _, s := range r.sockets {
		addresses = append(addresses, s.LocalAddr().String())
	}
	r.mu.Unlock()
	now := r.Brief()
	text := fmt.Sprintf("listening on %s; %d of %s connected, %s%s", strings.Join(addresses, ", "),
		now.Connected, plural(now.Peers, "peer"), plural(now.Connections, "connection"),
		failedSummary(r.Unbound()))
	if n := len(r.waiting()); n > 0 {
		text += fmt.Sprintf("; %s waiting", plural(n, "unknown key"))
	}
	return text
}

// waiting returns the nodes that knock with a key that the config does not name.
func (r *relayRole) waiting() []link.Stranger {
	list := r.links.Strangers()
	return slices.DeleteFunc(list, func(s link.Stranger) bool {
		_, err := r.Admit(s.Key)
		return err == nil
	})
}
