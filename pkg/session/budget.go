package session

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// A budget bounds the bytes that the sessions of a process hold above their floors: in all, and by
// remote peer. A peer may take bytes if at least as many are left for the others as it then holds.
// So one peer has half of the budget at most, the next one half of the rest. As bytes are given
// back and shared anew, n peers that want all they can have end with 1/(n+1) of the budget each.
type budget struct {
	name string // in the config's [limits]

	mu     sync.Mutex
	limit  int64
	used   int64
	shares map[string]*share // by remote peer, while the peer has sessions
}

// A share is what the sessions of one remote peer hold of a budget.
type share struct {
	budget *budget
	peer   string

	// The budget's lock guards these.
	used     int64
	sessions int
	refused  time.Time // when a take was refused last
}

// shortFor is how long a peer, or a session, counts as short of a budget after it was refused.
const shortFor = time.Minute

// A Shortage says that sessions with a peer have to do with their floors, since the peer's share of
// a memory budget is used up.
type Shortage struct {
	Budget string // its name in the config's [limits]
	Peer   string // the ID of the client or server at the other end
	Held   int64  // bytes that its sessions hold
	Free   int64  // bytes that nobody holds; a taking peer must leave as many as it then holds
}

// share returns the share of a peer for one more session, which releases it.
func (b *budget) share(peer string) *share {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.shares[peer]
	if h == nil {
		if b.shares == nil {
			b.shares = make(map[string]*share)
		}
		h = &share{budget: b, peer: peer}
		b.shares[peer] = h
	}
	h.sessions++
	return h
}

// release gives up a session's part in the share. The session has given back all it held.
func (h *share) release() {
	h.budget.mu.Lock()
	defer h.budget.mu.Unlock()
	if h.sessions--; h.sessions == 0 {
		delete(h.budget.shares, h.peer)
	}
}

// take reserves n bytes and reports whether it did; if not, nothing is reserved.
func (h *share) take(n int64) bool {
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > 0 && h.used+n > b.limit-b.used-n {
		return false
	}
	h.used += n
	b.used += n
	return true
}

// give returns n bytes.
func (h *share) give(n int64) {
	if n == 0 {
		return
	}
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	h.used -= n
	b.used -= n
}

// refuse notes that a session was refused. It returns the shortage if that is new: none of the
// peer's sessions was refused within shortFor.
func (h *share) refuse(now time.Time) (s Shortage, begins bool) {
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	begins = now.Sub(h.refused) > shortFor
	h.refused = now
	return h.shortageLocked(), begins
}

func (h *share) shortageLocked() Shortage {
	return Shortage{Budget: h.budget.name, Peer: h.peer, Held: h.used, Free: h.budget.limit - h.budget.used}
}

// shortages returns the shortages of the last shortFor, the peers that hold the most first.
func (b *budget) shortages(now time.Time) (all []Shortage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.shares {
		if now.Sub(h.refused) <= shortFor {
			all = append(all, h.shortageLocked())
		}
	}
	slices.SortFunc(all, func(x, y Shortage) int {
		return cmp.Or(cmp.Compare(y.Held, x.Held), cmp.Compare(x.Peer, y.Peer))
	})
	return all
}

// setLimit changes the budget. What is held above a lower one stays until it is given back.
func (b *budget) setLimit(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = bytes
}

func (b *budget) state() (used, limit int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.limit
}

// A holding is a session's part in the share that its peer has of a budget.
type holding struct {
	*share
	refused time.Time // when the session got nothing last
}

// refusedLocked notes that the session goes on without what it wanted of a budget. While that
// lasts, the session counts once as a hit of the limit.
func (s *session) refusedLocked(h *holding) {
	now := time.Now()
	if now.Sub(h.refused) > shortFor && s.host.limitHit != nil {
		s.host.limitHit(h.budget.name)
	}
	h.refused = now
	if shortage, begins := h.refuse(now); begins && s.host.short != nil {
		s.host.short(shortage)
	}
}
