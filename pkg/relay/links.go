package relay

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/quiet"
	"ptthqd/pkg/wire"
)

// A neighbour is a peer at the other end of one link. It lives as long as the link.
type neighbour struct {
	link     *link.Link
	called   atomic.Pointer[called]
	role     policy.Role
	lines    *quiet.Pace   // the relay's
	opens    *rate.Limiter // opens_per_second
	refusals quiet.Repeats
	work     sync.WaitGroup // the goroutines of Serve
	overdue  int            // sweeps in a row that have found the link's heartbeats overdue
}

// called is a peer's ID, with a logger that has it. A reload may change both.
type called struct {
	id  string
	log *slog.Logger
}

func (n *neighbour) id() string        { return n.called.Load().id }
func (n *neighbour) log() *slog.Logger { return n.called.Load().log }

// call gives the peer another ID.
func (n *neighbour) call(id string, log *slog.Logger) {
	n.called.Store(&called{id, log.With("peer", id)})
	n.link.Rename(id)
}

// say logs a line that the peer can cause as often as it likes, within the pace of that peer.
// attributes is called only if the line is written.
func (n *neighbour) say(level slog.Level, msg string, attributes func() []any) {
	level, leftOut := n.lines.Level(n.id(), level)
	if n.log().Enabled(context.Background(), level) {
		n.log().Log(context.Background(), level, msg, append(attributes(), quiet.LeftOut(leftOut))...)
	}
}

// links is the table of links, one for each peer: the newest wins. It also remembers past links.
type links struct {
	mu      sync.Mutex
	ids     map[string]string // the peers' IDs by their other names; the maps below are by ID
	live    map[string]*neighbour
	awaited map[string]chan struct{} // closed when a link of that peer arrives
	left    map[string]departure     // the last link of each peer that has ended
	past    map[string]*LinkTotals   // the sums of the links that have ended
	rivals  map[string][]clash       // the last few clashes of each peer, the oldest first
}

// A clash is a sign that several nodes hold a peer's key: a newer link superseded a live one, or a
// process was turned away because another process with its key answers.
type clash struct {
	at   time.Time
	from netip.Addr // of the older link, or of the process that was turned away
	sure bool       // two processes are alive
}

// manyClashes within clashTime are no restarts: several nodes hold the peer's key. One sure clash
// is enough.
const (
	manyClashes = 3
	clashTime   = 20 * time.Minute
)

type departure struct {
	at  time.Time
	key ident.PublicKey
}

func newLinks() links {
	return links{
		live:    make(map[string]*neighbour),
		awaited: make(map[string]chan struct{}),
		left:    make(map[string]departure),
		past:    make(map[string]*LinkTotals),
		rivals:  make(map[string][]clash),
	}
}

// follow takes over the names of a policy, which the live links have already. What is remembered by
// an old name is then remembered by the ID.
func (l *links) follow(p *policy.Relay) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ids = otherNames(p)
	for name, n := range l.live {
		if id := n.id(); id != name {
			delete(l.live, name)
			if l.live[id] == nil {
				l.live[id] = n
			}
		}
	}
	for name, arrived := range l.awaited { // waiters look again
		if l.ids[name] != "" {
			close(arrived)
			delete(l.awaited, name)
		}
	}
	for name, left := range l.left {
		if peer, known := p.PeerByKey(left.key); known && peer.ID != name && peer.Is(name) {
			delete(l.left, name)
			l.left[peer.ID] = left
		}
	}
	move(l.past, l.ids)
	move(l.rivals, l.ids)
}

// otherNames returns the IDs of the peers that have other names, by the other names.
func otherNames(p *policy.Relay) map[string]string {
	ids := make(map[string]string)
	for _, peer := range p.Peers() {
		for _, name := range peer.Others {
			ids[name] = peer.ID
		}
	}
	return ids
}

// move changes the keys of a map from other names to IDs.
func move[V any](known map[string]V, ids map[string]string) {
	for name, v := range known {
		id := ids[name]
		if id == "" {
			continue
		}
		delete(known, name)
		if _, taken := known[id]; !taken {
			known[id] = v
		}
	}
}

func (l *links) idLocked(name string) string { return cmp.Or(l.ids[name], name) }

func (l *links) add(n *neighbour) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live[n.id()] = n
	if arrived := l.awaited[n.id()]; arrived != nil {
		close(arrived)
		delete(l.awaited, n.id())
	}
}

// remove takes out a link that has ended, and leaves a newer link in its place. It returns the
// rivals of the peer if they have become known by this.
func (l *links) remove(n *neighbour) (rivals []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := len(l.rivalsLocked(n.id())) > 0
	closed, ok := errors.AsType[*link.ClosedError](n.link.Err())
	if ok && closed.Code == wire.CloseSuperseded {
		l.clashLocked(n.id(), clash{at: time.Now(), from: n.link.RemoteAddr().Addr()})
	}
	l.left[n.id()] = departure{at: time.Now(), key: n.link.Key()}
	past := l.past[n.id()]
	if past == nil {
		past = &LinkTotals{Ended: make(map[link.Reason]uint64)}
		l.past[n.id()] = past
	}
	past.Ended[n.link.Reason()]++
	past.add(n.link.Stats())
	if l.live[n.id()] == n {
		delete(l.live, n.id())
	}
	if known {
		return nil
	}
	return l.rivalsLocked(n.id())
}

// contest notes that a process was turned away. It returns the rivals of the peer if they have
// become known by this.
func (l *links) contest(id string, from netip.Addr) (rivals []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := len(l.rivalsLocked(id)) > 0
	l.clashLocked(id, clash{time.Now(), from, true})
	if known {
		return nil
	}
	return l.rivalsLocked(id)
}

func (l *links) clashLocked(id string, c clash) {
	clashes := append(l.rivals[id], c)
	l.rivals[id] = clashes[max(0, len(clashes)-manyClashes):]
}

// rivalsLocked returns the addresses of the nodes that seem to share a peer's key, or nil.
func (l *links) rivalsLocked(id string) []netip.Addr {
	clashes := l.rivals[id]
	for len(clashes) > 0 && time.Since(clashes[0].at) > clashTime {
		clashes = clashes[1:]
	}
	sure := func(c clash) bool { return c.sure }
	if len(clashes) < manyClashes && !slices.ContainsFunc(clashes, sure) {
		return nil
	}
	var from []netip.Addr
	for _, c := range clashes {
		from = append(from, c.from)
	}
	if n := l.live[id]; n != nil {
		from = append(from, n.link.RemoteAddr().Addr())
	}
	slices.SortFunc(from, netip.Addr.Compare)
	return slices.Compact(from)
}

// get returns the live link of a peer, or nil.
func (l *links) get(id string) *neighbour {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.getLocked(id)
}

func (l *links) getLocked(name string) *neighbour {
	n := l.live[l.idLocked(name)]
	if n == nil || n.link.Err() != nil {
		return nil
	}
	return n
}

// here reports whether a peer has a link, or had one within that time.
func (l *links) here(name string, within time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.idLocked(name)
	left, known := l.left[id]
	return l.live[id] != nil || known && time.Since(left.at) < within
}

// await waits until get finds a link. It returns nil when a context is done or d is over.
func (l *links) await(ctx, stream context.Context, name string, d time.Duration) *neighbour {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	for {
		l.mu.Lock()
		id := l.idLocked(name)
		n, arrived := l.getLocked(id), l.awaited[id]
		if n == nil && arrived == nil {
			arrived = make(chan struct{})
			l.awaited[id] = arrived
		}
		l.mu.Unlock()
		if n != nil {
			return n
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			return nil
		case <-stream.Done():
			return nil
		case <-timeout.C:
			return nil
		}
	}
}

// all returns the live links.
func (l *links) all() []*neighbour {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*neighbour, 0, len(l.live))
	for _, n := range l.live {
		all = append(all, n)
	}
	return all
}

// lastKey returns the key of a peer's live link, or of its last one.
func (l *links) lastKey(name string) (ident.PublicKey, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.idLocked(name)
	if n := l.live[id]; n != nil {
		return n.link.Key(), true
	}
	d, known := l.left[id]
	return d.key, known
}

// look returns a peer's live link, or when its last one ended; the sums of all its links; its
// rivals.
func (l *links) look(id string) (
	n *neighbour, left time.Time, totals LinkTotals, rivals []netip.Addr,
) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rivals = l.rivalsLocked(id)
	if past := l.past[id]; past != nil {
		totals = *past
		totals.Ended = maps.Clone(past.Ended)
	}
	if n = l.live[id]; n != nil {
		totals.add(n.link.Stats())
		return n, time.Time{}, totals, rivals
	}
	return nil, l.left[id].at, totals, rivals
}

func (t *LinkTotals) add(s link.Stats) {
	t.PacketsSent += s.PacketsSent
	t.PacketsLost += s.PacketsLost
	t.ParitySent += s.ParitySent
	t.Restored += s.Restored
	t.BytesSent += s.BytesSent
	t.BytesReceived += s.BytesReceived
}
