package link

import (
	"sync"
	"time"
)

// QUIC takes turns between streams with every packet. Where hundreds have much to send, what arrives of each is one packet at a
// time, and every node wakes a goroutine for each of them, and makes a system call at the end. So large writes take turns too,
// and what arrives of a stream comes together: measured with 1,000 uploads at once, that is three fifths of the processor time.
// Small writes go at once, beside those whose turn it is.
const (
	// turnLeast is the least that waits for a turn, in bytes. A request and most answers are less, and so is what a relay has
	// read of a stream that came packet by packet.
	turnLeast = 16 << 10
	// turnsMost is how many have theirs at a time. Measured: 2, 4, 8 and 16 are alike at 1,000 streams, and 4 cost eight of them
	// a tenth.
	turnsMost = 8
	// turnTime is how long a turn lasts, and twice that at most, if others wait: a stream whose peer does not read holds up nobody
	// for longer, and on a slow link all have a turn at once, as if there were none.
	turnTime = 20 * time.Millisecond
)

// turns are those of one link. The zero value is ready.
type turns struct {
	mu      sync.Mutex
	epoch   uint64 // counts the times that turns have ended by themselves
	fresh   int    // turns that were taken in this epoch
	stale   int    // and in the one before; older ones are over
	waiting []*Stream
	gone    int // of waiting, from the beginning
	timer   *time.Timer
	runs    bool // the timer
}

// A turn is a stream's part in it, under the lock of turns.
type turn struct {
	epoch uint64        // in which it was taken
	waits bool          // it is in the queue
	hurry bool          // it waits for nobody: its writes are to fail, or to have failed by a deadline
	came  chan struct{} // told when it may go on; made when it has to wait for the first time
}

// take waits until it is the stream's turn, or until it is in a hurry. Its caller gives it back.
func (q *turns) take(s *Stream) {
	q.mu.Lock()
	if s.turn.hurry || q.fresh+q.stale < turnsMost && q.gone == len(q.waiting) {
		q.beginLocked(s)
		q.mu.Unlock()
		return
	}
	if s.turn.came == nil {
		s.turn.came = make(chan struct{}, 1)
	}
	s.turn.waits = true
	q.waiting = append(q.waiting, s)
	if !q.runs {
		q.runs = true
		if q.timer == nil {
			q.timer = time.AfterFunc(turnTime, q.over)
		} else {
			q.timer.Reset(turnTime)
		}
	}
	q.mu.Unlock()
	<-s.turn.came
}

func (q *turns) beginLocked(s *Stream) {
	s.turn.epoch = q.epoch
	q.fresh++
}

// give ends the stream's turn, if it isn't over by itself.
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

// hurry says whether the stream waits for its turn, from now on and if it does now.
func (q *turns) hurry(s *Stream, on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s.turn.hurry = on
	if on && s.turn.waits {
		q.beginLocked(s)
		q.wakeLocked(s) // it stays in the queue, and is passed over
	}
}

func (q *turns) wakeLocked(s *Stream) {
	s.turn.waits = false
	s.turn.came <- struct{}{}
}

// nextLocked gives the turns that are free to those who wait.
func (q *turns) nextLocked() {
	for q.gone < len(q.waiting) && q.fresh+q.stale < turnsMost {
		s := q.waiting[q.gone]
		q.waiting[q.gone] = nil
		q.gone++
		if s.turn.waits {
			q.beginLocked(s)
			q.wakeLocked(s)
		}
	}
	switch {
	case q.gone == len(q.waiting):
		q.waiting, q.gone = q.waiting[:0], 0
		if cap(q.waiting) > 64 {
			q.waiting = nil
		}
	case 2*q.gone > len(q.waiting): // so each is moved once, on average
		n := copy(q.waiting, q.waiting[q.gone:])
		clear(q.waiting[n:])
		q.waiting, q.gone = q.waiting[:n], 0
	}
}

// over is called by the timer: turns that began before its last call end.
func (q *turns) over() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.epoch++
	q.stale, q.fresh = q.fresh, 0
	q.nextLocked()
	if q.runs = q.gone < len(q.waiting); q.runs {
		q.timer.Reset(turnTime)
	}
}
