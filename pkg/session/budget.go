package session

import (
	"time"

	"ptthqd/pkg/budget"
)

// A holding is a session's part in the share that its peer has of a budget.
type holding struct {
	*budget.Share
	budget  *budget.Budget
	refused time.Time // when the session got nothing last
}

// hold returns a session's part in a budget, as one with this peer.
func hold(b *budget.Budget, peer string) holding {
	return holding{Share: b.Share(peer), budget: b}
}

// refusedLocked notes that the session goes on without what it wanted of a budget. While that
// lasts, the session counts once as a hit of the limit.
func (s *session) refusedLocked(h *holding) {
	now := time.Now()
	if now.Sub(h.refused) > budget.ShortFor && s.shared.limitHit != nil {
		s.shared.limitHit(h.budget.Name())
	}
	h.refused = now
	if shortage, begins := h.Refuse(now); begins && s.shared.short != nil {
		s.shared.short(shortage)
	}
}
