// Package control is the API of the daemon's control socket: what can be asked
// and answered, and a client for the commands. It is HTTP over a Unix socket
// with JSON bodies, so that curl can use it:
//
//	curl --unix-socket /run/ptthqd/control.sock http://ptthqd/v1/status
//
// The one idea: the types here are the documented, stable form (docs/control.md;
// a test compares). Times are RFC 3339, durations are seconds, bytes are
// numbers, what is absent is left out. Fields may be added within a version.
//
// The daemon answers through a [Backend] that [Handler] wraps; the commands ask
// through a [Client] and don't import the daemon. Which socket it is follows
// from the config file's path alone, see [SocketPath].
package control

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// The paths of the API.
const (
	PathStatus   = "/v1/status"    // GET: a Status
	PathReload   = "/v1/reload"    // POST: a Reload, once it is done
	PathExplain  = "/v1/explain"   // GET with client, server and target: an Explanation
	PathLogLevel = "/v1/log-level" // GET, PUT: a LogLevel
	PathTrace    = "/v1/trace"     // POST with mapping or target: a Trace
)

// Backend is what answers: the daemon. Its methods are called from several
// goroutines at once.
type Backend interface {
	Status() *Status
	// Reload reloads the config at once and returns when that is done, or was
	// found impossible.
	Reload(ctx context.Context) *Reload
	// Explain fails only if the question makes no sense.
	Explain(q Question) (*Explanation, error)
	// Trace goes the way of a connection, hop by hop: of a mapping at a client, to
	// a target at a server. It fails only if the question makes no sense.
	Trace(ctx context.Context, q TraceQuestion) (*Trace, error)
	LogLevel() LogLevel
	// SetLogLevel holds until the next one, or until a reload changes the
	// config's. It fails if there is no such level.
	SetLogLevel(LogLevel) error
}

// Seconds is a duration that is a number of seconds in JSON, to the microsecond.
type Seconds time.Duration

// MarshalJSON gives seconds, as in 0.0015.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Round(time.Microsecond).Seconds(), 'f', -1, 64), nil
}

// UnmarshalJSON is the inverse of MarshalJSON.
func (s *Seconds) UnmarshalJSON(b []byte) error {
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil {
		return err
	}
	*s = Seconds(f * float64(time.Second))
	return nil
}

// Status is all that a daemon knows of itself at one moment.
type Status struct {
	Role        string       `json:"role"`                  // relay, server or client
	ID          string       `json:"id,omitempty"`          // of a server or client, from its own config
	PublicKey   string       `json:"public_key"`            // this node's, as `ptthqd pubkey` prints it
	Version     string       `json:"version"`               // of the program that runs
	PID         int          `json:"pid"`                   // its process ID
	State       string       `json:"state"`                 // starting, running or draining
	Started     time.Time    `json:"started"`               // when the process began
	Uptime      Seconds      `json:"uptime"`                // since then
	Summary     string       `json:"summary"`               // one line for people: how it stands
	Config      Config       `json:"config"`                // what it runs by
	Listeners   []Listener   `json:"listeners,omitempty"`   // of a relay: where links come in
	Links       []Link       `json:"links,omitempty"`       // of a client or server: to each relay of the config
	Mappings    []Mapping    `json:"mappings,omitempty"`    // of a client
	Services    []Service    `json:"services,omitempty"`    // of a server
	Peers       []Peer       `json:"peers,omitempty"`       // of a relay: all that the config names, connected or not
	Waiting     []Waiting    `json:"waiting,omitempty"`     // of a relay: nodes that knock with a key that the config does not name
	Connections []Connection `json:"connections,omitempty"` // the forwarded connections, the oldest first
	Warnings    []Warning    `json:"warnings,omitempty"`    // what a person should act on
	Shortages   []Shortage   `json:"shortages,omitempty"`   // of a client or server: within the last minute
	Counters    Counters     `json:"counters"`              // since the process began
	Process     Process      `json:"process"`               // what it takes of its host
}

// Config tells which config runs and how the last reload went.
type Config struct {
	File     string    `json:"file"`             // the main file
	Files    []string  `json:"files"`            // all that were read, the main one first
	Hash     string    `json:"hash"`             // of their contents
	Loaded   time.Time `json:"loaded"`           // when this config came into force
	LogLevel string    `json:"log_level"`        // in force: debug, info, warn or error
	Reload   *Reload   `json:"reload,omitempty"` // the last one, good or bad; absent if there was none
}

// Reload is how a reload went.
type Reload struct {
	OK       bool      `json:"ok"`                 // the files are in force; if false, nothing has changed
	At       time.Time `json:"at"`                 // when it was done
	Trigger  string    `json:"trigger"`            // command, signal, watch, or retry after a fault of the host
	Took     Seconds   `json:"took"`               // from reading to being in force
	Changes  []string  `json:"changes,omitempty"`  // a line for people for each difference; none if nothing differed
	Already  []string  `json:"already,omitempty"`  // if nothing differed: what reloads of the last 10 s have changed, by themselves as a rule
	Cause    string    `json:"cause,omitempty"`    // if not ok: config (a fault in the text), restart (only a restart can do it) or host
	Error    string    `json:"error,omitempty"`    // if not ok: why, in words
	Faults   []Fault   `json:"faults,omitempty"`   // if the cause is config: each with its place
	Retrying bool      `json:"retrying,omitempty"` // if the cause is host: it is tried again by itself until it is in force
	Warnings []string  `json:"warnings,omitempty"` // what is legal and surely not meant, with its place
	Restart  string    `json:"restart,omitempty"`  // if ok: what has changed outside of the config and takes a restart, as the key
}

// The causes of a failed reload.
const (
	CauseConfig  = "config"
	CauseRestart = "restart"
	CauseHost    = "host"
)

// Fault is one fault in the text of the config.
type Fault struct {
	File    string `json:"file"`           // as it was named or found
	Line    int    `json:"line"`           // from 1
	Column  int    `json:"column"`         // in characters, from 1
	Key     string `json:"key,omitempty"`  // which key of the config, as peers.public_key; absent if none is to blame
	Message string `json:"message"`        // what is wrong
	Hint    string `json:"hint,omitempty"` // what would be right
}

// String returns "file:line:column: key: message; hint".
func (f Fault) String() string {
	text := fmt.Sprintf("%s:%d:%d: ", f.File, f.Line, f.Column)
	if f.Key != "" {
		text += f.Key + ": "
	}
	text += f.Message
	if f.Hint != "" {
		text += "; " + f.Hint
	}
	return text
}

// Listener is a UDP socket of a relay.
type Listener struct {
	Listen        string `json:"listen"`            // as in the config, one address of it: [::]:30380, systemd:NAME
	Address       string `json:"address,omitempty"` // where it is bound; absent while it is not
	Problem       string `json:"problem,omitempty"` // why it is not: "failed: ..., retrying"
	Hint          string `json:"hint,omitempty"`    // what to do about that
	GRO           bool   `json:"gro"`               // the kernel coalesces what arrives
	ReceiveBuffer int    `json:"receive_buffer"`    // bytes, as the kernel counts; 0 if it doesn't say
	SendBuffer    int    `json:"send_buffer"`       // bytes
	Packets       uint64 `json:"packets"`           // received
	Dropped       uint64 `json:"packets_dropped"`   // lost as the receive buffer was full
	SendFailures  uint64 `json:"send_failures"`     // packets that the kernel refused to send
}

// Figures are how a link does.
type Figures struct {
	RTT           Seconds `json:"rtt"`              // smoothed round trip
	Loss          float64 `json:"loss"`             // share of the packets sent by this end that were lost, 0 to 1
	PacketsSent   uint64  `json:"packets_sent"`     // by this end
	PacketsLost   uint64  `json:"packets_lost"`     // of those
	BytesSent     uint64  `json:"bytes_sent"`       // by this end, with QUIC's overhead
	BytesReceived uint64  `json:"bytes_received"`   // with QUIC's overhead
	GSO           bool    `json:"gso"`              // packets leave in segments
	ParitySent    uint64  `json:"parity_sent"`      // packets of parity, against loss, sent besides
	Restored      uint64  `json:"packets_restored"` // lost on the way to this end, and made again from the other end's parity
}

// Socket is what the kernel gives the UDP socket of a link.
type Socket struct {
	GRO           bool   `json:"gro"`             // the kernel coalesces what arrives
	ReceiveBuffer int    `json:"receive_buffer"`  // bytes, as the kernel counts; 0 if it doesn't say
	Dropped       uint64 `json:"packets_dropped"` // lost as the receive buffer was full
}

// Link is a client's or server's link to one relay of its config.
type Link struct {
	Relay       string    `json:"relay"`                 // the address in the config
	PublicKey   string    `json:"public_key"`            // the relay's, in the config
	State       string    `json:"state"`                 // connected, connecting, or waiting (before the next try)
	Since       time.Time `json:"since"`                 // when it came up or went down
	Address     string    `json:"address,omitempty"`     // the relay's, resolved; if connected
	Figures     *Figures  `json:"figures,omitempty"`     // if connected
	Connections int       `json:"connections"`           // that are attached over it
	Socket      *Socket   `json:"socket,omitempty"`      // if connected
	Attempts    int       `json:"attempts,omitempty"`    // dials since it went down
	LastError   string    `json:"last_error,omitempty"`  // why the last link ended or the last dial failed
	LastReason  string    `json:"last_reason,omitempty"` // the same in one word of those in docs/metrics.md
	NextAttempt time.Time `json:"next_attempt,omitzero"` // if waiting
	Name        string    `json:"name,omitempty"`        // what the relay calls this node; absent until it has said so
	Problem     string    `json:"problem,omitempty"`     // what is wrong beyond that, connected or not: another node holds this node's key
}

// The states of a Link.
const (
	LinkConnected  = "connected"
	LinkConnecting = "connecting"
	LinkWaiting    = "waiting"
)

// Mapping is a listener of a client and where it leads.
type Mapping struct {
	Name        string `json:"name"`              // as in the config
	Listen      string `json:"listen"`            // as in the config, canonical
	Server      string `json:"server"`            // the ID of the server
	Target      string `json:"target"`            // canonical
	Enabled     bool   `json:"enabled"`           // it listens
	Connections int    `json:"connections"`       // at this moment
	Source      string `json:"source"`            // where it is written: file:line
	Problem     string `json:"problem,omitempty"` // why it does not listen: "failed: ..., retrying"
	Hint        string `json:"hint,omitempty"`    // what to do about that
}

// Service is what a server lets clients reach.
type Service struct {
	Name        string   `json:"name,omitempty"` // as in the config
	Target      string   `json:"target"`         // an address, a range, or a Unix socket
	Clients     []string `json:"clients"`        // patterns of the IDs that may use it
	Connections int      `json:"connections"`    // at this moment
	Source      string   `json:"source"`         // where it is written: file:line
}

// Peer is a client or server that a relay's config names.
type Peer struct {
	ID          string    `json:"id"`                    // as in the config
	OtherNames  []string  `json:"other_names,omitempty"` // by which it is still understood, as in the config
	Role        string    `json:"role"`                  // client or server
	Connected   bool      `json:"connected"`             // it has a link
	Since       time.Time `json:"since,omitzero"`        // when the link was made, if connected
	Address     string    `json:"address,omitempty"`     // where it comes from, if connected
	Figures     *Figures  `json:"figures,omitempty"`     // if connected
	Connections int       `json:"connections"`           // joined over its link
	LastSeen    time.Time `json:"last_seen,omitzero"`    // when its last link ended, if it is not connected and ever was
	Source      string    `json:"source"`                // where it is written: file:line
	Problem     string    `json:"problem,omitempty"`     // what is wrong with it: several nodes hold its key
}

// Waiting is a node that dials a relay with a key that its config does not name. It has proved that it holds the key. A
// relay remembers 256 of them, each until it has been silent for 15 minutes.
type Waiting struct {
	Key     string    `json:"key"`     // its public key, as a `public_key` of [[peers]] takes it
	Address string    `json:"address"` // where it came from last
	Since   time.Time `json:"since"`   // its first try
	Last    time.Time `json:"last"`    // its last try
	Tries   uint64    `json:"tries"`   // how often it has come
}

// Connection is one forwarded TCP connection.
type Connection struct {
	ID        string    `json:"id"`                // the same at the client, the relay and the server
	State     string    `json:"state"`             // opening, attached, detached, closing; at a relay admitted, parked, opening, open, refused
	Since     time.Time `json:"since"`             // when it came into that state; at a relay: when its stream came
	Opened    time.Time `json:"opened"`            // when it began
	Age       Seconds   `json:"age"`               // since then
	Mapping   string    `json:"mapping,omitempty"` // at a client: through which it came
	Client    string    `json:"client,omitempty"`  // the client's ID; absent at the client
	Source    string    `json:"source"`            // the TCP client's address (P1)
	Server    string    `json:"server,omitempty"`  // the server's ID; absent at the server
	Target    string    `json:"target"`            // what the client asked for, canonical (P5)
	Peer      string    `json:"peer,omitempty"`    // at a server: the address that was dialled (P5)
	BytesUp   uint64    `json:"bytes_up"`          // from P1 towards P5; at a relay with the framing
	BytesDown uint64    `json:"bytes_down"`        // from P5 towards P1
	Resumes   int       `json:"resumes"`           // how often it has gone on over a new stream
	Relay     string    `json:"relay,omitempty"`   // over which it is attached, or was last
}

// Warning is something that a person should act on.
type Warning struct {
	Text string `json:"text"`           // what is wrong
	Hint string `json:"hint,omitempty"` // what to do about it
}

// Shortage is a peer whose connections have to do with 64 KiB a round trip each, as its share of a memory budget is used up.
type Shortage struct {
	Limit string `json:"limit"` // the budget, by its name in [limits]: session_memory or retained_memory
	Peer  string `json:"peer"`  // the ID of the client, at a server, or of the server, at a client
	Held  int64  `json:"held"`  // bytes of the budget that its connections hold
	Free  int64  `json:"free"`  // bytes that nobody holds; no peer may hold more than that
}

// Counters count since the process began.
type Counters struct {
	Opened    uint64            `json:"opened"`               // connections that were opened
	Refused   map[string]uint64 `json:"refused,omitempty"`    // connections that were refused, by status code
	Ended     map[string]uint64 `json:"ended,omitempty"`      // connections that have ended, by how; not at a relay
	Resumed   uint64            `json:"resumed"`              // times that a connection went on over a new stream
	LimitsHit map[string]uint64 `json:"limits_hit,omitempty"` // connections that a limit has kept out or made wait, by its name in [limits]
	BytesUp   uint64            `json:"bytes_up"`             // from P1 towards P5
	BytesDown uint64            `json:"bytes_down"`           // from P5 towards P1
	Reloads   uint64            `json:"reloads"`              // that came into force
	BadReload uint64            `json:"reloads_failed"`       // that changed nothing
}

// Process is what the process takes of its host.
type Process struct {
	Goroutines  int    `json:"goroutines"`   // at this moment
	HeapBytes   uint64 `json:"heap_bytes"`   // in use by objects
	Files       int    `json:"files"`        // open file descriptors; 0 if the system doesn't say
	FilesLimit  uint64 `json:"files_limit"`  // of RLIMIT_NOFILE; 0 if there is none
	MemoryUsed  int64  `json:"memory_used"`  // bytes of the session budgets that are promised or kept
	MemoryLimit int64  `json:"memory_limit"` // bytes of the session budgets

	GroupMemory   int64 `json:"group_memory"`    // bytes that the control groups allowed when the daemon began; 0 if they have no limit
	GoMemoryLimit int64 `json:"go_memory_limit"` // bytes that Go's runtime tries to stay below (GOMEMLIMIT); 0 if there is no limit

	LogDropped uint64 `json:"log_dropped"` // lines of the log that are missing in it, as nobody read it in time or it could not be written
}

// Question asks which rule decides.
type Question struct {
	Client string `json:"client"` // its ID
	Server string `json:"server"` // its ID
	Target string `json:"target"` // in any spelling; in an answer canonical
}

// Explanation is what this node's rules say to a Question.
type Explanation struct {
	Question        // with the target in canonical form
	Role     string `json:"role"`           // of the node that answers
	Decides  bool   `json:"decides"`        // false at a client: it asks, the relay and the server decide
	Allowed  bool   `json:"allowed"`        // by this node
	Rule     string `json:"rule,omitempty"` // the rule or service that decides, as written
	Reason   string `json:"reason"`         // in words
	Source   string `json:"source"`         // where it is written, or would have to be: file:line
	Dial     string `json:"dial,omitempty"` // at a server that allows it: what is dialled
	Next     string `json:"next"`           // what else has a say, in words
}

// TraceQuestion asks for a Trace.
type TraceQuestion struct {
	Mapping string `json:"mapping,omitempty"` // at a client: the name of a mapping that is enabled
	Target  string `json:"target,omitempty"`  // at a server: the target of a service, not a range
}

// Trace is what became of a connection that was made to see its way. It carries nothing: it is opened and closed.
type Trace struct {
	OK         bool   `json:"ok"`                   // the target has been reached
	Connection string `json:"connection,omitempty"` // its ID in the logs of all nodes, if it came to that
	Hops       []Hop  `json:"hops"`                 // in the order of the way; with several relays, two for each
}

// Hop is one step of a Trace.
type Hop struct {
	From  string  `json:"from"`            // this node, a relay's address, or the server's ID
	To    string  `json:"to"`              // the next of these, or the target
	OK    bool    `json:"ok"`              // the step was made
	Took  Seconds `json:"took"`            // a round trip to a relay; from there to the server; the dial of the target
	Code  int     `json:"code,omitempty"`  // if not ok: the status code
	By    string  `json:"by,omitempty"`    // if not ok: the node that says so
	Error string  `json:"error,omitempty"` // if not ok: why, in words
}

// LogLevel is the level in force.
type LogLevel struct {
	Level string `json:"level"` // debug, info, warn or error
}

// Error is the body of every answer that is not the one asked for.
type Error struct {
	Message string `json:"error"`          // what is wrong
	Hint    string `json:"hint,omitempty"` // what would be right

	forbidden bool // it came with 403
}

// ErrForbidden is what an [Error] is if the daemon does not do it for this user.
var ErrForbidden = errors.New("forbidden")

// Is makes errors.Is find ErrForbidden.
func (e *Error) Is(target error) bool { return target == ErrForbidden && e.forbidden }

// Error returns the message and, after a semicolon, the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}
