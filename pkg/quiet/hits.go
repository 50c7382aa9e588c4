package quiet

import (
	"maps"
	"sync"
)

// Hits counts how often each limit has kept something out or made it wait. The key is the limit's
// name in the config.
type Hits struct {
	mu     sync.Mutex
	counts map[string]uint64
}

// Hit counts one hit of a limit.
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
