package session

import (
	"sync"
	"time"
)

const (
	// firstTurns is how many sessions resume over a line at once, at least: what costs 3 ms of a processor in all, as on a host
	// that has a fifth of one for client, relay and server, is answered within quickTurn.
	firstTurns = 64
	// maxTurns bounds that, for long paths: 5,000 sessions are back after 10 round trips.
	maxTurns = 1024
	// quickTurn is how long an answer to a resume takes where there may be more of them.
	quickTurn = 250 * time.Millisecond
)

// turns are the turns to resume over a line. A resume costs more than the bytes that its session waits for, and thousands that
// all begin at once wait for each other until none of them is answered in time. So there are so many at once, and one more for each
// answer that comes quickly, as many more a round trip as there are already.
type turns struct {
	mu      sync.Mutex
	most    int
	taken   int
	waiting [2]fifo[*turn] // those that were in use of late go first
}

// A turn is what a session waits for.
type turn struct {
	ready chan struct{} // closed when it has come
	gone  bool          // nobody waits for it any more
}

// take takes a turn, or returns one to wait for.
func (t *turns) take(urgent bool) *turn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taken < t.most {
		t.taken++
		return nil
	}
	w := &turn{ready: make(chan struct{})}
	queue := 1
	if urgent {
		queue = 0
	}
	t.waiting[queue].push(w)
	return w
}

// leave gives up the wait for a turn. It reports false if the turn has come.
func (t *turns) leave(w *turn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-w.ready:
		return false
	default:
		w.gone = true
		return true
	}
}

// give gives a turn back.
func (t *turns) give(quick bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
	if quick {
		t.most = min(t.most+1, maxTurns)
	}
	for q := range t.waiting {
		queue := &t.waiting[q]
		for t.taken < t.most && !queue.empty() {
			w := *queue.first()
			queue.drop(1)
			if !w.gone {
				t.taken++
				close(w.ready)
			}
		}
	}
}
