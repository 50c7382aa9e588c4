package session

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// noticeQuiet is for how long an event must not have come again until it is told how often it has. It is told after noticeMost in
	// any case.
	noticeQuiet = 500 * time.Millisecond
	noticeMost  = 30 * time.Second
	// maxNotices bounds the events that are counted at once. Beyond it they differ in less.
	maxNotices = 64
)

// notices tell what happens to many sessions at once, as when a relay restarts, in one line with the count. Each session has its
// own at level debug.
type notices struct {
	log *slog.Logger

	mu   sync.Mutex
	open map[event]*notice
}

// An event is what happens to a session.
type event struct {
	one, many string // the line's message
	peerKey   string // "client" or "server"
	peer      string
	relay     string
	reason    string // empty: it is none's
}

type notice struct {
	event
	count   int
	id      string // of the first session
	pause   time.Duration
	attempt uint64
	since   time.Time
	last    time.Time
	timer   *time.Timer
}

// tell notes an event of a session. pause and attempt are those of a resume.
func (n *notices) tell(e event, id string, pause time.Duration, attempt uint64) {
	if n.log.Enabled(context.Background(), slog.LevelDebug) {
		n.log.Debug(e.one, (&notice{event: e, count: 1, id: id, pause: pause, attempt: attempt}).attributes()...)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open[e] == nil && len(n.open) >= maxNotices {
		e.reason = ""
	}
	now := time.Now()
	o := n.open[e]
	if o == nil {
		o = &notice{event: e, id: id, since: now, attempt: attempt}
		if n.open == nil {
			n.open = make(map[event]*notice)
		}
		n.open[e] = o
		o.timer = time.AfterFunc(noticeQuiet, func() { n.look(o) })
	}
	o.count++
	o.pause = max(o.pause, pause)
	o.last = now
}

// look tells of an event that has been quiet, or looks again later.
func (n *notices) look(o *notice) {
	if n.over(o) {
		n.say(o)
	}
}

// over takes an event out that is to be told of now.
func (n *notices) over(o *notice) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open[o.event] != o {
		return false // told by flush
	}
	now := time.Now()
	if quiet := now.Sub(o.last); quiet < noticeQuiet && now.Sub(o.since) < noticeMost {
		o.timer.Reset(noticeQuiet - quiet)
		return false
	}
	delete(n.open, o.event)
	return true
}

// say writes the line of an event that is in the table no more.
func (n *notices) say(o *notice) {
	message := o.many
	if o.count == 1 {
		message = o.one
	}
	n.log.Info(message, o.attributes()...)
}

// flush tells what is left.
func (n *notices) flush() {
	n.mu.Lock()
	left := n.open
	n.open = nil
	n.mu.Unlock()
	for _, o := range left {
		o.timer.Stop()
		n.say(o)
	}
}

func (o *notice) attributes() []any {
	var attrs []any
	if o.count == 1 {
		attrs = append(attrs, slog.String("connection", o.id))
	} else {
		attrs = append(attrs, slog.Int("count", o.count))
	}
	attrs = append(attrs, slog.String(o.peerKey, o.peer), slog.String("relay", o.relay))
	if o.reason != "" {
		attrs = append(attrs, slog.String("reason", o.reason))
	}
	if o.count == 1 && o.attempt > 0 {
		attrs = append(attrs, slog.Uint64("attempt", o.attempt))
	}
	if o.pause > 0 { // the longest
		attrs = append(attrs, slog.Duration("pause", o.pause.Round(time.Millisecond)))
	}
	return attrs
}

// tellDetachedLocked tells that the session has lost its stream.
func (s *session) tellDetachedLocked(why string) {
	s.host.notices.tell(s.eventLocked("session detached", "sessions detached", s.info.Relay, why), s.info.ID, 0, 0)
}

// tellResumedLocked tells that another stream has taken over; pause is 0 where it is not known.
func (s *session) tellResumedLocked(relay string, attempt uint64, pause time.Duration) {
	s.host.notices.tell(s.eventLocked("session resumed", "sessions resumed", relay, ""), s.info.ID, pause, attempt)
}

func (s *session) eventLocked(one, many, relay, reason string) event {
	e := event{one: one, many: many, peerKey: "server", peer: s.peerName(), relay: relay, reason: reason}
	if s.server {
		e.peerKey = "client"
	}
	return e
}
