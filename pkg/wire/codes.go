package wire

import "strconv"

// A Status is the outcome of a request to connect, in a Reply.
type Status uint64

// The statuses, and the nodes that send them. PROTOCOL.md, section 4, says what P2 does with each.
const (
	StatusOpen         Status = 200 // P4: open
	StatusComplete     Status = 208 // P4: the session is over; see Granted.Reset
	StatusMalformed    Status = 400 // P3, P4: the tip can't be decoded, or makes no sense
	StatusNotAllowed   Status = 403 // P3, P4: not allowed, or no such server
	StatusNotNewest    Status = 409 // P4: it has seen a newer attempt
	StatusNoSession    Status = 410 // P4: no such session, or no more
	StatusTooMany      Status = 429 // P3, P4: a limit is reached
	StatusRefused      Status = 502 // P4: the target refuses, or can't be reached
	StatusNotConnected Status = 503 // P3: the server isn't connected; P4: can't say now, ask again
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

// String returns the number and its meaning: "403 not allowed".
func (s Status) String() string {
	if words, known := statusWords[s]; known {
		return strconv.FormatUint(uint64(s), 10) + " " + words
	}
	return strconv.FormatUint(uint64(s), 10)
}

// A StreamCode says why a stream is reset.
type StreamCode uint64

// The stream codes.
const (
	CodeLost     StreamCode = 1 // the stream is lost: resume
	CodeRevoked  StreamCode = 2 // a right was withdrawn: don't resume
	CodeClosing  StreamCode = 3 // this node is about to go: resume, preferably elsewhere
	CodeProtocol StreamCode = 4 // the other end broke the session protocol: don't resume
)

// Known reports whether this version has the code. A node takes an unknown code for CodeLost.
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

// A CloseCode says why a link is closed.
type CloseCode uint64

// The close codes.
const (
	CloseClosing    CloseCode = 0 // this node stops; dial again later
	CloseSuperseded CloseCode = 1 // a newer link with the same key has replaced this one
	CloseRevoked    CloseCode = 2 // the relay's config does not have the key
	CloseProtocol   CloseCode = 3 // the peer broke the protocol
	CloseContested  CloseCode = 4 // another process with the same key has this peer's place
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

// A ResetError is the error of a stream that was reset: by the peer if Remote, else by this
// process. A stream that is lost with its link has CodeLost and is not Remote.
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
