// Package wire encodes and decodes the bytes that nodes of ptthqd send each other. PROTOCOL.md
// beside it is the specification; tests check its tables and its worked examples.
//
// # Streams
//
// A stream begins with one [Message], its tip, which says what the stream is for. What follows
// depends on the tip:
//
//   - [Connect] (P2 to P3) and [Incoming] (P3 to P4) carry an inner tip, [Open] or [Resume]. The
//     other end answers with a [Reply]. Behind the tips both ends send frames, see [Frame].
//   - [Control] begins a link's control stream. Link messages follow in both directions:
//     [Heartbeat], [Closing], [Revoked], [Welcome] and [Contested].
//
// # Use
//
// A sender fills in a message and calls [Append]. A receiver calls [Read] on a stream, or [Parse]
// on a buffer, and switches on the type of the result. [ParseInner] decodes an inner tip and says
// which [Status] answers a bad one. [Frame.Append] and [ParseFrame] do the same for frame headers;
// the data of a frame is the caller's.
//
// Decoders are strict, as the bytes come from a peer: an unknown field is skipped, so that later
// versions can add fields; a repeated, truncated or over-long field is an error. Every error about
// bytes wraps [ErrMalformed]. Texts of a peer are cleaned ([Clean]) where they are decoded.
//
// The package does no I/O besides Read, holds no state and knows no policy. All functions may be
// called from several goroutines; a message belongs to its caller.
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
	// MaxBody is the largest body of a message, in bytes.
	MaxBody = 4096
	// MaxInner is the longest inner message of a Connect, an Incoming or a Reply, in bytes. It
	// leaves room for the longest ID, so that whatever P3 accepts fits the message it forwards.
	MaxInner = 3072
	// MaxNames is how many names a peer may have. All of them fit beside any inner message.
	MaxNames = 8
	// NodeRelay is the Node of a Reply that a relay makes itself.
	NodeRelay = "relay"
	// MaxText is the longest text of a Reply, in bytes. Append cuts longer ones.
	MaxText = 512
	// MaxOrigin is the longest mark of an origin, in bytes.
	MaxOrigin = 32
	// MaxTarget is the longest target, in bytes.
	MaxTarget = 512
	// MaxSource is the longest address of P1, in bytes. Append cuts longer ones.
	MaxSource = 256
	// InitialWindow is the window of each direction of a new session, in bytes: an end may send so
	// much before it has heard of a limit. It is also the floor below which no window falls.
	InitialWindow = 64 << 10
	// MaxWindow is the largest window of a session in one direction, in bytes.
	MaxWindow = 16 << 20
)

// ErrMalformed is wrapped by every error about bytes that can't be decoded.
var ErrMalformed = errors.New("malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}
