package session

import (
	"sync"

	"ptthqd/pkg/wire"
)

const (
	// headroom is how many bytes are free in front of each piece of data. The frame header goes
	// there, so that both leave in one write.
	headroom = wire.MaxFrameHeader
	// smallBuffer suits what people type, and short requests, in bytes.
	smallBuffer = 4 << 10
	// largeBuffer suits bulk: 64 KiB of data. Between 64 and 128 KiB was measured best; more costs
	// more memory for each waiting connection.
	largeBuffer = 64<<10 + headroom
)

// A buffer is pooled memory that belongs to one session. References are counted under the session's
// lock; the last one gives the buffer back.
type buffer struct {
	b    []byte
	used int // bytes from the beginning that are taken
	refs int
}

var buffers = [2]sync.Pool{
	{New: func() any { return &buffer{b: make([]byte, smallBuffer)} }},
	{New: func() any { return &buffer{b: make([]byte, largeBuffer)} }},
}

// takeBuffer returns an empty buffer with one reference, and room for at least min(n, largeBuffer)
// bytes.
func takeBuffer(n int) *buffer {
	class := 0
	if n > smallBuffer {
		class = 1
	}
	b := buffers[class].Get().(*buffer)
	b.used, b.refs = 0, 1
	return b
}

// unref drops one reference.
func (b *buffer) unref() {
	if b.refs--; b.refs > 0 {
		return
	}
	if len(b.b) == smallBuffer {
		buffers[0].Put(b)
	} else {
		buffers[1].Put(b)
	}
}

// A fifo is a queue in one slice. An empty one holds little memory or none.
type fifo[T any] struct {
	items []T
	gone  int // of items, from the beginning
}

// all returns what is in the queue, the oldest first. It is valid until the queue changes.
func (q *fifo[T]) all() []T    { return q.items[q.gone:] }
func (q *fifo[T]) empty() bool { return len(q.items) == q.gone }
func (q *fifo[T]) push(item T) { q.items = append(q.items, item) }

// first and last return the oldest and the newest item. The queue must not be empty.
func (q *fifo[T]) first() *T { return &q.items[q.gone] }
func (q *fifo[T]) last() *T  { return &q.items[len(q.items)-1] }

// drop takes the n oldest items out.
func (q *fifo[T]) drop(n int) {
	clear(q.items[q.gone : q.gone+n])
	q.gone += n
	switch left := len(q.items) - q.gone; {
	case left == 0 && cap(q.items) > 16:
		*q = fifo[T]{}
	case left <= q.gone: // so that an item is moved once, on average
		copy(q.items, q.items[q.gone:])
		clear(q.items[q.gone:])
		q.items, q.gone = q.items[:left], 0
	}
}
