package account

import (
	"maps"
	"sync"
)

// Hits counts what each limit has kept out or made wait, by the limit's name in the config. The zero value is ready. Its
// methods may be called from any goroutine.
type Hits struct {
	mu     sync.Mutex
	counts map[string]uint64
}

// Hit counts one.
func (h *Hits) Hit(limit string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.counts == nil {
		h.counts = make(map[string]uint64)
	}
	h.counts[limit]++
}

// Counts returns a copy of the counters.
func (h *Hits) Counts() map[string]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}
