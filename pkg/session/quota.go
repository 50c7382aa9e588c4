package session

import (
	"container/list"
	"sync"
	"time"

	"ptthqd/pkg/session/internal/window"
	"ptthqd/pkg/wire"
)

// A quota bounds what is in flight over one link to one remote peer. Without it, a peer that
// doesn't read its link could use up the flow-control window of this end's link, and stall all
// other peers. What has arrived isn't in flight any more, even if it can't be delivered and so
// isn't acknowledged: one session whose TCP side doesn't read must not stall those beside it.
//
// A link's flow-control window is small at first, and grows as the other end takes data from it.
// The quota grows likewise: it is what arrives within an epoch, between firstQuota and most. The
// epoch is 250 ms or two round trips, whichever is longer, and on a short path 20 ms. A peer that
// takes nothing never gets more than firstQuota.
type quota struct {
	most int64

	mu      sync.Mutex
	limit   int64
	used    int64
	since   time.Time // when the present measurement of arrivals began
	arrived int64     // bytes since then
	waiting list.List // of *attachment, in order; if there are any, nothing is left
	rested  list.List // like waiting, of rested sessions; the two queues take turns
	others  bool      // waiting has the next turn
	askedAt time.Time // the last sweep in which sessions were to ask
	asked   int       // how many sessions were to ask in that sweep
	users   int       // guarded by quotas.mu
}

// A claim is a session's part in its quota, under the quota's lock.
type claim struct {
	want    int64         // bytes that the session waits for
	epoch   time.Duration // the quota grows if as much as it arrives within this time
	served  time.Time     // when the session last had any of the quota
	burst   int64         // bytes that it has had since it last rested
	place   *list.Element // in queue; nil if the session doesn't wait
	queue   *list.List    // waiting or rested
	granted int64         // bytes reserved while the session waited, and not taken yet
}

const (
	// firstQuota is a quarter of the flow-control window that a link has at first, in bytes.
	firstQuota = 256 << 10
	// quotaEpoch is the least epoch: if as much as the whole quota arrives within it, the quota
	// grows.
	quotaEpoch = 250 * time.Millisecond
	// shortQuotaEpoch is the epoch on a short path: two round trips of window.LongRTT, 20 ms. More
	// in flight would only be a queue at the relay, in buffers that have left the processor's
	// cache. 1,000 uploads take 4 % less processor time with 10 ms than with 250 ms; 3 ms brought
	// no more.
	shortQuotaEpoch = 2 * window.LongRTT
	// quotaRest is how long a session must have taken nothing from the quota to count as rested.
	// Its next 64 KiB are queued apart from continuous uploads: a session with much to send asks
	// for more as soon as its last bytes are acknowledged.
	quotaRest = 100 * time.Millisecond
	// quotaAskedFor is how many bytes of a scarce quota a session must hold to ask at once whether
	// what it has sent has arrived.
	quotaAskedFor = 1 << 10
	// quotaAsks is how many sessions ask in one sweep whether what they have sent has arrived.
	quotaAsks = 16
)

// take reserves n bytes for a session if anything is left, overdrawing by one piece at most, and
// reports whether it did. If nothing is left, the session waits for its turn, and is kicked when
// the turn has come. A session with at most 4 KiB in flight, these n bytes included, doesn't wait
// behind the bulk of others: such sessions together may overdraw the quota by a quarter.
func (q *quota) take(n int64, at *attachment) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if at.claim.granted > 0 {
		q.used += n - at.claim.granted
		at.claim.granted = 0
		return true
	}
	now := time.Now()
	if at.claim.place == nil && now.Sub(at.claim.served) >= quotaRest {
		at.claim.burst = 0
	}
	at.claim.epoch = max(quotaEpoch, 2*at.minRTT)
	if 0 < at.minRTT && at.minRTT < window.LongRTT {
		at.claim.epoch = shortQuotaEpoch
	}
	if q.used <= 0 {
		if now.Sub(q.since) > at.claim.epoch {
			q.since, q.arrived = now, 0 // nothing is in flight: what was before says nothing
		}
	}
	brief := at.claim.place == nil && at.session.inFlightLocked()+uint64(n) <= smallBuffer && 4*q.used < 5*q.limit
	if q.used >= q.limit && !brief && !q.growLocked(at) {
		at.claim.want = n
		if at.claim.place == nil {
			at.claim.queue = &q.waiting
			if at.claim.burst < wire.InitialWindow {
				at.claim.queue = &q.rested
			}
			at.claim.place = at.claim.queue.PushBack(at)
		}
		return false
	}
	q.leaveLocked(at)
	q.used += n
	at.claim.burst += n
	at.claim.served = now
	q.serveLocked()
	return true
}

// growLocked makes the quota larger if as much as all of it has arrived within an epoch, and
// reports whether it did. It is called when the quota is used up and a session waits.
func (q *quota) growLocked(at *attachment) bool {
	now := time.Now()
	took, epoch := now.Sub(q.since), at.claim.epoch
	if took <= epoch && q.arrived < q.limit {
		return false // the epoch isn't over: as much may still arrive
	}
	grows := took <= epoch && q.limit < q.most
	q.since, q.arrived = now, 0
	if grows {
		q.limit = min(4*q.limit, q.most) // as fast as windows
	}
	return grows
}

// overdraw reserves n bytes, whatever is left. n must be small.
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

// drop returns n bytes that were in flight when the stream was lost.
func (q *quota) drop(n int64) {
	if n != 0 {
		q.free(n, 0)
	}
}

// free returns n bytes, of which so many have arrived.
func (q *quota) free(n, arrived int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used -= n
	q.arrived += arrived
	q.serveLocked()
}

// serveLocked grants what is left to waiting sessions, in order, and kicks only these: if it kicked
// a thousand, all but a few would find nothing. A goroutine of its own kicks them, since the caller
// holds the lock of a session.
func (q *quota) serveLocked() {
	var served []*attachment
	var now time.Time
	for {
		at := q.nextLocked()
		if at == nil || q.used >= q.limit && !q.growLocked(at) {
			break
		}
		if served == nil {
			now = time.Now()
		}
		q.others = at.claim.queue == &q.rested
		q.leaveLocked(at)
		at.claim.granted, at.claim.served = at.claim.want, now
		at.claim.burst += at.claim.want
		q.used += at.claim.want
		served = append(served, at)
	}
	if served != nil {
		go kickAll(served)
	}
}

// nextLocked returns the session to serve next, or nil. Rested sessions and the others take turns.
// So a frame of a screen or an answer of a database doesn't wait behind a hundred uploads, and many
// of these can't keep the uploads waiting.
func (q *quota) nextLocked() *attachment {
	first, second := &q.rested, &q.waiting
	if q.others {
		first, second = second, first
	}
	for _, queue := range []*list.List{first, second} {
		if e := queue.Front(); e != nil {
			return e.Value.(*attachment)
		}
	}
	return nil
}

func (q *quota) leaveLocked(at *attachment) {
	if at.claim.place != nil {
		at.claim.queue.Remove(at.claim.place)
		at.claim.place = nil
	}
}

// scarce reports whether others may soon wait for what a session holds: more than a quarter of the
// quota is taken.
func (q *quota) scarce() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return 4*q.used > q.limit
}

// asks reports whether one more session that the sweep visits is to ask whether what it has sent
// has arrived, since others wait for the quota. It is true for quotaAsks sessions in a sweep:
// asking for a thousand sessions that are well, ten times a second, would bring nothing.
func (q *quota) asks(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.nextLocked() == nil {
		return false
	}
	if !now.Equal(q.askedAt) { // another sweep
		q.askedAt, q.asked = now, 0
	}
	q.asked++
	return q.asked <= quotaAsks
}

// forget gives up the claim of a session that has nothing more to send over this link.
func (q *quota) forget(at *attachment) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leaveLocked(at)
	q.used -= at.claim.granted
	at.claim.granted = 0
	q.serveLocked()
}

func kickAll(served []*attachment) {
	for _, at := range served {
		at.session.kick()
	}
}

// quotas finds the quota of a link and a remote peer. A quota exists while a session uses it.
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
		q = &quota{most: qs.most, limit: min(qs.most, firstQuota)}
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
