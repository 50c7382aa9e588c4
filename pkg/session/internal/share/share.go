// Package share divides what may be in flight over one link among the sessions with one remote
// peer.
//
//	links := share.Links{Most: 8 << 20}
//	claim.Join(&links, link, "nas", session) // the session attaches to a stream of that link
//	if claim.Take(n, inFlight, epoch) {      // else session.Kick is called when its turn has come
//		write(n bytes)
//	}
//	claim.Give(n)         // they have arrived
//	claim.Leave(inFlight) // the stream is gone, and what was in flight with it
//
// A link's quota grows with what its other end takes. When it is used up, sessions wait in two
// queues, of which one is for sessions that have rested: a short answer doesn't wait behind
// uploads. Any goroutine may call the methods of a Claim while it holds the lock of the session.
package share

import (
	"container/list"
	"sync"
	"time"

	"ptthqd/pkg/wire"
)

// A quota bounds what is in flight over one link to one remote peer. Without it, a peer that
// doesn't read its link could use up the flow-control window of this end's link, and stall all
// other peers. Data that has reached the peer's process isn't in flight any more, even while the
// peer can't deliver it to TCP. So a session whose TCP side doesn't read stalls no other session.
//
// A link's flow-control window is small at first, and grows as the other end takes data from it.
// The quota grows likewise: it is what arrives within an epoch, between first and most bytes. A
// peer that takes nothing never gets more than first.
type quota struct {
	most int64

	mu      sync.Mutex
	limit   int64
	used    int64
	since   time.Time // when the present measurement of arrivals began
	arrived int64     // bytes since then
	waiting list.List // of *Claim, in order; if there are any, nothing is left
	rested  list.List // like waiting, of rested sessions; the two queues take turns
	others  bool      // waiting has the next turn
	askedAt time.Time // the last sweep in which sessions were to ask
	asked   int       // how many sessions were to ask in that sweep
	users   int       // guarded by Links.mu
}

// A Claim is a session's part in the quota of its link and peer. A claim that hasn't joined a
// quota, its zero value, is bounded by nothing.
type Claim struct {
	waiter Waiter
	links  *Links
	key    key
	quota  *quota

	// The quota's lock guards these.
	want    int64         // bytes that the session waits for
	epoch   time.Duration // the quota grows if as much as it arrives within this time
	served  time.Time     // when the session last had any of the quota
	burst   int64         // bytes that it has had since it last rested
	place   *list.Element // in queue; nil if the session doesn't wait
	queue   *list.List    // waiting or rested
	granted int64         // bytes reserved while the session waited, and not taken yet
}

// A Waiter is a session that may wait for its quota.
type Waiter interface {
	// Kick tells the session that its next Take succeeds. It is called without any lock.
	Kick()
}

const (
	// first is a quarter of the flow-control window that a link has at first, in bytes.
	first = 256 << 10
	// rest is how long a session must have taken nothing from the quota to count as rested. Its
	// next 64 KiB are queued apart from continuous uploads: a session with much to send asks for
	// more as soon as its last bytes are acknowledged.
	rest = 100 * time.Millisecond
	// brief is how many bytes a session may have in flight without waiting behind the bulk of
	// others.
	brief = 4 << 10
	// asks is how many sessions ask in one sweep whether what they have sent has arrived.
	asks = 16
)

// Take reserves n bytes for the session if anything is left, overdrawing by one piece at most, and
// reports whether it did. If nothing is left, the session waits for its turn, and is kicked when
// the turn has come. A session with at most 4 KiB in flight, these n bytes included, doesn't wait
// behind the bulk of others: such sessions together may overdraw the quota by a quarter. inFlight
// is what the session holds already. The quota grows if as much as all of it arrives within an
// epoch.
func (c *Claim) Take(n int64, inFlight uint64, epoch time.Duration) bool {
	q := c.quota
	if q == nil {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.granted > 0 {
		q.used += n - c.granted
		c.granted = 0
		return true
	}
	now := time.Now()
	if c.place == nil && now.Sub(c.served) >= rest {
		c.burst = 0
	}
	c.epoch = epoch
	if q.used <= 0 {
		if now.Sub(q.since) > c.epoch {
			q.since, q.arrived = now, 0 // nothing is in flight: what was before says nothing
		}
	}
	small := c.place == nil && inFlight+uint64(n) <= brief && 4*q.used < 5*q.limit
	if q.used >= q.limit && !small && !q.growLocked(c) {
		c.want = n
		if c.place == nil {
			c.queue = &q.waiting
			if c.burst < wire.InitialWindow {
				c.queue = &q.rested
			}
			c.place = c.queue.PushBack(c)
		}
		return false
	}
	q.leaveLocked(c)
	q.used += n
	c.burst += n
	c.served = now
	q.serveLocked()
	return true
}

// growLocked makes the quota larger if as much as all of it has arrived within an epoch, and
// reports whether it did. It is called when the quota is used up and a session waits.
func (q *quota) growLocked(c *Claim) bool {
	now := time.Now()
	took, epoch := now.Sub(q.since), c.epoch
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

// Overdraw reserves n bytes, whatever is left. n must be small.
func (c *Claim) Overdraw(n int64) {
	q := c.quota
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.used += n
}

// Give returns n bytes that have arrived.
func (c *Claim) Give(n int64) {
	if n != 0 && c.quota != nil {
		c.quota.free(n, n)
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

// serveLocked grants what is left to waiting sessions, in order. It kicks only the sessions that
// were granted something: of a thousand, all but a few would find nothing. Another goroutine does
// that, since the caller holds the lock of a session.
func (q *quota) serveLocked() {
	var served []*Claim
	var now time.Time
	for {
		c := q.nextLocked()
		if c == nil || q.used >= q.limit && !q.growLocked(c) {
			break
		}
		if served == nil {
			now = time.Now()
		}
		q.others = c.queue == &q.rested
		q.leaveLocked(c)
		c.granted, c.served = c.want, now
		c.burst += c.want
		q.used += c.want
		served = append(served, c)
	}
	if served != nil {
		go kickAll(served)
	}
}

// nextLocked returns the session to serve next, or nil. Rested sessions and the others take turns.
// So a frame of a screen or an answer of a database doesn't wait behind a hundred uploads, and many
// of these can't keep the uploads waiting.
func (q *quota) nextLocked() *Claim {
	first, second := &q.rested, &q.waiting
	if q.others {
		first, second = second, first
	}
	for _, queue := range []*list.List{first, second} {
		if e := queue.Front(); e != nil {
			return e.Value.(*Claim)
		}
	}
	return nil
}

func (q *quota) leaveLocked(c *Claim) {
	if c.place != nil {
		c.queue.Remove(c.place)
		c.place = nil
	}
}

// Scarce reports whether others may soon wait for what a session holds: more than a quarter of the
// quota is taken.
func (c *Claim) Scarce() bool {
	q := c.quota
	if q == nil {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return 4*q.used > q.limit
}

// Asks reports whether one more session that the sweep visits is to ask whether what it has sent
// has arrived, since others wait for the quota. It is true for 16 sessions in a sweep: asking for
// a thousand sessions that are well, ten times a second, would bring nothing.
func (c *Claim) Asks(now time.Time) bool {
	q := c.quota
	if q == nil {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.nextLocked() == nil {
		return false
	}
	if !now.Equal(q.askedAt) { // another sweep
		q.askedAt, q.asked = now, 0
	}
	q.asked++
	return q.asked <= asks
}

// Forget gives up the turn of a session that has nothing more to send over this link.
func (c *Claim) Forget() {
	q := c.quota
	if q == nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leaveLocked(c)
	q.used -= c.granted
	c.granted = 0
	q.serveLocked()
}

func kickAll(served []*Claim) {
	for _, c := range served {
		c.waiter.Kick()
	}
}

// Links finds the quota of a link and a remote peer. A quota exists while a session uses it.
type Links struct {
	Most int64 // how far a quota may grow, in bytes

	mu sync.Mutex
	by map[key]*quota
}

type key struct {
	link any
	peer string
}

// Join makes c the claim of one more session in the quota of a link, which is comparable, and a
// remote peer.
func (c *Claim) Join(links *Links, link any, peer string, w Waiter) {
	*c = Claim{waiter: w, links: links, key: key{link, peer}}
	links.mu.Lock()
	defer links.mu.Unlock()
	q := links.by[c.key]
	if q == nil {
		if links.by == nil {
			links.by = make(map[key]*quota)
		}
		q = &quota{most: links.Most, limit: min(links.Most, first)}
		links.by[c.key] = q
	}
	q.users++
	c.quota = q
}

// Leave ends the claim. lost is how many bytes were in flight when the stream was lost.
func (c *Claim) Leave(lost int64) {
	if c.quota == nil {
		return
	}
	c.Forget()
	if lost != 0 {
		c.quota.free(lost, 0)
	}
	c.links.mu.Lock()
	defer c.links.mu.Unlock()
	if c.quota.users--; c.quota.users == 0 {
		delete(c.links.by, c.key)
	}
}
