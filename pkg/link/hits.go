package link

import (
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limitEvery is the least time between two log lines about one limit.
const limitEvery = 10 * time.Minute

// hits report limits that are reached, to the log and to tell.
type hits struct {
	log  *slog.Logger
	tell func(limit string) // may be nil

	mu   sync.Mutex
	told map[string]*rate.Sometimes // by limit
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
		h.log.Warn("a limit is reached (of such lines there is one in ten minutes at most)",
			append([]any{slog.String("limit", limit)}, attrs...)...)
	})
}

// The limits that a Listener or Dialer reports itself, by their names in the config. The door has
// others.
const (
	limitRetry   = "retry_rate"
	limitLinks   = "links"
	limitTips    = "pending_tips"
	limitAllTips = "pending_tips_total"
)
