package session

import (
	"sync"

	"ptthqd/pkg/wire"
)

const (
	// headroom is kept free in front of each piece of data, so that its frame
	// header goes right there and both leave in one write.
	headroom = wire.MaxFrameHeader
	// smallBuffer suits what people type and short requests, in bytes.
	smallBuffer = 4 << 10
	// largeBuffer suits bulk: 64 KiB of data. Measured best between 64 and
	// 128 KiB; the larger costs more memory for each waiting connection.
	largeBuffer = 64<<10 + headroom
)

// A buffer is pooled memory that belongs to one session, which counts its
// references under its lock and gives it back with the last of them.
type buffer struct {
	b    []byte
	used int // bytes from the beginning that are taken
	refs int
}

var buffers = [2]sync.Pool{
	{New: func() any { return &buffer{b: make([]byte, smallBuffer)} }},
	{New: func() any { return &buffer{b: make([]byte, largeBuffer)} }},
}

// takeBuffer returns an empty buffer with one reference and room for n bytes
// at least, if n is not above largeBuffer.
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

// all is what is in the queue, the oldest first, until it changes.
func (q *fifo[T]) all() []T    { return q.items[q.gone:] }
func (q *fifo[T]) empty() bool { return len(q.items) == q.gone }
func (q *fifo[T]) push(item T) { q.items = append(q.items, item) }

// first and last are those of a queue that isn't empty.
func (q *fifo[T]) first() *T { return &q.items[q.gone] }
func (q *fifo[T]) last() *T  { return &q.items[len(q.items)-1] }

// drop takes the n oldest out.
func (q *fifo[T]) drop(n int) {
	clear(q.items[q.gone : q.gone+n])
	q.gone += n
	switch left := len(q.items) - q.gone; {
	case left == 0 && cap(q.items) > 16:
		*q = fifo[T]{}
	case left <= q.gone: // so an item is moved once, on average
		copy(q.items, q.items[q.gone:])
		clear(q.items[q.gone:])
		q.items, q.gone = q.items[:left], 0
	}
}
