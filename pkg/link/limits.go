package link

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/door"
)

// Limits bound what a neighbour, or a stranger, can make grow. The zero value of each field stands for its default, if
// it has one.
type Limits struct {
	// Streams is how many streams a peer may have open at once on one link. Default 16,384.
	Streams int64
	// StreamWindow and ConnectionWindow are how far QUIC's flow-control windows may grow, in bytes, for a stream and for a
	// link. Default 16 and 32 MiB: what 200 ms at 80 and 160 MiB/s need.
	StreamWindow, ConnectionWindow uint64
	// Windows is what the windows of all links of a process may grow by together. Nil: without bound.
	Windows *Budget
	// PendingTips is how many streams of one link may be waiting for their tip, or to be accepted. Default 256.
	PendingTips int
	// TipTimeout is how long a stream's tip may take to arrive whole. Default 5 s.
	TipTimeout time.Duration
	// IdleTimeout is the silence after which QUIC ends a link that nothing was expected on. Default 30 s.
	IdleTimeout time.Duration
	// HandshakesPerSecond is the rate of handshakes above which a listener has those who begin one prove their address
	// first (Retry), which costs them a round trip. Twice as many may come at once. Default 200. So do those that come while a
	// quarter of Handshakes, or of HandshakesPerSource, is under way with addresses that are not proved.
	HandshakesPerSecond int
	// LinksPerPeer is how many connections with one key may wait to become its link. Default 8.
	LinksPerPeer int

	// These are a listener's, and hold for all that share its Links.

	// Links is how many peers may be connected. Default 16,384.
	Links int
	// PendingTipsTotal is how many streams of all links may be waiting for their tip. Default 8,192.
	PendingTipsTotal int
	// Handshakes and HandshakesPerSource are how many handshakes may be under way, in all and from one IPv4 address or IPv6
	// /64; from that no more than an eighth of those in all that are left, either. One that fails counts for a second at least.
	// Default 512 and 32. A source where a peer was within a day has one more for each peer, as many again for those that have
	// failed, and up to a half of those that are left.
	Handshakes, HandshakesPerSource int
	// HandshakeTimeout is how long a handshake may take. Default 10 s.
	HandshakeTimeout time.Duration
	// AuthPenalty is what a handshake with a key that is not admitted adds to its source's penalty, up to AuthPenaltyMax, whose
	// default is 10 minutes. While a penalty lasts that has exceeded 15 s, the source has an eighth of HandshakesPerSource, unless a
	// peer was there within a day. Zero disables penalties.
	AuthPenalty, AuthPenaltyMax time.Duration
	// PenaltySources is how many sources with a penalty are remembered. Default 65,536.
	PenaltySources int
	// PenaltyExempt lists the networks that get no penalty.
	PenaltyExempt []netip.Prefix
}

// The windows begin small: they take memory where a peer sends and is not read, and grow with what the path carries.
const (
	initialStreamWindow     = 512 << 10
	initialConnectionWindow = 1 << 20
)

func (l Limits) withDefaults() *Limits {
	orDefault(&l.Streams, 16384)
	orDefault(&l.StreamWindow, 16<<20)
	orDefault(&l.ConnectionWindow, 32<<20)
	orDefault(&l.PendingTips, 256)
	orDefault(&l.TipTimeout, 5*time.Second)
	orDefault(&l.IdleTimeout, 30*time.Second)
	orDefault(&l.HandshakesPerSecond, 200)
	orDefault(&l.LinksPerPeer, 8)
	orDefault(&l.Links, 16384)
	orDefault(&l.PendingTipsTotal, 8192)
	orDefault(&l.Handshakes, 512)
	orDefault(&l.HandshakesPerSource, 32)
	orDefault(&l.HandshakeTimeout, 10*time.Second)
	orDefault(&l.AuthPenaltyMax, 10*time.Minute)
	orDefault(&l.PenaltySources, 65536)
	return &l
}

// door returns those limits that are a door's.
func (l *Limits) door() *door.Limits {
	return &door.Limits{
		Handshakes: l.Handshakes, HandshakesPerSource: l.HandshakesPerSource,
		AuthPenalty: l.AuthPenalty, AuthPenaltyMax: l.AuthPenaltyMax, PenaltySources: l.PenaltySources,
		Exempt: l.PenaltyExempt,
	}
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// quicConfig is the QUIC config of links; their windows grow by what g gives.
func (l *Limits) quicConfig(g *grants) *quic.Config {
	return &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		MaxIdleTimeout:                 l.IdleTimeout,
		InitialStreamReceiveWindow:     min(initialStreamWindow, l.StreamWindow),
		MaxStreamReceiveWindow:         l.StreamWindow,
		InitialConnectionReceiveWindow: min(initialConnectionWindow, l.ConnectionWindow),
		MaxConnectionReceiveWindow:     l.ConnectionWindow,
		AllowConnectionWindowIncrease:  g.allow,
		// What every path that QUIC can go must carry. Path MTU discovery raises it within a few round trips; quic-go's default
		// of 1,280 finds no way through a tunnel with IPv6's least MTU.
		InitialPacketSize:     leastPacket,
		MaxIncomingStreams:    l.Streams,
		MaxIncomingUniStreams: -1,
		// Heartbeats keep a link alive. They wait for the flow-control window, where a link is full of what nobody reads;
		// QUIC's own pings don't.
		KeepAlivePeriod: l.IdleTimeout / 2,
	}
}

// listenConfig is the same for a listener.
func (l *Limits) listenConfig(g *grants) *quic.Config {
	config := l.quicConfig(g)
	config.HandshakeIdleTimeout = l.HandshakeTimeout / 2 // a handshake may take twice as long in all
	return config
}

// Budget is what flow-control windows may grow by, of all links that share it.
type Budget struct {
	limit, used atomic.Int64
}

// NewBudget makes a budget of so many bytes.
func NewBudget(bytes int64) *Budget {
	b := &Budget{}
	b.limit.Store(bytes)
	return b
}

// SetLimit changes the budget. Windows that have grown stay.
func (b *Budget) SetLimit(bytes int64) { b.limit.Store(bytes) }

// Limit is how many bytes it has.
func (b *Budget) Limit() int64 { return b.limit.Load() }

// Used is how many bytes of the budget are promised at the moment.
func (b *Budget) Used() int64 { return b.used.Load() }

func (b *Budget) take(n int64) bool {
	if b.used.Add(n) <= b.limit.Load() {
		return true
	}
	b.used.Add(-n)
	return false
}

// grants are the shares that links have of a budget.
type grants struct {
	budget *Budget
	mu     sync.Mutex
	taken  map[*quic.Conn]int64
}

func newGrants(b *Budget) *grants { return &grants{budget: b, taken: map[*quic.Conn]int64{}} }

// allow is quic.Config.AllowConnectionWindowIncrease.
func (g *grants) allow(conn *quic.Conn, delta uint64) bool {
	if g.budget == nil {
		return true
	}
	if !g.budget.take(int64(delta)) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken[conn] += int64(delta)
	return true
}

// release gives a connection's share back.
func (g *grants) release(conn *quic.Conn) {
	if g.budget == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.budget.used.Add(-g.taken[conn])
	delete(g.taken, conn)
}

// releaseAll gives all shares back.
func (g *grants) releaseAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.taken {
		g.budget.used.Add(-n)
	}
	clear(g.taken)
}
