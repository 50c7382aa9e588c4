package session

import (
	"sync"
	"sync/atomic"
	"time"
)

// A budget bounds the bytes that all sessions of the process hold above their
// floors. The zero value has nothing to give.
type budget struct {
	limit atomic.Int64
	used  atomic.Int64
}

// take reserves n bytes, or nothing.
func (b *budget) take(n int64) bool {
	if n <= 0 {
		return true
	}
	for { // not Add and take back: whoever looks meanwhile would see more than there is
		used := b.used.Load()
		if used+n > b.limit.Load() {
			return false
		}
		if b.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// A quota bounds what is on its way over one link to one remote peer, so that a
// peer that doesn't read its link can't use up the flow-control window of this
// one, and stall the others with it. What has arrived isn't on its way any
// more, even if it can't be delivered and so isn't acknowledged: one session
// whose TCP side doesn't read must not stall those beside it.
//
// That window is small at first, and grows as the other end of the link sees
// more being taken from it. So does the quota: it is what arrives in a quarter
// of a second, or in two round trips, between firstQuota and its most. Who takes
// nothing never gets more than the first.
//
// Since it knows all sessions that share the way, it also knows when something
// last came over it.
type quota struct {
	most  int64
	made  time.Time
	heard atomic.Int64 // when something last arrived for any of the sessions; nanoseconds since made

	mu      sync.Mutex
	limit   int64
	used    int64
	since   time.Time // when it was last measured how fast things arrive
	arrived int64     // bytes since then
	waiting map[*session]struct{}
	users   int // guarded by quotas.mu
}

const (
	// firstQuota is a quarter of the window that a link has at first.
	firstQuota = 256 << 10
	// quotaEpoch is how long, at least, what arrives may take to make the quota
	// grow if it is as much as that.
	quotaEpoch = 250 * time.Millisecond
)

// hear notes that something has arrived.
func (q *quota) hear(now time.Time) {
	at := int64(now.Sub(q.made))
	if at-q.heard.Load() > int64(sweepInterval) { // the processors need not fight for it
		q.heard.Store(at)
	}
}

// silent is how long nothing has arrived.
func (q *quota) silent(now time.Time) time.Duration {
	return now.Sub(q.made) - time.Duration(q.heard.Load())
}

// take reserves n bytes for s if anything is left, overdrawing by one piece at
// most. If nothing is, s is kicked as soon as there is.
func (q *quota) take(n int64, s *session) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.used >= q.limit && !q.growLocked(max(quotaEpoch, 2*s.minRTT)) {
		if q.waiting == nil {
			q.waiting = make(map[*session]struct{})
		}
		q.waiting[s] = struct{}{}
		return false
	}
	q.used += n
	return true
}

// growLocked is for when the quota is used up: it makes more of it if as much
// has arrived in no more than an epoch.
func (q *quota) growLocked(epoch time.Duration) bool {
	now := time.Now()
	took := now.Sub(q.since)
	if took <= epoch && q.arrived < q.limit {
		return false // it may still
	}
	grows := took <= epoch && q.limit < q.most
	q.since, q.arrived = now, 0
	if grows {
		q.limit = min(4*q.limit, q.most) // as fast as windows
	}
	return grows
}

// overdraw reserves n bytes, few enough not to matter.
func (q *quota) overdraw(n int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used += n
}

// give returns n bytes that have arrived.
func (q *quota) give(n int64) {
	if n != 0 {
		q.free(n, n)
	}
}

// drop returns n bytes that were on their way when it ended.
func (q *quota) drop(n int64) {
	if n != 0 {
		q.free(n, 0)
	}
}

// free returns n bytes. The sessions that waited are kicked from a goroutine of
// their own, since the caller holds the lock of another session.
func (q *quota) free(n, arrived int64) {
	q.mu.Lock()
	q.used -= n
	q.arrived += arrived
	var waiting map[*session]struct{}
	if q.used < q.limit && len(q.waiting) > 0 {
		waiting, q.waiting = q.waiting, nil
	}
	q.mu.Unlock()
	if waiting != nil {
		go kickAll(waiting)
	}
}

// pressed tells whether sessions wait for the quota.
func (q *quota) pressed() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting) > 0
}

func (q *quota) forget(s *session) {
	q.mu.Lock()
	delete(q.waiting, s)
	q.mu.Unlock()
}

func kickAll(waiting map[*session]struct{}) {
	for s := range waiting {
		s.kick()
	}
}

// quotas finds the quota of a link and a remote peer.
type quotas struct {
	most int64
	mu   sync.Mutex
	by   map[quotaKey]*quota
}

type quotaKey struct {
	link any
	peer string
}

func (qs *quotas) acquire(link any, peer string) *quota {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	key := quotaKey{link, peer}
	q := qs.by[key]
	if q == nil {
		if qs.by == nil {
			qs.by = make(map[quotaKey]*quota)
		}
		q = &quota{most: qs.most, limit: min(qs.most, firstQuota), made: time.Now()}
		qs.by[key] = q
	}
	q.users++
	return q
}

func (qs *quotas) release(link any, peer string, q *quota) {
	qs.mu.Lock()
	defer qs.mu.Unlock()
	if q.users--; q.users == 0 {
		delete(qs.by, quotaKey{link, peer})
	}
}
