package session

import (
	"time"

	"ptthqd/pkg/budget"
)

// A holding is a session's part in the share that its peer has of a budget.
type holding struct {
	*budget.Share
	refused time.Time // when the session got nothing last
}

// refusedLocked notes that the session goes on without what it wanted of a budget. While that
// lasts, the session counts once as a hit of the limit.
func (s *session) refusedLocked(h *holding) {
	now := time.Now()
	shortage, begins := h.Refuse(now)
	if now.Sub(h.refused) > budget.ShortFor && s.shared.limitHit != nil {
		s.shared.limitHit(shortage.Budget)
	}
	h.refused = now
	if begins && s.shared.short != nil {
		s.shared.short(shortage)
	}
}
