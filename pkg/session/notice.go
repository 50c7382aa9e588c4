package session

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// noticeQuiet is how long an event must not have come again before its line, with the count, is
	// logged. After noticeMost the line is logged in any case.
	noticeQuiet = 500 * time.Millisecond
	noticeMost  = 30 * time.Second
	// maxNotices bounds the events that are counted at once. Beyond it events lose their reason, so
	// that fewer of them differ.
	maxNotices = 64
)

// notices log what happens to many sessions at once, as when a relay restarts, in one line with the
// count. At level debug, each session has its own line.
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
	reason    string // empty if there is none
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

// tell notes an event of a session. pause and attempt are of a resume; else 0.
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

// look logs an event that has been quiet, or looks again later.
func (n *notices) look(o *notice) {
	if n.over(o) {
		n.say(o)
	}
}

// over reports whether an event is to be logged now, and takes it out of the table if so.
func (n *notices) over(o *notice) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open[o.event] != o {
		return false // flush has logged it
	}
	now := time.Now()
	if quiet := now.Sub(o.last); quiet < noticeQuiet && now.Sub(o.since) < noticeMost {
		o.timer.Reset(noticeQuiet - quiet)
		return false
	}
	delete(n.open, o.event)
	return true
}

// say logs an event that is out of the table.
func (n *notices) say(o *notice) {
	message := o.many
	if o.count == 1 {
		message = o.one
	}
	n.log.Info(message, o.attributes()...)
}

// flush logs the events that are left.
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

// tellDetachedLocked notes that the session has lost its stream.
func (s *session) tellDetachedLocked(why string) {
	s.shared.notices.tell(s.eventLocked("session detached", "sessions detached", s.info.Relay, why), s.info.ID, 0, 0)
}

// tellResumedLocked notes that another stream has taken over. pause is 0 if it is not known.
func (s *session) tellResumedLocked(relay string, attempt uint64, pause time.Duration) {
	s.shared.notices.tell(s.eventLocked("session resumed", "sessions resumed", relay, ""), s.info.ID, pause, attempt)
}

func (s *session) eventLocked(one, many, relay, reason string) event {
	e := event{one: one, many: many, peerKey: "server", peer: s.peerName(), relay: relay, reason: reason}
	if s.server {
		e.peerKey = "client"
	}
	return e
}
