package session

import (
	"sync"
	"sync/atomic"
	"time"
)

// A lineKey names a link and the remote peer whose sessions it carries.
type lineKey struct {
	link any
	peer string
}

// A line is what sessions over one link to one remote peer share: the evidence whether that path
// carries, and the turns to resume over it. A path is dead for all of its sessions or for none. A
// single session that hears nothing proves nothing: the peer may have nothing to say to it, or a
// node on the path may be busy.
type line struct {
	heard   atomic.Bool  // something has arrived for any session since the last sweep
	carried atomic.Bool  // data went either way since the last sweep
	heardAt atomic.Int64 // when something arrived last, in process time
	overdue func() time.Duration
	turns   turns

	// For the sweep. Times are process time.
	carriedAt time.Duration // when data went either way last
	wanted    bool          // a session is to ask for a sign of life
	since     time.Duration // when the first session asked for one; of use only if asked > 0
	asked     int           // how many sessions have asked for one
	asks      int           // how many sessions have asked for their own sake in this sweep
	acks      int           // how many sessions have acknowledged data in this sweep

	mu    sync.Mutex
	rtt   time.Duration // of pings, smoothed; 0 if unknown
	users int           // guarded by lines.mu
}

// lines finds the line of a link and a remote peer. A line exists while a session uses it.
type lines struct {
	mu sync.Mutex
	by map[lineKey]*line
}

const (
	// maxPathPatience bounds the silence allowed to a path whose round trips were long of late,
	// since a node on it was busy.
	maxPathPatience = 10 * time.Second
	// asksPerSweep is how many sessions of a line ask in one sweep whether what they have sent has
	// arrived, or whether their own stream is stuck: 160 a second. Where thousands of sessions have
	// sent at once and wait, more pings would make them wait longer.
	asksPerSweep = 16
	// acksPerSweep is how many sessions of a line acknowledge data in one sweep. Nobody waits for
	// these acknowledgements. Where thousands of sessions got a byte at once, to acknowledge all at
	// once would be as much work as those bytes, which somebody may wait for.
	acksPerSweep = 100
	// stuckAfter is how long a stream must be silent, on a path that carries, before its session
	// asks whether it is stuck.
	stuckAfter = 5 * time.Second
)

func (ls *lines) acquire(r Route, peer string, now time.Duration) *line {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	key := lineKey{r.Link, peer}
	l := ls.by[key]
	if l == nil {
		if ls.by == nil {
			ls.by = make(map[lineKey]*line)
		}
		l = &line{overdue: r.Overdue}
		l.turns.most = firstTurns
		l.hear(now)
		ls.by[key] = l
	}
	l.users++
	return l
}

func (ls *lines) release(link any, peer string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	key := lineKey{link, peer}
	l := ls.by[key]
	if l.users--; l.users == 0 {
		delete(ls.by, key)
	}
}

// use reports whether a session uses one of the lines of a link.
func (ls *lines) use(link any) bool {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for key := range ls.by {
		if key.link == link {
			return true
		}
	}
	return false
}

func (ls *lines) all(into []*line) []*line {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.by {
		into = append(into, l)
	}
	return into
}

// hear notes that something has arrived.
func (l *line) hear(now time.Duration) { l.heardAt.Store(int64(now)) }

// mark sets a flag. It only reads a flag that is set, so that processors don't contend for it.
func mark(flag *atomic.Bool) {
	if !flag.Load() {
		flag.Store(true)
	}
}

// note adds the round trip of a ping to the smoothed one.
func (l *line) note(rtt time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rtt == 0 {
		l.rtt = rtt
	}
	l.rtt += (rtt - l.rtt) / 8 // as TCP does, RFC 6298
}

// patience returns how long the path may be silent after a session asked for a sign of life.
func (l *line) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(max(minPongWait, 4*l.rtt), max(maxPathPatience, minPongWait))
}

// judge looks at the line at a sweep, and reports whether the path is dead.
//
// While the link's heartbeats are overdue too, the link's own pulse judges the link, and judge
// waits. While they are answered, the path can only be dead beyond the relay. The relay sees that
// too, and is the first to say so as a rule.
func (l *line) judge(now time.Duration) (dead bool) {
	l.asks, l.acks, l.wanted = 0, 0, false
	if l.carried.Swap(false) {
		l.carriedAt = now
	}
	if l.heard.Swap(false) {
		l.hear(now)
	}
	patience := l.patience()
	waited := now - l.since
	switch {
	case now-time.Duration(l.heardAt.Load()) <= silenceBeforePing || now-l.carriedAt >= busyFor:
		l.asked = 0
	case l.asked == 0:
		l.wanted = true
	case l.overdue != nil && l.overdue() > patience:
		l.since = now
	case waited > patience:
		l.asked = 0
		l.hear(now) // sessions that stay on the path are judged anew
		return true
	case waited > patience/2 && l.asked == 1: // the stream of the first session may be stuck
		l.wanted = true
	}
	return false
}

// asking notes that a session asks for the sign of life that judge wanted.
func (l *line) asking(now time.Duration) {
	l.wanted = false
	if l.asked++; l.asked == 1 {
		l.since = now
	}
}

// mayAcknowledge reports whether one more session may acknowledge data in this sweep, and counts
// it.
func (l *line) mayAcknowledge() bool {
	l.acks++
	return l.acks <= acksPerSweep
}

// mayAsk reports whether one more session may ask for its own sake in this sweep, and counts it.
func (l *line) mayAsk() bool {
	l.asks++
	return l.asks <= asksPerSweep
}
