package relay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

// A refusal is a status with its text for the client, and what only this relay's
// own administrator may know.
type refusal struct {
	status wire.Status
	text   string
	why    string        // default: the text
	rule   policy.Source // where to look

	reset wire.StreamCode // how to end the stream instead of an answer, if it isn't 0
}

// endRefused is how a connection ended that was never open, in the words of its two ends.
const endRefused = "refused"

const (
	aboutToStop  = "the relay is about to stop"
	withdrawnKey = "this key is not in the relay's config any more"
)

// notAllowed has one text for a server that is not allowed and for one that
// doesn't exist: who may not reach a server doesn't learn whether it exists.
func notAllowed(q request, d policy.Decision) refusal {
	return refusal{
		status: wire.StatusNotAllowed,
		text:   fmt.Sprintf("the relay does not allow %s to reach %s at %s", q.client, q.target, q.server),
		why:    d.Reason,
		rule:   d.Source,
	}
}

// stopped is the refusal of a request that was ended before it was joined.
func stopped(cause error) refusal {
	if reset, ok := errors.AsType[*wire.ResetError](cause); ok {
		switch reset.Code {
		case wire.CodeRevoked:
			return refusal{status: wire.StatusNotAllowed, text: cause.Error()}
		case wire.CodeClosing: // the client asks again, here or elsewhere
			return refusal{reset: wire.CodeClosing, text: cause.Error()}
		default:
		}
	}
	return refusal{status: wire.StatusNotConnected, text: cause.Error()}
}

// notOpened says why a server's link took no stream.
func notOpened(to *neighbour, err error) refusal {
	if to.link.Err() != nil {
		return refusal{
			status: wire.StatusNotConnected,
			text:   fmt.Sprintf("server %s has just been disconnected from the relay", to.id()),
		}
	}
	return refusal{
		status: wire.StatusTooMany,
		text:   fmt.Sprintf("server %s takes no more connections: %v", to.id(), err),
	}
}

// refuse answers a request and finishes its stream, once the client has taken the
// answer or had its time to.
func (r *Relay) refuse(from *neighbour, s *link.Stream, q request, no refusal) {
	if no.reset != 0 {
		from.log().Debug("connection sent elsewhere", append(q.attributes(), slog.String("reason", no.text))...)
		s.Reset(no.reset)
		return
	}
	r.counts.refuse(no.status)
	from.refusals.note(from, time.Now(), q, no, r.name)
	switch no.status {
	case wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusTooMany:
		from.charge()
	default: // nothing that the client could know before
	}

	// A dead stream fails where it is used.
	_ = s.SetReadDeadline(time.Now().Add(refusalTime))
	_ = s.SetWriteDeadline(time.Now().Add(refusalTime))
	if _, err := s.Write(wire.Append(nil, &wire.Reply{Status: no.status, Text: no.text, Node: r.name})); err != nil {
		s.Reset(wire.CodeLost)
		return
	}
	if err := s.CloseWrite(); err != nil {
		s.Reset(wire.CodeLost)
		return
	}
	// The client may still be sending behind its tip. It gets to read the reply rather
	// than to hear that nobody reads.
	_, _ = io.Copy(io.Discard, s)
	s.CancelRead(wire.CodeLost)
}

// refusals sums up what is refused over one link again and again: the first of a kind is
// logged at once, the others are counted and told in ever longer intervals.
type refusals struct {
	mu    sync.Mutex
	kinds map[kind]*repetition
}

// A kind of refusal is one line in the log.
type kind struct {
	status         wire.Status
	node           string
	server, target string
}

type repetition struct {
	since    time.Time // of the last line about it
	interval time.Duration
	more     int // since then
}

const (
	// maxKinds bounds what a client can make the relay remember and say by asking
	// for ever different things; what is beyond is one kind for each status.
	maxKinds      = 64
	firstInterval = time.Minute
	lastInterval  = 2 * time.Hour
	growth        = 4 // of an interval to the next
)

// note logs a refusal by a node, or counts it.
func (f *refusals) note(from *neighbour, now time.Time, q request, no refusal, node string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := kind{no.status, node, q.server, q.target}
	if f.kinds[k] == nil && len(f.kinds) >= maxKinds {
		k = kind{status: no.status}
	}
	again := f.kinds[k]
	switch {
	case again == nil:
		if f.kinds == nil {
			f.kinds = make(map[kind]*repetition)
		}
		f.kinds[k] = &repetition{since: now, interval: firstInterval}
	case again.more == 0 && now.Sub(again.since) >= again.interval:
		again.next(now) // the interval has passed without one: this is its line
	default:
		again.more++
		from.log().Debug("connection refused", refusedAttributes(q, no, node)...)
		return
	}
	from.say(k.level(), "connection refused", func() []any { return refusedAttributes(q, no, node) })
}

func refusedAttributes(q request, no refusal, node string) []any {
	why := no.why
	if why == "" {
		why = no.text
	}
	attributes := append(q.attributes(),
		slog.String("end", endRefused),
		slog.Uint64("code", uint64(no.status)),
		slog.String("by", node),
		slog.String("reason", why),
	)
	if rule := no.rule.String(); rule != "" {
		attributes = append(attributes, slog.String("rule", rule))
	}
	return attributes
}

// level is what a person must act on for the refusals that a config or a limit is
// behind; the others come and go with servers and their targets.
func (k kind) level() slog.Level {
	switch k.status {
	case wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusTooMany, wire.StatusVersion, wire.StatusLoop:
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}

// next begins the next interval, with a line.
func (again *repetition) next(now time.Time) {
	again.since, again.more = now, 0
	again.interval = min(growth*again.interval, lastInterval)
}

// sumUp tells what has come again, of each kind when its interval is over. What
// has not come for long after is forgotten.
func (f *refusals) sumUp(n *neighbour, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, again := range f.kinds {
		quiet := now.Sub(again.since) - again.interval
		switch {
		case quiet < 0:
		case again.more > 0:
			again.tell(n, k, now)
			again.next(now)
		case quiet >= lastInterval:
			delete(f.kinds, k)
		}
	}
}

// flush tells what was not yet told.
func (f *refusals) flush(n *neighbour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, again := range f.kinds {
		if again.more > 0 {
			again.tell(n, k, time.Now())
		}
	}
	f.kinds = nil
}

func (again *repetition) tell(n *neighbour, k kind, now time.Time) {
	n.say(k.level(), "connections refused again", func() []any {
		return []any{
			slog.Int("times", again.more),
			slog.Duration("within", now.Sub(again.since)),
			slog.Uint64("code", uint64(k.status)),
			slog.String("by", k.node),
			slog.String("server", k.server),
			slog.String("target", k.target),
		}
	})
}
