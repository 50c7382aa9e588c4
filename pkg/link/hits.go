package link

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limitEvery is the least time between two lines about one limit.
const limitEvery = 10 * time.Minute

// hits tells of limits that are reached.
type hits struct {
	log  *slog.Logger
	tell func(limit string) // nil: nobody

	mu   sync.Mutex
	told map[string]*rate.Sometimes
}

func (h *hits) hit(limit string, attrs ...any) {
	if h.tell != nil {
		h.tell(limit)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.told == nil {
		h.told = make(map[string]*rate.Sometimes)
	}
	if h.told[limit] == nil {
		h.told[limit] = &rate.Sometimes{Interval: limitEvery}
	}
	h.told[limit].Do(func() {
		h.log.Warn("a limit is reached (of such lines there is one in ten minutes at most)", append([]any{slog.String("limit", limit)}, attrs...)...)
	})
}

// The limits that a Listener or Dialer tells of, as the config names them; those of a door are others.
const (
	limitRetry   = "retry_rate"
	limitLinks   = "links"
	limitTips    = "pending_tips"
	limitAllTips = "pending_tips_total"
)
