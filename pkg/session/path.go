package session

import (
	"sync"
	"time"

	"ptthqd/pkg/wire"
)

// paths remember how short the round trip over a relay to a peer can be. What a
// session measures while it is busy has the queues in it that it makes, and
// the next session would make its window for those, and them longer.
type paths struct {
	mu sync.Mutex
	by map[pathKey]path
}

type pathKey struct{ relay, peer string }

type path struct {
	rtt   time.Duration // the shortest since then
	since time.Time
	link  any  // over which it was; another may take another way
	full  bool // a session has filled it over this link: QUIC's own start on it is over
}

const (
	// pathMemory is how long a path keeps its shortest round trip: it may have
	// become longer, without its links' knowing.
	pathMemory = time.Minute
	// maxPaths bounds what is remembered. Beyond it all is learnt again.
	maxPaths = 4096
)

func (ps *paths) note(key pathKey, link any, rtt time.Duration, now time.Time) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p, known := ps.by[key]
	fresh := p.link != link || now.Sub(p.since) >= pathMemory
	if !fresh && rtt >= p.rtt {
		return
	}
	if !known && len(ps.by) >= maxPaths {
		clear(ps.by)
	}
	if ps.by == nil {
		ps.by = make(map[pathKey]path)
	}
	p.full = p.full && p.link == link
	if fresh {
		p.link, p.since = link, now
	}
	p.rtt = rtt
	ps.by[key] = p
}

// shortest is 0 where nothing is known.
func (ps *paths) shortest(key pathKey, link any, now time.Time) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.by[key]
	if p.link != link || now.Sub(p.since) >= pathMemory {
		return 0
	}
	return p.rtt
}

// fill notes that a session has filled a path that is known.
func (ps *paths) fill(key pathKey, link any) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.by[key]; p.link == link {
		p.full = true
		ps.by[key] = p
	}
}

// filled tells whether a session has filled it before.
func (ps *paths) filled(key pathKey, link any) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	p := ps.by[key]
	return p.full && p.link == link
}

func (s *session) pathLocked() pathKey { return pathKey{s.info.Relay, s.peerName()} }

const (
	// minGrowthRTT is the shortest round trip that a window is made for: less
	// leaves the processors idle between them. Measured on two cores, 4 uploads
	// at once, whole processes, medians of 5: with 1.2 and 1.5 ms they move 145 and 159
	// MiB/s, and a message beside them takes 3.6 and 4.2 ms; one upload alone
	// 182 and 170 MiB/s.
	minGrowthRTT = 1200 * time.Microsecond
	// maxGrowthRTT is the longest: a pong that comes later is as well one that was kept back, to have a large window for little
	// data. Two hops over geostationary satellites take 1.2 s; their windows grow more slowly.
	maxGrowthRTT = time.Second
	// slowWindow is how long a window of the floor lasts, at least, so that it can be acknowledged nearly as a whole: the sender
	// waits for that then, but what it waits for is a small part of the time between. Where it lasts for less there
	// are few who send, and waiting would leave the processors idle.
	slowWindow = 50 * time.Millisecond
	// minGrowth is the least by which a window grows when the budget is short.
	minGrowth = 16 << 10
	// minStandRTT is the shortest round trip of a path of which it says
	// something that nothing comes for a quarter of it; on shorter ones the
	// processors had something else to do, and large steps aren't needed.
	minStandRTT = 10 * time.Millisecond
	// lossyWindow is what a window is not trimmed below where packets are lost.
	// While one of both links repairs, there is something to send on the other.
	// It leaves room in firstQuota for others.
	lossyWindow = 3 * wire.InitialWindow
	// minEpoch is how long a rate is measured at least.
	minEpoch = 8 * time.Millisecond
	// standstill is how long a TCP side takes nothing until it counts as a slow
	// reader. It has to keep up for as long, maxProbation at most, before its
	// window grows: a burst of 1.3 MiB takes 20 round trips at the floor.
	standstill   = 100 * time.Millisecond
	maxProbation = 5 * time.Second
)

// growthRTTLocked is the round trip that the window is made for, 0 if none is
// known.
func (s *session) growthRTTLocked(now time.Time) time.Duration {
	rtt := s.at.minRTT
	if shortest := s.host.paths.shortest(s.pathLocked(), s.at.route.Link, now); shortest > 0 && (rtt == 0 || shortest < rtt) {
		rtt = shortest
	}
	if rtt == 0 {
		return 0
	}
	return min(max(rtt, minGrowthRTT), maxGrowthRTT)
}

// noteRTTLocked takes the pong for a measurement of the path. It is none if data has come before it which the peer could not send
// before it had read the ping: pongs go ahead of data, so this one was kept back.
func (at *attachment) noteRTTLocked(now time.Time) {
	if at.pingLimit == 0 {
		return
	}
	rtt := max(now.Sub(at.pingSent), time.Microsecond)
	if at.minRTT == 0 || rtt < at.minRTT {
		at.minRTT = rtt
	}
	s := at.session
	s.host.paths.note(s.pathLocked(), at.route.Link, rtt, now)
}

// learnPathLocked asks for a ping if nobody knows the path yet: before there is
// much on it.
func (s *session) learnPathLocked(now time.Time) {
	if s.host.paths.shortest(s.pathLocked(), s.at.route.Link, now) == 0 {
		s.probeLocked(now)
	}
}
