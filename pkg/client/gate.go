package client

import "sync"

// A gate bounds how many connections are inside at once. The bound may change at any time. The zero
// value lets nothing in.
type gate struct {
	mu     sync.Mutex
	limit  int
	inside int
	room   chan struct{} // closed when there may be room again; nil if no caller waits
}

// tryEnter enters if there is room. Otherwise it returns a channel that is closed when there may be
// room; the caller then tries again.
func (g *gate) tryEnter() (bool, <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.inside < g.limit {
		g.inside++
		return true, nil
	}
	if g.room == nil {
		g.room = make(chan struct{})
	}
	return false, g.room
}

// leave makes room for another connection.
func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.wakeLocked()
}

// setLimit changes the bound. Connections that are inside stay, even beyond a lower bound.
func (g *gate) setLimit(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
	g.wakeLocked()
}

func (g *gate) wakeLocked() {
	if g.room != nil && g.inside < g.limit {
		close(g.room)
		g.room = nil
	}
}

// count returns how many connections are inside.
func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.inside
}
