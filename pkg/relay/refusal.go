package relay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"ptthqd/pkg/policy"
	"ptthqd/pkg/quiet"
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
func (r *Relay) refuse(from *neighbour, s wire.Stream, q request, no refusal) {
	if no.reset != 0 {
		from.log().Debug("connection sent elsewhere", append(q.attributes(), slog.String("reason", no.text))...)
		s.Reset(no.reset)
		return
	}
	r.counts.refuse(no.status)
	from.noteRefusal(q, no, r.name)
	switch no.status {
	case wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusTooMany:
		from.charge()
	default: // nothing that the client could know before
	}

	_ = s.SetReadDeadline(time.Now().Add(refusalTime))
	_ = s.SetWriteDeadline(time.Now().Add(refusalTime))
	_, err := s.Write(wire.Append(nil, &wire.Reply{Status: no.status, Text: no.text, Node: r.name}))
	if err == nil {
		err = s.End(nil)
	}
	if err != nil {
		s.Reset(wire.CodeLost)
		return
	}
	// The client may still be sending behind its tip. It gets to read the reply rather
	// than to hear that nobody reads.
	_, _ = io.Copy(io.Discard, s)
	s.CancelRead(wire.CodeLost)
}

// A kind of refusal is one line in the log.
type kind struct {
	status         wire.Status
	node           string
	server, target string
}

// maxKinds bounds the kinds that the relay remembers of one link. What is beyond is one kind for
// each status: a client that asks for ever different things fills neither memory nor log.
const maxKinds = 64

// newRefusals returns what sums up the refusals over one link.
func newRefusals() quiet.Repeats {
	return quiet.Repeats{Max: maxKinds, Merge: func(key any) any {
		return kind{status: key.(kind).status}
	}}
}

// noteRefusal logs a refusal by a node, or counts it if there was an equal one lately.
func (n *neighbour) noteRefusal(q request, no refusal, node string) {
	k := kind{no.status, node, q.server, q.target}
	if n.refusals.Event(k, func(times int, within time.Duration) { n.refusedAgain(k, times, within) }) {
		n.say(k.level(), "connection refused", func() []any { return refusedAttributes(q, no, node) })
	} else {
		n.log().Debug("connection refused", refusedAttributes(q, no, node)...)
	}
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

// level is warn for what a config or a limit refuses, which a person must act on. Other refusals
// come and go with servers and their targets.
func (k kind) level() slog.Level {
	switch k.status {
	case wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusTooMany, wire.StatusVersion, wire.StatusLoop:
		return slog.LevelWarn
	default:
		return slog.LevelInfo
	}
}

func (n *neighbour) refusedAgain(k kind, times int, within time.Duration) {
	n.say(k.level(), "connections refused again", func() []any {
		return []any{
			slog.Int("times", times),
			slog.Duration("within", within),
			slog.Uint64("code", uint64(k.status)),
			slog.String("by", k.node),
			slog.String("server", k.server),
			slog.String("target", k.target),
		}
	})
}
