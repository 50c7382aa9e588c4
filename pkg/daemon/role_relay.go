package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
)

// relayRole is a relay and its UDP sockets: relay itself knows no network.
type relayRole struct {
	*relay.Relay
	daemon *daemon
	listen []config.Listen

	ready, forced chan struct{}
	force         sync.Once

	mu       sync.Mutex
	settings *config.Config
	sockets  []*relaySocket
	links    link.Links // of all sockets together: the newest of a peer wins
	windows  *link.Budget
}

type relaySocket struct {
	*carrier.Socket
	listener *link.Listener
	place    string // "[::]:30380", "systemd:quic"
	ofUnit   bool   // a socket unit's: systemd has it already
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
		ready:    make(chan struct{}),
		forced:   make(chan struct{}),
		settings: c,
		windows:  link.NewBudget(int64(c.Limits.LinkMemory)),
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

// listenerLimits are the limits of what comes before relay itself.
func listenerLimits(l config.Limits) link.Limits {
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
		s.listener.SetLimits(listenerLimits(next.Limits))
	}
	r.links.Forgive() // the key that was missing may have come
	r.mu.Unlock()
	if applied != (relay.Applied{}) {
		r.daemon.log.Info("rights were withdrawn", "links_closed", applied.Links, "connections_ended", applied.Connections)
	}
	return nil
}

func (r *relayRole) Run(ctx context.Context) error {
	if err := r.bind(ctx); err != nil {
		r.closeSockets()
		return err
	}
	defer r.closeSockets()
	close(r.ready)

	listening, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ended := make(chan error, len(r.sockets))
	var serving sync.WaitGroup
	for _, s := range r.sockets {
		serving.Go(func() { ended <- s.listener.Run(listening) })
	}
	var failed error
	select {
	case <-ctx.Done():
		r.drain()
	case failed = <-ended:
	}
	stop()
	serving.Wait()
	return failed
}

// newListener makes the listener of a socket.
func (r *relayRole) newListener(socket *carrier.Socket) *link.Listener {
	limits := listenerLimits(r.settings.Limits)
	limits.Windows = r.windows
	return &link.Listener{
		Socket:   socket,
		Links:    &r.links,
		Identity: r.daemon.identity,
		Admit:    r.Admit,
		Serve:    r.Serve,
		Logger:   r.daemon.log,
		Limits:   limits,
		LimitHit: r.LimitHit,
	}
}

// drain lets sessions move to other relays, drain_timeout at most.
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
		r.daemon.log.Info("connections were cut off that no other relay has taken", "connections", left)
	}
	close(stop)
	watch.Wait()
}

func (r *relayRole) current() *config.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.settings
}

// bind makes the sockets, of what was inherited first.
func (r *relayRole) bind(ctx context.Context) error {
	for _, l := range r.listen {
		if l.Kind == config.Systemd {
			conns := r.daemon.inheritPackets(l.String())
			if len(conns) == 0 {
				return fmt.Errorf("listen on %s: systemd has handed over no UDP socket of this name: a socket unit must have FileDescriptorName=%s, ListenDatagram= and Service=, and be started before this service",
					l, l.Addr)
			}
			for _, conn := range conns {
				if err := r.enter(l.String(), conn, true); err != nil {
					return err
				}
			}
			continue
		}
		var missing error // a family of the loopback that this host hasn't
		bound := 0
		for _, addr := range l.Addrs() {
			name := addr.String()
			if conns := r.daemon.inheritPackets(name); len(conns) > 0 {
				for _, extra := range conns[1:] {
					_ = extra.Close()
				}
				if err := r.enter(name, conns[0], false); err != nil {
					return err
				}
				bound++
				continue
			}
			network := "udp"
			if addr.Addr().Is4() {
				network = "udp4"
			}
			conn, err := new(net.ListenConfig).ListenPacket(ctx, network, name)
			if err != nil {
				if len(l.Addrs()) > 1 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
					missing = err
					continue
				}
				return udpError(name, err)
			}
			if err := r.enter(name, conn, false); err != nil {
				return err
			}
			bound++
		}
		if bound == 0 {
			return udpError(l.String(), missing)
		}
	}
	return nil
}

func (r *relayRole) enter(place string, conn net.PacketConn, ofUnit bool) error {
	socket, err := carrier.New(conn, r.daemon.log)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.sockets = append(r.sockets, &relaySocket{Socket: socket, listener: r.newListener(socket), place: place, ofUnit: ofUnit, conn: conn})
	r.mu.Unlock()
	r.daemon.log.Info("listening", "listener", place, "address", socket.LocalAddr())
	return nil
}

// udpError says what to do about a socket that can't be bound.
func udpError(place string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		hint = ": another process listens there (ss -lunp shows which): stop it, or choose another address"
	case errors.Is(err, syscall.EACCES):
		hint = ": ports below 1024 need a right that the service doesn't have: let the socket unit ptthqd.socket bind it, and write listen = \"systemd:NAME\"; or choose another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		hint = ": no interface of this host has the address"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return fmt.Errorf("listen on UDP %s: %w%s", place, err, hint)
}

func (r *relayRole) closeSockets() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sockets {
		_ = s.Close()
	}
	r.sockets = nil
}

func (r *relayRole) Sockets() map[string][]syscall.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make(map[string][]syscall.Conn)
	for _, s := range r.sockets {
		if conn, ok := s.conn.(syscall.Conn); ok && !s.ofUnit {
			kept[fdName("udp", s.place)] = []syscall.Conn{conn}
		}
	}
	return kept
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

func (r *relayRole) Describe(s *control.Status) {
	now := r.Snapshot()
	r.mu.Lock()
	for _, socket := range r.sockets {
		stats := socket.Stats()
		s.Listeners = append(s.Listeners, control.Listener{
			Listen:        socket.place,
			Address:       socket.LocalAddr().String(),
			GRO:           stats.GRO,
			ReceiveBuffer: stats.ReceiveBuffer,
			SendBuffer:    stats.SendBuffer,
			Packets:       stats.Received,
			Dropped:       stats.Dropped,
			SendFailures:  stats.SendFailures,
		})
	}
	r.mu.Unlock()
	connected := 0
	for _, p := range now.Peers {
		peer := control.Peer{ID: p.ID, Role: string(p.Role), Source: p.Source.String(), LastSeen: p.LastSeen}
		if p.Link != nil {
			connected++
			peer.Connected, peer.Since, peer.Address = true, p.Link.Since, p.Link.Address.String()
			peer.Figures, peer.Connections = figures(p.Link.Stats), p.Link.Connections
		}
		if len(p.Rivals) > 0 {
			peer.Problem = "its links supersede each other again and again: several nodes hold its key, at " + addresses(p.Rivals)
		}
		s.Peers = append(s.Peers, peer)
	}
	for _, c := range now.Connections {
		s.Connections = append(s.Connections, control.Connection{
			ID:        c.ID,
			State:     string(c.State),
			Since:     c.Since,
			Opened:    c.Since,
			Age:       control.Seconds(time.Since(c.Since)),
			Client:    c.Client,
			Source:    c.Source,
			Server:    c.Server,
			Target:    c.Target,
			BytesUp:   c.BytesUp,
			BytesDown: c.BytesDown,
			Resumes:   int(max(c.Attempt, 1) - 1),
		})
	}
	slices.SortFunc(s.Connections, func(a, b control.Connection) int {
		return cmp.Or(a.Opened.Compare(b.Opened), strings.Compare(a.ID, b.ID))
	})
	c := &s.Counters
	c.BytesUp, c.BytesDown, c.Resumed = now.Counters.BytesUp, now.Counters.BytesDown, now.Counters.Resumed
	c.Refused = make(map[string]uint64)
	for status, n := range now.Counters.Refused {
		c.Refused[fmt.Sprint(uint64(status))] += n
	}
	for status, n := range now.Counters.Replies {
		if status < 300 {
			c.Opened += n
			continue
		}
		c.Refused[fmt.Sprint(uint64(status))] += n
	}
	var places []string
	for _, l := range s.Listeners {
		places = append(places, l.Address)
	}
	s.Summary = fmt.Sprintf("listening on %s; %d of %s connected, %s", strings.Join(places, ", "), connected, plural(len(s.Peers), "peer"), plural(len(s.Connections), "connection"))
}

// addresses lists them: "10.0.0.1 and 10.0.0.2".
func addresses(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.Unmap().String()
	}
	return strings.Join(texts, " and ")
}
