package link

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"
)

// The limits of strangers and peers that a Listener or Dialer tells of, as the config names them.
const (
	limitHandshakes       = "handshakes"
	limitSourceHandshakes = "handshakes_per_source"
	limitPenalty          = "auth_penalty"
	limitRetry            = "retry_rate"
	limitLinks            = "links"
	limitTips             = "pending_tips"
	limitAllTips          = "pending_tips_total"
)

// A door lets handshakes in. It knows how many are under way from each source, and which sources are to wait as somebody
// there has failed to authenticate. What it remembers is bounded by the limits. The zero value is ready.
//
// A first packet costs its sender nothing, not even an address of its own, and may be a stale one besides, from a dialler
// that has given up long ago. So only a part of the room is for those who have proved nothing: who comes when that is taken
// proves its address first (Retry), of which the door keeps nothing, and finds the rest of the room free of them.
type door struct {
	mu       sync.Mutex
	all      crowd
	sources  map[netip.Prefix]crowd
	punished map[netip.Prefix]*penalty
	ends     penalties // the same, by when they end
}

// A crowd is how many handshakes are under way, and how many of them with an address that is not proved.
type crowd struct{ inside, unproved int }

func (c crowd) plus(n int, proved bool) crowd {
	c.inside += n
	if !proved {
		c.unproved += n
	}
	return c
}

// The parts of the room: one in unprovedPart of it is for handshakes with an address that is not proved; a source may take
// one in sourcePart of what is free, so that those who are many can't fill it before the others.
const (
	unprovedPart = 4
	sourcePart   = 8
)

// holdFailed is how long, from its beginning, a handshake that has come to nothing counts as under way: one costs a
// listener a good part of a millisecond, and might be begun anew at once.
const holdFailed = time.Second

// A penalty is a time for which a source is refused.
type penalty struct {
	source netip.Prefix
	until  time.Time
	index  int // in the heap
}

// sourceOf is what one stranger has: an IPv4 address, or the /64 that a host of IPv6 has to itself.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 64
	if a.Is4() {
		bits = 32
	}
	source, _ := a.Prefix(bits) // no address has fewer bits
	return source
}

// asks tells whether who comes from a source must prove its address first.
func (d *door) asks(source netip.Prefix, l *Limits) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all.unproved >= max(1, l.Handshakes/unprovedPart) ||
		d.sources[source].unproved >= max(1, l.HandshakesPerSource/unprovedPart)
}

// enter counts a handshake, or tells which limit keeps it out.
func (d *door) enter(source netip.Prefix, proved bool, l *Limits) (limit string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	free := l.Handshakes - d.all.inside
	p := d.punished[source]
	switch {
	case p != nil && time.Now().Before(p.until):
		return limitPenalty
	case free <= 0:
		return limitHandshakes
	case d.sources[source].inside >= min(l.HandshakesPerSource, max(1, free/sourcePart)):
		return limitSourceHandshakes
	}
	if d.sources == nil {
		d.sources = make(map[netip.Prefix]crowd)
	}
	d.all = d.all.plus(1, proved)
	d.sources[source] = d.sources[source].plus(1, proved)
	return ""
}

func (d *door) leave(source netip.Prefix, proved bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = d.all.plus(-1, proved)
	d.sources[source] = d.sources[source].plus(-1, proved)
	if d.sources[source].inside == 0 {
		delete(d.sources, source)
	}
}

// punish has a source wait, longer if it waits already. Where too many do, the one that would end first is let off.
func (d *door) punish(source netip.Prefix, l *Limits) {
	if l.AuthPenalty <= 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for len(d.ends) > 0 && !now.Before(d.ends[0].until) {
		d.forgiveFirstLocked()
	}
	if p := d.punished[source]; p != nil {
		p.until = now.Add(min(p.until.Sub(now)+l.AuthPenalty, l.AuthPenaltyMax))
		heap.Fix(&d.ends, p.index)
		return
	}
	for len(d.ends) >= l.PenaltySources {
		d.forgiveFirstLocked()
	}
	if d.punished == nil {
		d.punished = make(map[netip.Prefix]*penalty)
	}
	p := &penalty{source: source, until: now.Add(min(l.AuthPenalty, l.AuthPenaltyMax))}
	d.punished[source] = p
	heap.Push(&d.ends, p)
}

func (d *door) forgiveFirstLocked() {
	delete(d.punished, d.ends[0].source)
	heap.Pop(&d.ends)
}

func (d *door) forgive() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.punished, d.ends = nil, nil
}

// penalties are a heap.
type penalties []*penalty

func (h penalties) Len() int           { return len(h) }
func (h penalties) Less(i, j int) bool { return h[i].until.Before(h[j].until) }

func (h penalties) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *penalties) Push(x any) {
	p, ok := x.(*penalty)
	if !ok {
		panic("internal error: no penalty")
	}
	p.index = len(*h)
	*h = append(*h, p)
}

func (h *penalties) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return p
}

// Forgive forgets which sources have failed to authenticate: those of a config before.
func (t *Links) Forgive() { t.door.forgive() }

// insideKey is the key of a connection's context under which its visit is.
type insideKey struct{}

// A visit is a handshake that is let in.
type visit struct {
	door   *door
	source netip.Prefix
	proved bool
	left   sync.Once
	ended  func() bool // has the end of the connection mean nothing any more
}

func (v *visit) leave() { v.left.Do(func() { v.door.leave(v.source, v.proved) }) }

var errKeptOut = errors.New("a limit is reached")

// enter is asked about each handshake, once it has proved its address where that is asked for. Who is kept out is told
// that the connection is refused, and no more.
func (l *Listener) enter(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	door := &l.links().door
	source, proved := sourceOf(addrPort(info.RemoteAddr).Addr()), info.AddrVerified
	if limit := door.enter(source, proved, l.current()); limit != "" {
		l.hits.hit(limit, slog.Any("remote", info.RemoteAddr))
		return nil, errKeptOut
	}
	began := time.Now()
	v := &visit{door: door, source: source, proved: proved}
	v.ended = context.AfterFunc(ctx, func() {
		if unauthenticated(context.Cause(ctx)) {
			door.punish(source, l.current())
		}
		time.AfterFunc(holdFailed-time.Since(began), v.leave) // at once if it has lasted longer
	})
	return context.WithValue(ctx, insideKey{}, v), nil
}

// entered ends the handshake of a connection, which then keeps as little of it as it can.
func entered(conn *quic.Conn) {
	if v, ok := conn.Context().Value(insideKey{}).(*visit); ok {
		v.ended()
		v.ended = nil
		v.leave()
	}
}

// unauthenticated tells whether a connection has ended as this end did not accept the other one's key. That key came in
// packets that only who has this end's answers can make: the address is not forged.
func unauthenticated(cause error) bool {
	const badCertificate = 42 // TLS alert, RFC 8446, section 6
	e, ok := errors.AsType[*quic.TransportError](cause)
	return ok && !e.Remote && e.ErrorCode.IsCryptoError() && e.ErrorCode&0xff == badCertificate
}

// limitEvery is the least time between two lines about one limit.
const limitEvery = 10 * time.Minute

// hits tells of limits that are reached.
type hits struct {
	log  *slog.Logger
	tell func(limit string) // nil: nobody

	mu   sync.Mutex
	told map[string]*rate.Sometimes
}

func (h *hits) hit(limit string, attrs ...any) {
	if h.tell != nil {
		h.tell(limit)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.told == nil {
		h.told = make(map[string]*rate.Sometimes)
	}
	if h.told[limit] == nil {
		h.told[limit] = &rate.Sometimes{Interval: limitEvery}
	}
	h.told[limit].Do(func() {
		h.log.Warn("a limit is reached (of such lines there is one in ten minutes at most)", append([]any{slog.String("limit", limit)}, attrs...)...)
	})
}
