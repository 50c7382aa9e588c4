// Package budget bounds memory that many users share: in all, and fairly by remote peer.
//
//	b := budget.New("session_memory", 256<<20)
//	h := b.Share("laptop") // for one session of this peer; released at its end
//	if h.Take(n) {         // else go on with the floor, and tell: h.Refuse(time.Now())
//		defer h.Give(n)
//	}
//
// A user that belongs to no peer calls Budget.Take and Budget.Give: it may have all that is left.
// All methods may be called from any goroutine.
package budget

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// A Budget is a bound of bytes. A peer may take bytes if at least as many are left for the others
// as it then holds. So one peer has half of the budget at most, the next one half of the rest. As
// bytes are given back and shared anew, n peers that want all they can have end with 1/(n+1) of the
// budget each.
type Budget struct {
	name string // in the config's [limits]

	mu     sync.Mutex
	limit  int64
	used   int64
	shares map[string]*Share // by remote peer, while the peer has sessions
}

// New returns a budget of so many bytes. Shortages give its name.
func New(name string, bytes int64) *Budget { return &Budget{name: name, limit: bytes} }

// Take reserves n bytes if they are left, and reports whether it did.
func (b *Budget) Take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.limit-b.used {
		return false
	}
	b.used += n
	return true
}

// Give returns n bytes that Budget.Take has reserved.
func (b *Budget) Give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}

// A Share is what the sessions of one remote peer hold of a budget.
type Share struct {
	budget *Budget
	peer   string

	// The budget's lock guards these.
	used     int64
	sessions int
	refused  time.Time // when a take was refused last
}

// ShortFor is how long a peer, or a session, counts as short of a budget after it was refused.
const ShortFor = time.Minute

// A Shortage says that sessions with a peer have to do with their floors, since the peer's share of
// a memory budget is used up.
type Shortage struct {
	Budget string // its name in the config's [limits]
	Peer   string // the ID of the client or server at the other end
	Held   int64  // bytes that its sessions hold
	Free   int64  // bytes that nobody holds; a taking peer must leave as many as it then holds
}

// Share returns the share of a peer for one more session, which releases it.
func (b *Budget) Share(peer string) *Share {
	b.mu.Lock()
	defer b.mu.Unlock()
	h := b.shares[peer]
	if h == nil {
		if b.shares == nil {
			b.shares = make(map[string]*Share)
		}
		h = &Share{budget: b, peer: peer}
		b.shares[peer] = h
	}
	h.sessions++
	return h
}

// Release gives up a session's part in the share. The session has given back all it held.
func (h *Share) Release() {
	h.budget.mu.Lock()
	defer h.budget.mu.Unlock()
	if h.sessions--; h.sessions == 0 {
		delete(h.budget.shares, h.peer)
	}
}

// Take reserves n bytes and reports whether it did; if not, nothing is reserved.
func (h *Share) Take(n int64) bool {
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

// Give returns n bytes that Share.Take has reserved.
func (h *Share) Give(n int64) {
	if n == 0 {
		return
	}
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	h.used -= n
	b.used -= n
}

// Refuse notes that a session was refused, and returns the shortage of its peer. begins tells that
// none of the peer's sessions was refused within ShortFor.
func (h *Share) Refuse(now time.Time) (s Shortage, begins bool) {
	b := h.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	begins = now.Sub(h.refused) > ShortFor
	h.refused = now
	return h.shortageLocked(), begins
}

func (h *Share) shortageLocked() Shortage {
	b := h.budget
	return Shortage{Budget: b.name, Peer: h.peer, Held: h.used, Free: b.limit - b.used}
}

// Shortages returns the shortages of the last ShortFor, the peers that hold the most first.
func (b *Budget) Shortages(now time.Time) (all []Shortage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, h := range b.shares {
		if now.Sub(h.refused) <= ShortFor {
			all = append(all, h.shortageLocked())
		}
	}
	slices.SortFunc(all, func(x, y Shortage) int {
		return cmp.Or(cmp.Compare(y.Held, x.Held), cmp.Compare(x.Peer, y.Peer))
	})
	return all
}

// SetLimit changes the budget. What is held above a lower one stays until it is given back.
func (b *Budget) SetLimit(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit = bytes
}

// State returns how many bytes are taken, and the bound.
func (b *Budget) State() (used, limit int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used, b.limit
}
