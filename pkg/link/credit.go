package link

import (
	"sync"

	"github.com/quic-go/quic-go"
)

// A stream that has ended makes room for another one, which QUIC tells the peer in a frame of its own for each stream, and
// so mostly in a packet of its own. Where there is room for many more, they are told of many at once: streams are given
// back when creditBatch of them wait behind them, by when QUIC is done with them as a rule, and at each tick of the pulse.
const creditBatch = 32

// credits are the accepted streams of a link that have ended and aren't given back yet.
type credits struct {
	mu    sync.Mutex
	ended []*quic.Stream // the oldest first
}

// The halves of a stream, as bits.
const (
	readingEnded = 1 << iota
	writingEnded
	bothEnded = readingEnded | writingEnded
)

// end notes that this end is done with a half of the stream, whatever is still on its way.
func (s *Stream) end(half uint32) {
	if s.accepted && s.ended.Load()&half == 0 && s.ended.Or(half) == bothEnded&^half {
		s.link.credits.add(s.stream, int(s.link.limits.Streams/64))
	}
}

// add takes a stream that has ended; most is how many may wait twice over.
func (c *credits) add(s *quic.Stream, most int) {
	batch := min(creditBatch, most)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = append(c.ended, s)
	if len(c.ended) >= 2*batch {
		c.releaseLocked(max(batch, 1))
	}
}

// releaseLocked gives the n oldest back.
func (c *credits) releaseLocked(n int) {
	for _, s := range c.ended[:n] {
		s.ReleaseStreamCredit()
	}
	left := copy(c.ended, c.ended[n:])
	clear(c.ended[left:])
	c.ended = c.ended[:left]
}

// release gives all back.
func (c *credits) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.releaseLocked(len(c.ended))
	c.ended = nil
}
