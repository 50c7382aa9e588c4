package link

import (
	"maps"
	"sync"

	"ptthqd/pkg/carrier"
)

// Totals are the figures of a Dialer since it was made, over all its dials and links. No figure
// falls.
type Totals struct {
	Failed map[Reason]uint64 // dials, by reason
	Ended  map[Reason]uint64 // links, by reason

	PacketsSent, PacketsLost uint64 // of links
	BytesSent, BytesReceived uint64 // of links, with all of QUIC's overhead
	ParitySent, Restored     uint64 // of links; see Stats
	Dropped, SendFailures    uint64 // packets, of the sockets of dials and links; see carrier.Stats
}

// Totals returns the figures so far. It may be called from any goroutine.
func (d *Dialer) Totals() Totals { return d.tally.sum() }

// A tally sums up the figures of past and present sockets and links.
type tally struct {
	mu   sync.Mutex
	past Totals
	// present sockets; the link is nil until the relay has confirmed it
	open map[*carrier.Socket]*Link
}

// opened notes a new socket.
func (t *tally) opened(s *carrier.Socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open == nil {
		t.open = make(map[*carrier.Socket]*Link)
	}
	t.open[s] = nil
}

// linked notes the link over a socket.
func (t *tally) linked(l *Link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open[l.socket] = l
}

// closed notes that a socket is closed, and the link over it is over.
func (t *tally) closed(s *carrier.Socket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.open[s]
	t.past.add(s, l)
	delete(t.open, s)
	if l == nil {
		return
	}
	if t.past.Ended == nil {
		t.past.Ended = make(map[Reason]uint64)
	}
	t.past.Ended[l.Reason()]++
}

func (t *tally) failed(why Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.past.Failed == nil {
		t.past.Failed = make(map[Reason]uint64)
	}
	t.past.Failed[why]++
}

func (t *tally) sum() Totals {
	t.mu.Lock()
	defer t.mu.Unlock()
	sum := t.past
	sum.Failed, sum.Ended = maps.Clone(sum.Failed), maps.Clone(sum.Ended)
	for s, l := range t.open {
		sum.add(s, l)
	}
	return sum
}

func (t *Totals) add(s *carrier.Socket, l *Link) {
	seen := s.Stats()
	t.Dropped += seen.Dropped
	t.SendFailures += seen.SendFailures
	if l == nil {
		return
	}
	stats := l.Stats()
	t.PacketsSent += stats.PacketsSent
	t.PacketsLost += stats.PacketsLost
	t.ParitySent += stats.ParitySent
	t.Restored += stats.Restored
	t.BytesSent += stats.BytesSent
	t.BytesReceived += stats.BytesReceived
}
