package relay

import (
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
// QUIC doesn't tell how much of a window is charged. But if it is used up, then no
// stream of the link moves; and if none moves for another reason, then resetting
// one that hasn't for so long does little harm.
const stallTime = 30 * time.Second // in one Write, which takes a buffer at most

// progress is what the sweeps of a link remember of a flow that reads from it.
type progress struct {
	bytes uint64
	since time.Time // when the flow was first seen in the Write that it is still in
}

// look tells whether the flow has moved since the last look, and for how long it
// has been in one Write.
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

// resetStalled resets the stream of a link that has stalled the longest, if there is one
// and all others wait.
func (r *Relay) resetStalled(n *neighbour, now time.Time) {
	var worst *connection
	var longest time.Duration
	streams, moving := 0, 0
	r.table.each(n, func(c *connection) {
		flow, p := &c.join.Forth, &c.forth
		if c.from != n {
			flow, p = &c.join.Back, &c.back
		}
		moved, stuck := p.look(flow, now)
		streams++
		if moved {
			moving++
		}
		if stuck >= stallTime && stuck > longest {
			worst, longest = c, stuck
		}
	})
	if worst == nil || moving > 0 || streams < 2 {
		return
	}
	r.counts.stalled.Add(1)
	worst.reset(wire.CodeLost, "stalled while the other streams of "+n.id+" wait")
}
