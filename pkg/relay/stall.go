package relay

import (
	"log/slog"
	"sync"
	"time"

	"ptthqd/pkg/splice"
	"ptthqd/pkg/wire"
)

// All streams of a link share one connection window. Data that the relay has not read from a
// stream, because the next hop does not take it, stays charged to the window. Streams that stall
// can use it up; then every other stream of the link waits for them. The relay breaks this by
// resetting a stalled stream with `lost`: its session resumes from where it stood, and only time is
// lost.
//
// QUIC does not tell how much of a window is charged. There are two signs:
//
//   - The link's heartbeats are overdue, since they need the window too, and streams towards one
//     peer are stuck. That peer holds up all others: an honest peer reads what it is sent, and
//     never has more in flight than it reads. The relay resets all stuck streams towards it. If
//     that happens again between the same two peers, to the harm of a third, the two must wait
//     before they may connect, for longer each time. Without a third peer the cause may as well be
//     a busy processor, and to refuse connections would be the harm.
//   - Heartbeats come, and yet no stream of the link moves. The relay resets the stream that has
//     not moved for the longest time, after stallTime.
const (
	stallTime   = 30 * time.Second // in one Write, which takes one buffer at most
	overdueTime = 2 * time.Second  // of a heartbeat
	stuckTime   = sweepTime / 2    // in one Write, while heartbeats are overdue

	// firstWait is how long a client and a server must wait after the second time. The wait doubles
	// with each further time, up to lastWait. After stallMemory without one, it begins anew.
	firstWait   = 10 * time.Second
	lastWait    = 10 * time.Minute
	stallMemory = 30 * time.Minute
)

// stallers are the pairs of client and server that have lately held up others. The zero value is
// ready.
type stallers struct {
	mu sync.Mutex
	by map[pair]staller
}

type pair struct{ client, server string }

type staller struct {
	last time.Time
	wait time.Duration // after last
}

// note records that a pair has held up others. From the second time on the pair has to wait.
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

// left returns how long a pair still has to wait.
func (s *stallers) left(p pair) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.by[p]
	if !ok {
		return 0
	}
	return max(0, time.Until(was.last.Add(was.wait)))
}

// progress is what the sweeps of a link remember of a flow that reads from the link.
type progress struct {
	bytes uint64
	since time.Time // when a sweep first saw the flow in its present Write
}

// look reports whether the flow has moved since the last look, and returns for how long it has been
// in one Write.
func (p *progress) look(f *splice.Flow, now time.Time) (moved bool, stuck time.Duration) {
	bytes, writing := f.Bytes(), f.Writing()
	moved = bytes != p.bytes
	if moved || !writing {
		p.since = time.Time{}
	}
	p.bytes = bytes
	if !writing {
		return moved, 0
	}
	if p.since.IsZero() {
		p.since = now
	}
	return moved, now.Sub(p.since)
}

// resetStalled resets the streams of a link that hold up its other streams.
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
	} else if n.overdue++; n.overdue > 1 { // the first time, this process may have stood still
		r.resetStuck(n, stuckTo)
		return
	}
	if worst == nil || moving > 0 || streams < 2 {
		return
	}
	r.counts.stalled.Add(1)
	worst.reset(wire.CodeLost, "stalled while the other streams of "+n.id()+" wait")
}

// resetStuck resets the stuck streams of a link towards the peer with the most of them.
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
	const message = "a peer does not read what it is sent, " +
		"which holds up all connections of another: those between the two are reset"
	by.say(slog.LevelWarn, message, func() []any {
		return []any{slog.Int("connections", len(stuck)), slog.String("other", n.id())}
	})
	for _, c := range stuck {
		c.reset(wire.CodeLost, "not read by "+by.id()+" while all streams of "+n.id()+" wait")
	}
}

// bystanders reports whether the link has connections with another peer than the given one.
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
