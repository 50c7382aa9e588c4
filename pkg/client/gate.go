package client

import "sync"

// A gate bounds how many are inside at once. The bound may change at any time.
type gate struct {
	mu     sync.Mutex
	most   int
	inside int
	room   chan struct{} // closed when there may be room again; nil if nobody waits
}

// tryEnter enters if there is room. Otherwise it returns a channel that is
// closed when there may be some.
func (g *gate) tryEnter() (bool, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside < g.most {
		g.inside++
		return true, nil
	}
	if g.room == nil {
		g.room = make(chan struct{})
	}
	return false, g.room
}

// leave makes room for another one.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.wakeLocked()
}

// widen sets how many may be inside. Those who are stay.
func (g *gate) widen(most int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.most = most
	g.wakeLocked()
}

func (g *gate) wakeLocked() {
	if g.room != nil && g.inside < g.most {
		close(g.room)
		g.room = nil
	}
}

// count is how many are inside.
func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside
}
