package window

import (
	"sync"
	"time"
)

// Paths remember how short the round trip over a relay to a peer can be. What a session measures
// while it is busy includes the queues that it makes; the next session would make its window for
// those, and the queues longer. The zero value is ready. Paths are safe for concurrent use.
type Paths struct {
	mu sync.Mutex
	by map[Path]known
}

// A Path leads over a relay to a peer.
type Path struct{ Relay, Peer string }

type known struct {
	rtt   time.Duration // the shortest since then
	since time.Time
	link  any  // over which it was; another link may go another way
	full  bool // a session has filled the path over this link: QUIC's own start on it is over
}

const (
	// memory is how long a path keeps its shortest round trip: it may have become longer without
	// its links' knowing.
	memory = time.Minute
	// maxPaths bounds what is remembered. Beyond it all paths are learned again.
	maxPaths = 4096
)

// Note notes a round trip of a path over a link.
func (ps *Paths) Note(path Path, link any, rtt time.Duration, now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p, ok := ps.by[path]
	fresh := p.link != link || now.Sub(p.since) >= memory
	if !fresh && rtt >= p.rtt {
		return
	}
	if !ok && len(ps.by) >= maxPaths {
		clear(ps.by)
	}
	if ps.by == nil {
		ps.by = make(map[Path]known)
	}
	p.full = p.full && p.link == link
	if fresh {
		p.link, p.since = link, now
	}
	p.rtt = rtt
	ps.by[path] = p
}

// Shortest returns the shortest round trip of a path over a link, 0 where it is not known.
func (ps *Paths) Shortest(path Path, link any, now time.Time) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.by[path]
	if p.link != link || now.Sub(p.since) >= memory {
		return 0
	}
	return p.rtt
}

// Fill notes that a session has filled a path that is known.
func (ps *Paths) Fill(path Path, link any) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.by[path]; p.link == link {
		p.full = true
		ps.by[path] = p
	}
}

// Filled reports whether a session has filled a path over a link.
func (ps *Paths) Filled(path Path, link any) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.by[path]
	return p.full && p.link == link
}
