package session

import (
	"sync"
	"sync/atomic"
	"time"
)

// A line is what sessions share that go over one link to one remote peer: the evidence whether that path carries, and the
// turns to resume over it. A path is dead for all of its sessions or for none: that one of them hears nothing shows no more
// than that it has nothing to hear, or that somebody on the path has much to do.
type line struct {
	heard   atomic.Bool  // something has arrived for any of them since the last sweep
	carried atomic.Bool  // data went either way since then
	heardAt atomic.Int64 // process time
	overdue func() time.Duration
	turns   turns

	// The sweep's own.
	carriedAt time.Duration
	wanted    bool          // a session is to ask for a sign of life
	since     time.Duration // when the first one has; of use only if any has
	asked     int           // how many have
	asks      int           // how many sessions of this sweep have asked whether what they have sent has arrived
	acks      int           // how many of them have acknowledged data, since no more has come that could take that along

	mu    sync.Mutex
	rtt   time.Duration // of pings, smoothed; 0 if unknown
	users int           // guarded by lines.mu
}

// lines finds the line of a link and a remote peer.
type lines struct {
	mu sync.Mutex
	by map[quotaKey]*line
}

const (
	// maxPathPatience bounds how long a path may be silent whose round trips were long of late, as somebody on it had much to do.
	maxPathPatience = 10 * time.Second
	// asksPerSweep is how many sessions of a line ask in one sweep whether what they have sent has arrived, or whether their own
	// stream is stuck: 160 a second. Where thousands have spoken at once and wait, more would make them wait for longer.
	asksPerSweep = 16
	// acksPerSweep is how many of them acknowledge data in one sweep. Nobody waits for that, and where thousands were sent a byte at
	// once, all of them at once would be as much work as those bytes, for which somebody may wait.
	acksPerSweep = 100
	// stuckAfter is for how long a stream must be silent before its session asks whether it is stuck, on a path that carries.
	stuckAfter = 5 * time.Second
)

func (ls *lines) acquire(r Route, peer string, now time.Duration) *line {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	key := quotaKey{r.Link, peer}
	l := ls.by[key]
	if l == nil {
		if ls.by == nil {
			ls.by = make(map[quotaKey]*line)
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
	key := quotaKey{link, peer}
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

// mark sets a flag that the processors need not fight for.
func mark(flag *atomic.Bool) {
	if !flag.Load() {
		flag.Store(true)
	}
}

// note takes the round trip of a ping.
func (l *line) note(rtt time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rtt == 0 {
		l.rtt = rtt
	}
	l.rtt += (rtt - l.rtt) / 8 // as TCP does, RFC 6298
}

// patience is how long the path may be silent after it was asked.
func (l *line) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(max(minPongWait, 4*l.rtt), max(maxPathPatience, minPongWait))
}

// judge looks at the line at a sweep, and reports whether the path is dead.
//
// The link has a pulse of its own: while its heartbeats are overdue as well, it is the link that is judged, by itself. While they are
// answered, the path can only be dead beyond the relay, and the relay, which sees that too, is as a rule the first to say so.
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
		l.hear(now) // what goes on over it is judged anew
		return true
	case waited > patience/2 && l.asked == 1: // the stream of the first one may be stuck
		l.wanted = true
	}
	return false
}

// asking notes that a session asks for a sign of life, as was wanted.
func (l *line) asking(now time.Duration) {
	l.wanted = false
	if l.asked++; l.asked == 1 {
		l.since = now
	}
}

// mayAcknowledge takes one of this sweep's acknowledgements of data.
func (l *line) mayAcknowledge() bool {
	l.acks++
	return l.acks <= acksPerSweep
}

// mayAsk takes one of this sweep's asks.
func (l *line) mayAsk() bool {
	l.asks++
	return l.asks <= asksPerSweep
}
