// Package wire is the language of ptthqd: the bytes that its processes say to
// each other, and nothing else. It does no I/O of its own, holds no state and
// knows no policy; PROTOCOL.md beside it is the specification, and a test
// checks the worked examples there.
//
// A stream begins with a tip message (Connect, Incoming or Control) and, in
// the other direction, a Reply. Behind them a forwarded connection speaks
// session frames (Frame), and a control stream speaks link messages
// (Heartbeat, Closing, Revoked, Contested).
//
// Decoders are strict: an unknown field is skipped, so that fields can be
// added; a repeated, truncated or over-long one is an error.
package wire

import (
	"errors"
	"fmt"
)

const (
	// ALPN is the application protocol that both ends of a link must speak.
	ALPN = "ptthq/1"
	// Version is the version of the session protocol, in Open and Resume.
	Version = 1
	// DefaultPort is the relay's UDP port where none is given.
	DefaultPort = 30380
	// MaxBody is the largest body of a tip message, in bytes.
	MaxBody = 4096
	// MaxInner is the longest inner message of a Connect, an Incoming or a
	// Reply, in bytes. What P3 forwards thus always fits its own message, under
	// whatever ID.
	MaxInner = 3072
	// MaxNames is how many names a peer may have, so that they fit beside any inner message.
	MaxNames = 8
	// NodeRelay is what a relay calls itself in a Reply.
	NodeRelay = "relay"
	// MaxText is the longest text of a Reply, in bytes. Longer ones are cut.
	MaxText = 512
	// MaxOrigin is the longest mark of an origin, in bytes.
	MaxOrigin = 32
	// MaxTarget is the longest target, in bytes.
	MaxTarget = 512
	// MaxSource is the longest address of P1, in bytes. Longer ones are cut.
	MaxSource = 256
	// InitialWindow is what each end of a session may send in each direction
	// before it has heard of a limit, in bytes: the floor below which no
	// window ever falls.
	InitialWindow = 64 << 10
	// MaxWindow is the largest window of a session in one direction, in bytes.
	MaxWindow = 16 << 20
)

// ErrMalformed is what every error about bytes that can't be understood wraps.
var ErrMalformed = errors.New("malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}
