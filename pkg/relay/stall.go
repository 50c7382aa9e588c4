package relay

import (
	"log/slog"
	"sync"
	"time"

	"ptthqd/pkg/splice"
	"ptthqd/pkg/wire"
)

// All streams of a link share one connection window. What the relay has not read of
// a stream, because the next hop doesn't take it, stays charged to it; streams that
// stall can use it up, and then every other stream of that link waits for them. The
// relay breaks this by resetting one that stalls, with `lost`: its session is
// resumed from where it stood, and nothing is lost but time.
//
// QUIC doesn't tell how much of a window is charged. But the heartbeats of the link need it, too: where they stay away, and
// streams towards one peer are stuck, it is that peer who holds up all others, since who is honest reads what it is sent, and
// has no more on its way than it reads. All its stuck streams go. They may soon be back, so two peers between whom that happens again and
// again, to the harm of a third, must wait, for longer each time, before they may connect. (Where there is no third, it is as
// likely that all of them want for a processor, and to refuse connections would be the harm.)
//
// Where heartbeats come, and yet no stream of the link moves, then resetting one that hasn't for very long does little harm.
const (
	stallTime   = 30 * time.Second // in one Write, which takes a buffer at most
	overdueTime = 2 * time.Second  // of a heartbeat
	stuckTime   = sweepTime / 2    // in one Write, while heartbeats are overdue

	// firstWait is how long the second time has a client and a server wait; it doubles up to lastWait with each further time, until
	// there has been none for stallMemory.
	firstWait   = 10 * time.Second
	lastWait    = 10 * time.Minute
	stallMemory = 30 * time.Minute
)

// stallers are the clients and servers that have held up others of late. The zero value is ready.
type stallers struct {
	mu sync.Mutex
	by map[pair]staller
}

type pair struct{ client, server string }

type staller struct {
	last time.Time
	wait time.Duration // from then on
}

// note has a client and a server wait, unless it is the first time.
func (s *stallers) note(p pair, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, was := range s.by {
		if now.Sub(was.last) > stallMemory {
			delete(s.by, p)
		}
	}
	was, again := s.by[p]
	wait := time.Duration(0)
	if again {
		wait = min(max(2*was.wait, firstWait), lastWait)
	}
	if s.by == nil {
		s.by = make(map[pair]staller)
	}
	s.by[p] = staller{now, wait}
}

// left is how long a client and a server have to wait yet.
func (s *stallers) left(p pair) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.by[p]
	if !ok {
		return 0
	}
	return max(0, time.Until(was.last.Add(was.wait)))
}

// progress is what the sweeps of a link remember of a flow that reads from it.
type progress struct {
	bytes uint64
	since time.Time // when the flow was first seen in the Write that it is still in
	still int32     // looks since it has moved, up to restAfter
}

// restAfter is how many looks at a flow that does not move it takes until it is told to rest: 30 s.
const restAfter = int32(30 * time.Second / sweepTime)

// look tells whether the flow has moved since the last look, and for how long it
// has been in one Write.
func (p *progress) look(f *splice.Flow, now time.Time) (moved bool, stuck time.Duration) {
	bytes, writing := f.Bytes(), f.Writing()
	moved = bytes != p.bytes
	if moved || !writing {
		p.since = time.Time{}
	}
	if p.bytes = bytes; moved {
		p.still = 0
	} else if p.still < restAfter {
		if p.still++; p.still == restAfter {
			f.Rest()
		}
	}
	if !writing {
		return moved, 0
	}
	if p.since.IsZero() {
		p.since = now
	}
	return moved, now.Sub(p.since)
}

// resetStalled resets the streams of a link that hold up the others.
func (r *Relay) resetStalled(n *neighbour, now time.Time) {
	var worst *connection
	var longest time.Duration
	streams, moving := 0, 0
	var stuckTo map[*neighbour][]*connection
	r.table.each(n, func(c *connection) {
		flow, p, to := &c.join.Forth, &c.forth, c.to
		if c.from != n {
			flow, p, to = &c.join.Back, &c.back, c.from
		}
		moved, stuck := p.look(flow, now)
		streams++
		if moved {
			moving++
		}
		if stuck >= stallTime && stuck > longest {
			worst, longest = c, stuck
		}
		if stuck >= stuckTime {
			if stuckTo == nil {
				stuckTo = make(map[*neighbour][]*connection)
			}
			stuckTo[to] = append(stuckTo[to], c)
		}
	})
	if n.link.Overdue() < overdueTime {
		n.overdue = 0
	} else if n.overdue++; n.overdue > 1 { // the first time it may be this process that stood still
		r.resetStuck(n, stuckTo)
		return
	}
	if worst == nil || moving > 0 || streams < 2 {
		return
	}
	r.counts.stalled.Add(1)
	worst.reset(wire.CodeLost, "stalled while the other streams of "+n.id()+" wait")
}

// resetStuck resets the stuck streams of a link towards the peer that has the most of them.
func (r *Relay) resetStuck(n *neighbour, stuckTo map[*neighbour][]*connection) {
	var by *neighbour
	for to, stuck := range stuckTo {
		if by == nil || len(stuck) > len(stuckTo[by]) {
			by = to
		}
	}
	if by == nil {
		return
	}
	stuck := stuckTo[by]
	if r.bystanders(n, by) {
		r.stallers.note(pair{stuck[0].client, stuck[0].server}, time.Now())
	}
	r.counts.stalled.Add(uint64(len(stuck)))
	by.say(slog.LevelWarn, "a peer does not read what it is sent, which holds up all connections of another: those between the two are reset",
		func() []any { return []any{slog.Int("connections", len(stuck)), slog.String("other", n.id())} })
	for _, c := range stuck {
		c.reset(wire.CodeLost, "not read by "+by.id()+" while all streams of "+n.id()+" wait")
	}
}

// bystanders tells whether the link has connections with another peer than that one.
func (r *Relay) bystanders(n, than *neighbour) (found bool) {
	r.table.each(n, func(c *connection) {
		to := c.to
		if c.from != n {
			to = c.from
		}
		found = found || to != than && to != nil
	})
	return found
}
