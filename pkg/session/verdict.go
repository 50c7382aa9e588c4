package session

import (
	"errors"

	"ptthqd/pkg/wire"
)

// A verdict is what the end of a stream means for its session.
type verdict int

const (
	streamLost    verdict = iota // the session goes on over another stream
	streamEnded                  // the session has ended in good order
	streamLeft                   // the session moves, and keeps the stream until it has another
	peerBroke                    // the peer broke the protocol
	peerAccuses                  // the peer says that this node broke the protocol
	streamRevoked                // the right to the session was withdrawn
)

// judgeStream returns what the error of a frame reader means. beyond reports whether the stream was
// lost beyond its link, so that another relay may still reach the peer.
func judgeStream(err error) (v verdict, beyond bool) {
	var bad *protocolError
	var reset *wire.ResetError
	switch {
	case errors.Is(err, errEnded):
		return streamEnded, false
	case errors.Is(err, errMove):
		return streamLeft, false
	case errors.As(err, &bad):
		return peerBroke, false
	case !errors.As(err, &reset) || !reset.Remote:
		return streamLost, false
	case reset.Code == wire.CodeProtocol:
		return peerAccuses, true
	case reset.Code == wire.CodeRevoked:
		return streamRevoked, true
	}
	return streamLost, true
}

// A refusalVerdict is what P2 does about a refusal (PROTOCOL.md, section 4).
type refusalVerdict struct {
	retry   bool    // another link, or the same one later, may have another answer
	exclude bool    // this relay is not asked again for this session
	outcome Outcome // how the session ends if P2 doesn't try again
}

// judgeRefusal returns what P2 does about a refusal. opening is false for an attempt to resume.
// byRelay is true if the relay refused, false if the server did.
func judgeRefusal(status wire.Status, opening, byRelay bool) refusalVerdict {
	v := refusalVerdict{outcome: OutcomeProtocol}
	switch status {
	case wire.StatusNotConnected:
		v.retry = true
	case wire.StatusNotAllowed:
		v = refusalVerdict{retry: byRelay, exclude: byRelay, outcome: OutcomeRevoked}
	case wire.StatusTooMany:
		v.retry = byRelay || !opening
	case wire.StatusNotNewest, wire.StatusRefused, wire.StatusTimeout:
		v.retry = !opening
	case wire.StatusNoSession:
		v.outcome = OutcomeRestarted
	default: // another attempt would have the same answer
	}
	if opening {
		v.outcome = OutcomeRefused
	}
	return v
}
