package session

import (
	"sync"
	"time"
)

const (
	// firstTurns is how many sessions resume over a line at once at first, which is the least. So
	// many are answered within quickTurn if a resume takes 3 ms in all, as it does on a host that
	// has a fifth of a processor for client, relay and server.
	firstTurns = 64
	// maxTurns bounds the turns of a long path. With it 5,000 sessions are back after 10 round
	// trips.
	maxTurns = 1024
	// quickTurn is how long the answer to a resume may take for the number of turns to grow.
	quickTurn = 250 * time.Millisecond
)

// turns are the turns to resume over a line. A resume costs more than the bytes that its session
// waits for, and thousands that begin at once delay each other until none is answered in time. So
// there are firstTurns at once, and one more for each answer that comes quickly: their number
// doubles each round trip.
type turns struct {
	mu      sync.Mutex
	most    int
	taken   int
	waiting [2]fifo[*turn] // the first queue, of urgent turns, goes first
}

// A turn is one that a session waits for.
type turn struct {
	ready chan struct{} // closed when the turn has come
	gone  bool          // the session waits for it no more
}

// take takes a turn and returns nil, or returns a turn to wait for. Urgent ones go first.
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

// give gives a turn back. quick says that its resume was answered quickly.
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
