package session

import (
	"container/list"
	"sync"
	"time"

	"ptthqd/pkg/session/internal/window"
	"ptthqd/pkg/wire"
)

// A quota bounds what is on its way over one link to one remote peer, so that a
// peer that doesn't read its link can't use up the flow-control window of this
// one, and stall the others with it. What has arrived isn't on its way any
// more, even if it can't be delivered and so isn't acknowledged: one session
// whose TCP side doesn't read must not stall those beside it.
//
// That window is small at first, and grows as the other end of the link sees
// more being taken from it. So does the quota: it is what arrives in a quarter
// of a second, or in two round trips, or on a short path in 20 ms, between firstQuota and its most. Who takes
// nothing never gets more than the first.
type quota struct {
	most int64

	mu      sync.Mutex
	limit   int64
	used    int64
	since   time.Time // when it was last measured how fast things arrive
	arrived int64     // bytes since then
	waiting list.List // of *attachment, in order; if there are any, nothing is left
	rested  list.List // the same, of those that have had little of it since they rested: they and the others take turns
	others  bool      // it is the others' turn
	askedAt time.Time // the last sweep in which sessions were to ask
	asked   int       // how many of them it was
	users   int       // guarded by quotas.mu
}

// A claim is a session's part in its quota, under the quota's lock.
type claim struct {
	want    int64
	epoch   time.Duration // how long what arrives may take to make the quota grow
	served  time.Time     // when it last had any
	burst   int64         // how much it has had since it last rested
	place   *list.Element // among those who wait; nil: it isn't there
	queue   *list.List    // where that is
	granted int64         // reserved for it while it waited, and not taken yet
}

const (
	// firstQuota is a quarter of the window that a link has at first.
	firstQuota = 256 << 10
	// quotaEpoch is how long, at least, what arrives may take to make the quota
	// grow if it is as much as that.
	quotaEpoch = 250 * time.Millisecond
	// shortQuotaEpoch is the same for a path whose round trips take less than window.LongRTT: two of the longest such. More on its way
	// would only be a queue at the relay, in buffers that have left the processor's cache: 1,000 uploads take 4 % less processor
	// time with 10 ms than with 250; 3 ms brought no more.
	shortQuotaEpoch = 2 * window.LongRTT
	// quotaRest is for how long a session has had none of the quota when the first window of what it sends then need not wait behind
	// those that go on. Who has much to send asks for more as soon as the last is acknowledged.
	quotaRest = 100 * time.Millisecond
	// quotaAskedFor is how much of a scarce quota a session holds at least, in bytes, when it asks at once whether what it has
	// sent has arrived.
	quotaAskedFor = 1 << 10
	// quotaAsks is how many sessions ask in one sweep whether what they have sent has arrived.
	quotaAsks = 16
)

// take reserves n bytes for s if anything is left, overdrawing by one piece at
// most. If nothing is, s waits for its turn, and is kicked when it has come. Who
// has little on its way, this included, does not wait behind the others' bulk: all of them
// together may overdraw the quota by a quarter.
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
			q.since, q.arrived = now, 0 // the first on its way; what was before says nothing of it
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

// growLocked is for when the quota is used up, and s waits: it makes more of it if as much
// has arrived in no more than an epoch.
func (q *quota) growLocked(at *attachment) bool {
	now := time.Now()
	took, epoch := now.Sub(q.since), at.claim.epoch
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

// free returns n bytes.
func (q *quota) free(n, arrived int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used -= n
	q.arrived += arrived
	q.serveLocked()
}

// serveLocked gives what is left to those who wait, in order, and to no more of them: of a thousand who were told that there is
// something, all but a few would find nothing. They are kicked from a goroutine of their own, since the caller holds the lock
// of a session.
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

// nextLocked is whose turn it is, or nil. A frame of a screen or an answer of a database does not wait behind all that each of a
// hundred uploads has to send, nor can many of those keep the uploads waiting.
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

// scarce tells whether others may soon wait for what a session holds: more than a quarter of the quota is taken.
func (q *quota) scarce() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return 4*q.used > q.limit
}

// asks tells whether one more session, which the sweep visits, is to ask whether what it has sent has arrived: others wait
// for that. Of a thousand that are well it would bring nothing to ask all, ten times a second.
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

// forget gives up the claim of a session that has nothing more to send, or does so elsewhere.
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
