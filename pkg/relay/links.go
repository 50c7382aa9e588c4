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

// A neighbour is a peer by one of its links: while the link lives, and no longer.
type neighbour struct {
	link     *link.Link
	called   atomic.Pointer[called]
	role     policy.Role
	lines    *quiet.Pace // the relay's
	opens    *rate.Limiter
	refusals quiet.Repeats
	work     sync.WaitGroup // the goroutines of Serve
	overdue  int            // how often in turn a sweep has found the link's heartbeats overdue
}

// called is how a peer is called, and the log where it is. A reload can change it.
type called struct {
	id  string
	log *slog.Logger
}

func (n *neighbour) id() string        { return n.called.Load().id }
func (n *neighbour) log() *slog.Logger { return n.called.Load().log }

// call gives the peer another name.
func (n *neighbour) call(id string, log *slog.Logger) {
	n.called.Store(&called{id, log.With("peer", id)})
	n.link.Rename(id)
}

// say logs what the peer can make come again as often as it likes: that is bounded, whatever links it makes for it.
// So many a second are left out that they are not even made.
func (n *neighbour) say(level slog.Level, msg string, attributes func() []any) {
	level, leftOut := n.lines.Level(n.id(), level)
	if n.log().Enabled(context.Background(), level) {
		n.log().Log(context.Background(), level, msg, append(attributes(), quiet.LeftOut(leftOut))...)
	}
}

// links is the table of live links, one for each peer: the newest wins.
type links struct {
	mu      sync.Mutex
	ids     map[string]string // the IDs of the peers that have other names, by those: all that follows is by ID
	live    map[string]*neighbour
	awaited map[string]chan struct{} // closed when a link of that peer arrives
	left    map[string]departure     // the last link of each peer
	past    map[string]*LinkTotals   // what the links of each peer have counted that have ended
	rivals  map[string][]clash       // of each peer, the last few, the oldest first
}

// A clash is that a peer's link was superseded by a newer one, or that a process was turned away since another one with
// its key answers.
type clash struct {
	at   time.Time
	from netip.Addr // where the older one came from, or who was turned away
	sure bool       // two processes live
}

// So many clashes in this time are no restarts any more: several nodes hold the peer's key. A sure one is enough. A process
// that did not answer when another came in its place is no clash.
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

// follow takes over the names of a policy, which the live links have already: what is known of a peer moves along.
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
	for name, arrived := range l.awaited { // who waits looks again
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

// otherNames are the IDs of the peers that have other names, by those.
func otherNames(p *policy.Relay) map[string]string {
	ids := make(map[string]string)
	for _, peer := range p.Peers() {
		for _, name := range peer.Others {
			ids[name] = peer.ID
		}
	}
	return ids
}

// move has what is known by other names known by IDs.
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

// remove forgets a link that has ended, unless a newer one stands in its place. It returns the rivals of its peer, if
// it is with this link that there are any.
func (l *links) remove(n *neighbour) (rivals []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := len(l.rivalsLocked(n.id())) > 0
	if closed, ok := errors.AsType[*link.ClosedError](n.link.Err()); ok && closed.Code == wire.CloseSuperseded {
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

// contest notes that a process was turned away, and returns the rivals of its peer if they have become known by that.
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

// rivalsLocked are the addresses of the nodes that seem to share a peer's key; none if one node has it.
func (l *links) rivalsLocked(id string) []netip.Addr {
	clashes := l.rivals[id]
	for len(clashes) > 0 && time.Since(clashes[0].at) > clashTime {
		clashes = clashes[1:]
	}
	if len(clashes) < manyClashes && !slices.ContainsFunc(clashes, func(c clash) bool { return c.sure }) {
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

// get is the link of a peer on which something can be sent, or nil.
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

// here tells whether a peer has a link, or had one within that time.
func (l *links) here(name string, within time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	id := l.idLocked(name)
	left, known := l.left[id]
	return l.live[id] != nil || known && time.Since(left.at) < within
}

// await waits for get to find a link, until one of the contexts is done or the
// time is over.
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

// all are the live links.
func (l *links) all() []*neighbour {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*neighbour, 0, len(l.live))
	for _, n := range l.live {
		all = append(all, n)
	}
	return all
}

// lastKey is the key with which a peer is here, or was last.
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

// look returns a peer's live link, or when it last had one; what all its links have counted; and its rivals.
func (l *links) look(id string) (n *neighbour, left time.Time, totals LinkTotals, rivals []netip.Addr) {
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
