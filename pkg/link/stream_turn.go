package link

import (
	"container/list"
	"sync"
	"time"
)

// QUIC alternates between streams with each packet. With hundreds of large writes, each stream's
// data arrives one packet at a time. Every node then wakes a goroutine, and makes a system call,
// for each packet. So large writes take turns, and a stream's data arrives together. With 1,000
// uploads at once the three processes take 58 to 68 % of the processor time that they take without.
// Small writes are sent at once, beside the turns.
const (
	// turnLeast is the size in bytes of the smallest write that takes a turn. Requests, most
	// answers, and what a relay reads of a stream packet by packet are smaller. 8 and 24 KiB
	// measure alike, 4 KiB saves less.
	turnLeast = 16 << 10
	// turnsMost is the number of turns at a time. With 1,000 streams 2, 4, 8 and 16 measure alike.
	// With 8, few streams ever wait.
	turnsMost = 8
	// turnTime is how long a turn lasts while others wait, and half of how long it can last. So a
	// stream whose peer does not read delays the others no longer. On a slow link all streams have
	// a turn at once.
	turnTime = 20 * time.Millisecond
)

// turns are the turns of one link. The zero value is ready.
type turns struct {
	mu      sync.Mutex
	epoch   uint64    // counts the expiries of turns
	fresh   int       // turns taken in this epoch
	stale   int       // turns taken in the last epoch; older ones have expired
	waiting list.List // of *Stream; not empty only while all turns are taken
	timer   *time.Timer
	runs    bool // the timer runs: streams wait
}

// A turn is a stream's part in turns, guarded by the lock of turns.
type turn struct {
	epoch   uint64        // in which the turn was taken
	place   *list.Element // in the queue; nil if the stream does not wait
	granted chan struct{} // receives a value when the wait is over; nil before the first wait
	exempt  bool          // the stream does not wait: its writes fail or have a deadline
}

// take waits for the stream's turn, or until the stream is exempt. It reports whether it has
// waited. The caller calls give.
func (q *turns) take(s *Stream) (waited bool) {
	q.mu.Lock()
	if s.turn.exempt || q.fresh+q.stale < turnsMost {
		q.beginLocked(s)
		q.mu.Unlock()
		return false
	}
	if s.turn.granted == nil {
		s.turn.granted = make(chan struct{}, 1)
	}
	switch {
	case q.timer == nil:
		q.timer = time.AfterFunc(turnTime, q.over)
	case !q.runs:
		q.timer.Reset(turnTime)
	}
	q.runs = true
	s.turn.place = q.waiting.PushBack(s)
	q.mu.Unlock()
	<-s.turn.granted
	return true
}

func (q *turns) beginLocked(s *Stream) {
	s.turn.epoch = q.epoch
	q.fresh++
}

// give ends the stream's turn if it has not expired.
func (q *turns) give(s *Stream) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch s.turn.epoch {
	case q.epoch:
		q.fresh--
	case q.epoch - 1:
		q.stale--
	}
	q.nextLocked()
}

// exempt sets whether the stream waits for turns. It also ends a wait.
func (q *turns) exempt(s *Stream, on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.turn.exempt = on
	if on && s.turn.place != nil {
		q.wakeLocked(s)
	}
}

// wakeLocked begins the turn of a waiting stream.
func (q *turns) wakeLocked(s *Stream) {
	q.waiting.Remove(s.turn.place)
	s.turn.place = nil
	q.beginLocked(s)
	s.turn.granted <- struct{}{}
}

// nextLocked gives free turns to waiting streams.
func (q *turns) nextLocked() {
	for q.waiting.Len() > 0 && q.fresh+q.stale < turnsMost {
		q.wakeLocked(q.waiting.Front().Value.(*Stream))
	}
}

// over is the timer's function. It expires the turns that began before its last call.
func (q *turns) over() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.epoch++
	q.stale, q.fresh = q.fresh, 0
	q.nextLocked()
	if q.runs = q.waiting.Len() > 0; q.runs {
		q.timer.Reset(turnTime)
	}
}
