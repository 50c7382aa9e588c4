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

// A refusal has a status and a text for the client, and what only the relay's log may have.
type refusal struct {
	status wire.Status
	text   string
	why    string        // the reason for the log; default: text
	rule   policy.Source // of the rule that decided, for the log

	reset wire.StreamCode // not 0: reset the stream with this code instead of an answer
}

// endRefused is the end of a connection that was never open, as clients and servers call it.
const endRefused = "refused"

const (
	aboutToStop  = "the relay is about to stop"
	withdrawnKey = "this key is not in the relay's config any more"
)

// notAllowed has one text for a server that is not allowed and for one that does not exist: a
// client that may not reach a server does not learn whether it exists.
func notAllowed(q request, d policy.Decision) refusal {
	return refusal{
		status: wire.StatusNotAllowed,
		text: fmt.Sprintf("the relay does not allow %s to reach %s at %s",
			q.client, q.target, q.server),
		why:  d.Reason,
		rule: d.Source,
	}
}

// stopped returns the refusal of a request that the relay has ended before it was joined.
func stopped(cause error) refusal {
	if reset, ok := errors.AsType[*wire.ResetError](cause); ok {
		switch reset.Code {
		case wire.CodeRevoked:
			return refusal{status: wire.StatusNotAllowed, text: cause.Error()}
		case wire.CodeClosing: // the client asks again, here or at another relay
			return refusal{reset: wire.CodeClosing, text: cause.Error()}
		default:
		}
	}
	return refusal{status: wire.StatusNotConnected, text: cause.Error()}
}

// notOpened returns the refusal for a server whose link took no stream.
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

// refuse answers a request and finishes its stream. The client has refusalTime to take the answer.
func (r *Relay) refuse(from *neighbour, s wire.Stream, q request, no refusal) {
	if no.reset != 0 {
		from.log().Debug("connection sent elsewhere",
			append(q.attributes(), slog.String("reason", no.text))...)
		s.Reset(no.reset)
		return
	}
	r.counts.refuse(no.status)
	from.noteRefusal(q, no, r.name)
	switch no.status {
	case wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusTooMany:
		from.charge()
	default: // the client could not know it
	}

	_ = s.SetReadDeadline(time.Now().Add(refusalTime))
	_ = s.SetWriteDeadline(time.Now().Add(refusalTime))
	_, err := s.Write(wire.Append(nil, &wire.Reply{Status: no.status, Text: no.text, Node: r.name}))
	if err == nil {
		err = s.CloseWrite()
	}
	if err != nil {
		s.Reset(wire.CodeLost)
		return
	}
	// The client may still send behind its tip. A reset would overtake the reply.
	_, _ = io.Copy(io.Discard, s)
	s.CancelRead(wire.CodeLost)
}

// A kind is what equal refusals have in common: they are summed up.
type kind struct {
	status         wire.Status
	node           string
	server, target string
}

// maxKinds bounds the kinds that the relay remembers of one link. Further ones count as one kind
// per status: a client that asks for ever different things fills neither memory nor log.
const maxKinds = 64

// newRefusals returns the sums of refusals over one link.
func newRefusals() quiet.Repeats {
	return quiet.Repeats{Max: maxKinds, Merge: func(key any) any {
		return kind{status: key.(kind).status}
	}}
}

// noteRefusal logs a refusal by a node, or counts it if there was an equal one lately.
func (n *neighbour) noteRefusal(q request, no refusal, node string) {
	k := kind{no.status, node, q.server, q.target}
	again := func(times int, within time.Duration) { n.refusedAgain(k, times, within) }
	if n.refusals.Event(k, again) {
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
	case wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusTooMany, wire.StatusVersion,
		wire.StatusLoop:
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
