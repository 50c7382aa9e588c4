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
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
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

// A Token names a session, for as long as it lives. P2 draws it at random; who
// has it still needs the client's key to use it.
type Token [16]byte

// ConnectionID is the short name of the session, the same at P2, P3 and P4, for
// logs, status and people. The token can't be learnt from it.
func (t Token) ConnectionID() string {
	sum := sha256.Sum256(t[:])
	return connectionIDEncoding.EncodeToString(sum[:5])
}

var connectionIDEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String names the session without giving the token away.
func (t Token) String() string { return "session " + t.ConnectionID() }

// GoString is String, so that %#v gives nothing away either.
func (t Token) GoString() string { return t.String() }

// MarshalText is String, for logs in JSON.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// A Status is the outcome of a request to connect, as in a Reply.
type Status uint64

// The statuses, and who says them. What P2 does with each is told in
// PROTOCOL.md, section 4.
const (
	StatusOpen         Status = 200 // P4: open
	StatusComplete     Status = 208 // P4: the session has ended well, or was reset; Granted tells which
	StatusMalformed    Status = 400 // P3, P4: the tip can't be understood, or asks for what makes no sense
	StatusNotAllowed   Status = 403 // P3, P4: not allowed; also for a server that doesn't exist
	StatusNotNewest    Status = 409 // P4: a newer attempt has been seen
	StatusNoSession    Status = 410 // P4: no such session (any more)
	StatusTooMany      Status = 429 // P3, P4: a limit is reached
	StatusRefused      Status = 502 // P4: the target refused, or can't be reached
	StatusNotConnected Status = 503 // P3: the server isn't connected
	StatusTimeout      Status = 504 // P4: the target didn't answer in time
	StatusVersion      Status = 505 // P3, P4: the session version isn't supported
	StatusLoop         Status = 508 // P4: the connection leads to itself
)

var statusWords = map[Status]string{
	StatusOpen:         "open",
	StatusComplete:     "session complete",
	StatusMalformed:    "malformed",
	StatusNotAllowed:   "not allowed",
	StatusNotNewest:    "not the newest attempt",
	StatusNoSession:    "no such session",
	StatusTooMany:      "too many",
	StatusRefused:      "target refused or unreachable",
	StatusNotConnected: "server not connected",
	StatusTimeout:      "target did not answer in time",
	StatusVersion:      "version not supported",
	StatusLoop:         "the connection leads to itself",
}

// String is the number and its meaning: "403 not allowed".
func (s Status) String() string {
	if words, known := statusWords[s]; known {
		return strconv.FormatUint(uint64(s), 10) + " " + words
	}
	return strconv.FormatUint(uint64(s), 10)
}

// A StreamCode is the code with which a stream is reset.
type StreamCode uint64

// The stream codes.
const (
	CodeLost     StreamCode = 1 // the stream is lost: resume
	CodeRevoked  StreamCode = 2 // a right was withdrawn: don't resume
	CodeClosing  StreamCode = 3 // this node is about to go: resume, preferably elsewhere
	CodeProtocol StreamCode = 4 // the other end broke the session protocol: don't resume
)

// Known tells whether this version has the code. One of a later version is taken for CodeLost.
func (c StreamCode) Known() bool { return CodeLost <= c && c <= CodeProtocol }

func (c StreamCode) String() string {
	switch c {
	case CodeLost:
		return "lost"
	case CodeRevoked:
		return "revoked"
	case CodeClosing:
		return "closing"
	case CodeProtocol:
		return "protocol error"
	}
	return "stream code " + strconv.FormatUint(uint64(c), 10)
}

// An Instance tells the processes apart that dial with one key. Each takes one at random when it starts. The zero value
// is none.
type Instance [8]byte

// NewInstance makes the instance of a process.
func NewInstance() (instance Instance) {
	_, _ = rand.Read(instance[:]) // never fails
	return instance
}

// A CloseCode is the code with which a link is closed.
type CloseCode uint64

// The close codes.
const (
	CloseClosing    CloseCode = 0 // come back later
	CloseSuperseded CloseCode = 1 // a newer link with the same key has replaced this one
	CloseRevoked    CloseCode = 2 // the key isn't in the config any more
	CloseProtocol   CloseCode = 3 // the peer broke the protocol
	CloseContested  CloseCode = 4 // another process with the same key has the peer's place
)

func (c CloseCode) String() string {
	switch c {
	case CloseClosing:
		return "closing"
	case CloseSuperseded:
		return "superseded"
	case CloseRevoked:
		return "revoked"
	case CloseProtocol:
		return "protocol"
	case CloseContested:
		return "contested"
	}
	return "close code " + strconv.FormatUint(uint64(c), 10)
}

// A ResetError tells how a stream ended before its orderly end: reset by a peer
// (Remote) or by this process, or lost with its link, which is CodeLost and not
// Remote.
type ResetError struct {
	Code   StreamCode
	Remote bool
}

func (e *ResetError) Error() string {
	if e.Remote {
		return "stream reset by the peer: " + e.Code.String()
	}
	return "stream reset: " + e.Code.String()
}

// ErrMalformed is what every error about bytes that can't be understood wraps.
var ErrMalformed = errors.New("malformed message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

const maxID = 63

// CheckID tells what is wrong with a peer's ID: it has 1 to 63 of a-z 0-9 . _ -,
// and begins and ends in a letter or digit.
func CheckID(id string) error {
	if id == "" {
		return errors.New("the ID is empty")
	}
	if len(id) > maxID {
		return fmt.Errorf("the ID has %d characters; %d is the most", len(id), maxID)
	}
	for i := range len(id) {
		c := id[i]
		edge := i == 0 || i == len(id)-1
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9':
		case (c == '.' || c == '_' || c == '-') && !edge:
		case strings.IndexByte("._-", c) >= 0:
			return fmt.Errorf("the ID %q begins or ends in %q; it must begin and end in a letter or digit", id, c)
		default:
			return fmt.Errorf("the ID %q has %q in it; only a-z 0-9 . _ - may be used", id, c)
		}
	}
	return nil
}

// millis is the resolution of durations on the wire.
func millis(d time.Duration) uint64 { return uint64(max(d, 0) / time.Millisecond) }

// duration is the inverse of millis; what doesn't fit is the longest duration
// that a millisecond count can express here, a hundred years.
func duration(ms uint64) time.Duration {
	const most = 100 * 365 * 24 * time.Hour
	return time.Duration(min(ms, uint64(most/time.Millisecond))) * time.Millisecond
}
