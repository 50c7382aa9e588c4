package link

import (
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/budget"
	"ptthqd/pkg/door"
)

// Limits bound what a peer or a stranger can make grow. Zero means the default of a field, if it
// has one.
type Limits struct {
	// Streams is how many streams a peer may have open at once on one link. Default 16,384.
	Streams int64
	// StreamWindow and ConnectionWindow are how far QUIC's flow-control windows of a stream and of
	// a link may grow, in bytes. Default 16 and 32 MiB: 200 ms × 80 and 160 MiB/s.
	StreamWindow, ConnectionWindow uint64
	// Windows is what the flow-control windows of all links may grow by together. Nil: no bound.
	Windows *budget.Budget
	// PendingTips is how many streams of one link may wait for their tip or for Accept. Default
	// 256.
	PendingTips int
	// TipTimeout is how long a stream's whole tip may take. Default 5 s.
	TipTimeout time.Duration
	// IdleTimeout is the silence after which QUIC ends a link on which nothing is expected. Default
	// 30 s.
	IdleTimeout time.Duration
	// HandshakesPerSecond is the rate of handshakes above which a listener asks for proof of the
	// address (Retry), which costs one round trip. A burst may be twice as many. Default 200. Proof
	// is also needed while a quarter of Handshakes, or of HandshakesPerSource, is under way with
	// unproved addresses.
	HandshakesPerSecond int
	// LinksPerPeer is how many connections with one key may wait to become its link. Default 8.
	LinksPerPeer int

	// The following are a listener's. They hold for all listeners that share its Links.
	//
	// Links is how many peers may be connected. Default 16,384.
	Links int
	// PendingTipsTotal is how many streams of all links may wait for their tip. Default 8,192.
	PendingTipsTotal int
	// Handshakes and HandshakesPerSource are how many handshakes may be under way: in all, and from
	// one source (an IPv4 address or IPv6 /64). Default 512 and 32. A source takes no more than an
	// eighth of the free places. A failed handshake counts for at least one second. A source where
	// a peer was within a day has one more place for each peer, as many again for failed
	// handshakes, and takes up to half of the free places.
	Handshakes, HandshakesPerSource int
	// HandshakeTimeout is how long a handshake may take. Default 10 s.
	HandshakeTimeout time.Duration
	// AuthPenalty is what a handshake with an unknown key adds to its source's penalty.
	// AuthPenaltyMax is the longest penalty, by default 10 minutes. A penalty that has exceeded 15
	// s leaves the source an eighth of HandshakesPerSource until it ends, unless a peer was there
	// within a day. Zero disables penalties.
	AuthPenalty, AuthPenaltyMax time.Duration
	// PenaltySources is how many sources with a penalty are remembered. Default 65,536.
	PenaltySources int
	// PenaltyExempt lists the networks without a penalty.
	PenaltyExempt []netip.Prefix
}

// Flow-control windows begin small, because a window takes memory where a peer sends and nobody
// reads. They grow with what the path carries.
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

// door returns the limits of the door.
func (l *Limits) door() *door.Limits {
	return &door.Limits{
		Handshakes: l.Handshakes, HandshakesPerSource: l.HandshakesPerSource,
		AuthPenalty: l.AuthPenalty, AuthPenaltyMax: l.AuthPenaltyMax,
		PenaltySources: l.PenaltySources,
		Exempt:         l.PenaltyExempt,
	}
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// quicConfig returns the QUIC config of links whose windows grow by what g allows.
func (l *Limits) quicConfig(g *grants) *quic.Config {
	return &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		MaxIdleTimeout:                 l.IdleTimeout,
		InitialStreamReceiveWindow:     min(initialStreamWindow, l.StreamWindow),
		MaxStreamReceiveWindow:         l.StreamWindow,
		InitialConnectionReceiveWindow: min(initialConnectionWindow, l.ConnectionWindow),
		MaxConnectionReceiveWindow:     l.ConnectionWindow,
		AllowConnectionWindowIncrease:  g.allow,
		// Every path must carry this size, and path MTU discovery raises it within a few round
		// trips. quic-go's default of 1,280 does not pass a tunnel with IPv6's least MTU.
		InitialPacketSize:     leastPacket,
		MaxIncomingStreams:    l.Streams,
		MaxIncomingUniStreams: -1,
		// Heartbeats keep a link alive, unless they wait for a full flow-control window. QUIC's own
		// pings do not wait.
		KeepAlivePeriod: l.IdleTimeout / 2,
	}
}

// listenConfig returns the QUIC config of a listener.
func (l *Limits) listenConfig(g *grants) *quic.Config {
	config := l.quicConfig(g)
	config.HandshakeIdleTimeout = l.HandshakeTimeout / 2 // of each half of the handshake
	return config
}

// grants are the bytes that connections have taken from a budget.
type grants struct {
	budget *budget.Budget
	mu     sync.Mutex
	taken  map[*quic.Conn]int64
}

func newGrants(b *budget.Budget) *grants { return &grants{budget: b, taken: map[*quic.Conn]int64{}} }

// allow implements quic.Config.AllowConnectionWindowIncrease.
func (g *grants) allow(conn *quic.Conn, delta uint64) bool {
	if g.budget == nil {
		return true
	}
	if !g.budget.Take(int64(delta)) {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.taken[conn] += int64(delta)
	return true
}

// release gives a connection's bytes back.
func (g *grants) release(conn *quic.Conn) {
	if g.budget == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.budget.Give(g.taken[conn])
	delete(g.taken, conn)
}

// releaseAll gives all bytes back.
func (g *grants) releaseAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range g.taken {
		g.budget.Give(n)
	}
	clear(g.taken)
}
