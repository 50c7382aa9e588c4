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

	"ptthqd/pkg/bind"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
)

// relayRole is a relay and its UDP sockets: relay itself knows no network.
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
	links    link.Links              // of all sockets together: the newest of a peer wins
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
		binder:   bind.Binder{Packets: d.inheritPackets},
		vacant:   make(map[config.Listen]error),
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
	r.links.Forgive() // the key that was missing may have come
	r.mu.Unlock()
	if applied != (relay.Applied{}) {
		r.daemon.log.Info("rights were withdrawn", "links_closed", applied.Links, "connections_ended", applied.Connections)
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
				default: // another one has ended before
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

// newListener makes the listener of a socket.
func (r *relayRole) newListener(socket *carrier.Socket) *link.Listener {
	limits := listenerLimits(r.settings)
	limits.Windows = r.windows
	return &link.Listener{
		Socket:   socket,
		Links:    &r.links,
		Identity: r.daemon.identity,
		Admit:    r.Admit,
		Serve:    r.Serve,
		Rival:    r.Rival,
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

// bind makes the sockets of listeners, as far as they can be bound, and returns them; and the reasons why others can't.
func (r *relayRole) bind(ctx context.Context, listen []config.Listen) (made []*relaySocket, failed error) {
	for _, at := range listen {
		sockets, err := r.open(ctx, at)
		r.mu.Lock()
		before := r.vacant[at]
		if err != nil {
			r.vacant[at] = err
		} else {
			delete(r.vacant, at)
		}
		for _, s := range sockets {
			s.listener = r.newListener(s.Socket)
		}
		r.sockets = append(r.sockets, sockets...)
		r.mu.Unlock()
		for _, s := range sockets {
			r.daemon.log.Info("listening", "listener", s.place, "address", s.LocalAddr())
		}
		if err != nil && (before == nil || before.Error() != err.Error()) && len(r.listen) > 1 { // of a single one the end tells
			problem, hint := bind.Problem(err)
			r.daemon.log.Warn("the relay does not listen everywhere", "listener", at.String(), "error", problem, "hint", hint)
		}
		made, failed = append(made, sockets...), errors.Join(failed, err)
	}
	return made, failed
}

// open makes the sockets of one listener, all or none.
func (r *relayRole) open(ctx context.Context, at config.Listen) (made []*relaySocket, err error) {
	bound, err := r.binder.ListenPacket(ctx, at)
	for _, b := range bound {
		var socket *carrier.Socket
		if err == nil {
			socket, err = carrier.New(b.Socket, r.daemon.log) // which closes it if that fails
		}
		if err != nil {
			_ = b.Socket.Close()
			continue
		}
		made = append(made, &relaySocket{Socket: socket, place: b.Name, ofUnit: at.Kind == config.Systemd, conn: b.Socket})
	}
	if err != nil {
		for _, s := range made {
			_ = s.Close()
		}
		return nil, err
	}
	return made, nil
}

// unbound are the listeners that are to be tried again.
func (r *relayRole) unbound() []config.Listen {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []config.Listen
	for _, l := range r.listen {
		if r.vacant[l] != nil {
			list = append(list, l)
		}
	}
	return list
}

func (r *relayRole) Unbound() (texts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listen {
		if err := r.vacant[l]; err != nil {
			problem, _ := bind.Problem(err)
			texts = append(texts, l.String()+": "+problem)
		}
	}
	return texts
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
			kept[host.FDName("udp", s.place)] = []syscall.Conn{conn}
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
	for _, l := range r.listen {
		if err := r.vacant[l]; err != nil {
			problem, hint := bind.Problem(err)
			s.Listeners = append(s.Listeners, control.Listener{Listen: l.String(), Problem: problem, Hint: hint})
		}
	}
	r.mu.Unlock()
	for _, w := range r.waiting() {
		s.Waiting = append(s.Waiting, control.Waiting{Key: w.Key.String(), Address: w.Address, Since: w.Since, Last: w.Last, Tries: w.Tries})
	}
	connected := 0
	for _, p := range now.Peers {
		peer := control.Peer{ID: p.ID, OtherNames: p.Others, Role: string(p.Role), Source: p.Source.String(), LastSeen: p.LastSeen}
		if p.Link != nil {
			connected++
			peer.Connected, peer.Since, peer.Address = true, p.Link.Since, p.Link.Address.String()
			peer.Figures, peer.Connections = figures(p.Link.Stats), p.Link.Connections
		}
		if len(p.Rivals) > 0 {
			peer.Problem = "several nodes hold its key, at " + addresses(p.Rivals)
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
	c.LimitsHit = now.Counters.LimitsHit
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
	var failed []string
	for _, l := range s.Listeners {
		if l.Problem != "" {
			failed = append(failed, l.Listen+": "+l.Problem)
			continue
		}
		places = append(places, l.Address)
	}
	s.Summary = fmt.Sprintf("listening on %s; %d of %s connected, %s%s", strings.Join(places, ", "), connected, plural(len(s.Peers), "peer"), plural(len(s.Connections), "connection"), failedSummary(failed))
	if n := len(s.Waiting); n > 0 {
		s.Summary += fmt.Sprintf("; %s waiting", plural(n, "unknown key"))
	}
}

// waiting returns the nodes that knock with keys that the config in force does not name.
func (r *relayRole) waiting() []link.Stranger {
	list := r.links.Strangers()
	return slices.DeleteFunc(list, func(s link.Stranger) bool {
		_, err := r.Admit(s.Key)
		return err == nil
	})
}

// addresses lists them: "10.0.0.1 and 10.0.0.2".
func addresses(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.Unmap().String()
	}
	return strings.Join(texts, " and ")
}
