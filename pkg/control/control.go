// Package control is the API of the daemon's control socket: HTTP over a Unix socket, with JSON
// bodies, so that curl can use it:
//
//	curl --unix-socket /run/ptthqd/control.sock http://ptthqd/v1/status
//
// Its one idea: the types here are the documented, stable form of requests and answers.
// docs/control.md is made from them. Times are RFC 3339, durations are seconds, bytes are numbers,
// and absent values are left out. Fields may be added within a version.
//
// [SocketPath] says which socket belongs to a config; it depends on the config's path alone. A
// daemon binds it with [Listen], and serves its [Backend] there with [Handler]. A command asks with
// a [Client], and need not import the daemon. The errors of a Client say what to do. The package
// keeps no state; a Backend is called from several goroutines at once.
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

// Backend answers requests: the daemon. Its methods are called from several goroutines at once.
type Backend interface {
	// Status returns the state of the daemon.
	Status() *Status
	// Reload reloads the config at once and returns when that has succeeded or failed.
	Reload(ctx context.Context) *Reload
	// Explain returns the rule that decides. It fails only if the question makes no sense.
	Explain(q Question) (*Explanation, error)
	// Trace tests the way of a connection, hop by hop: of a mapping at a client, to a target at a
	// server. It fails only if the question makes no sense.
	Trace(ctx context.Context, q TraceQuestion) (*Trace, error)
	// LogLevel returns the level in force.
	LogLevel() LogLevel
	// SetLogLevel changes the level until the next call, or until a reload changes log_level. It
	// fails if there is no such level.
	SetLogLevel(LogLevel) error
}

// Seconds is a duration. In JSON it is a number of seconds, to the microsecond.
type Seconds time.Duration

// MarshalJSON writes seconds: 0.0015.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, time.Duration(s).Round(time.Microsecond).Seconds(), 'f', -1,
		64), nil
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
	Role string `json:"role"` // relay, server or client
	// of a server or client, from its own config
	ID string `json:"id,omitempty"`
	// this node's, as `ptthqd pubkey` prints it
	PublicKey string     `json:"public_key"`
	Version   string     `json:"version"`             // of the program that runs
	PID       int        `json:"pid"`                 // its process ID
	State     string     `json:"state"`               // starting, running or draining
	Started   time.Time  `json:"started"`             // when the process began
	Uptime    Seconds    `json:"uptime"`              // since then
	Summary   string     `json:"summary"`             // one line for people: how it stands
	Config    Config     `json:"config"`              // what it runs by
	Listeners []Listener `json:"listeners,omitempty"` // of a relay: where links come in
	// of a client or server: to each relay of the config
	Links    []Link    `json:"links,omitempty"`
	Mappings []Mapping `json:"mappings,omitempty"` // of a client
	Services []Service `json:"services,omitempty"` // of a server
	// of a relay: all that the config names, connected or not
	Peers []Peer `json:"peers,omitempty"`
	// of a relay: nodes that knock with a key that the config does not name
	Waiting []Waiting `json:"waiting,omitempty"`
	// the forwarded connections, the oldest first
	Connections []Connection `json:"connections,omitempty"`
	Warnings    []Warning    `json:"warnings,omitempty"` // what a person should act on
	// of a client or server: within the last minute
	Shortages []Shortage `json:"shortages,omitempty"`
	Counters  Counters   `json:"counters"` // since the process began
	Process   Process    `json:"process"`  // what it takes of its host
}

// Config tells which config runs and how the last reload went.
type Config struct {
	File     string    `json:"file"`      // the main file
	Files    []string  `json:"files"`     // all that were read, the main one first
	Hash     string    `json:"hash"`      // of their contents
	Loaded   time.Time `json:"loaded"`    // when this config came into force
	LogLevel string    `json:"log_level"` // in force: debug, info, warn or error
	// the last one, good or bad; absent if there was none
	Reload *Reload `json:"reload,omitempty"`
}

// Reload is how a reload went.
type Reload struct {
	// the files are in force; if false, nothing has changed
	OK bool      `json:"ok"`
	At time.Time `json:"at"` // when it was done
	// command, signal, watch, or retry after a fault of the host
	Trigger string  `json:"trigger"`
	Took    Seconds `json:"took"` // from reading to being in force
	// a line for people for each difference; none if nothing differed
	Changes []string `json:"changes,omitempty"`
	// if nothing differed: what reloads of the last 10 s have changed, by themselves as a rule
	Already []string `json:"already,omitempty"`
	// if not ok: config (a fault in the text), restart (only a restart can do it) or host
	Cause  string  `json:"cause,omitempty"`
	Error  string  `json:"error,omitempty"`  // if not ok: why, in words
	Faults []Fault `json:"faults,omitempty"` // if the cause is config: each with its place
	// if the cause is host: it is tried again by itself until it is in force
	Retrying bool `json:"retrying,omitempty"`
	// what is legal and surely not meant, with its place
	Warnings []string `json:"warnings,omitempty"`
	// if ok: a change outside of the config, such as a new key, that a restart alone takes over
	Restart string `json:"restart,omitempty"`
}

// The causes of a failed reload.
const (
	CauseConfig  = "config"
	CauseRestart = "restart"
	CauseHost    = "host"
)

// Fault is one fault in the text of the config.
type Fault struct {
	File   string `json:"file"`   // as it was named or found
	Line   int    `json:"line"`   // from 1
	Column int    `json:"column"` // in characters, from 1
	// which key of the config, as peers.public_key; absent if none is to blame
	Key     string `json:"key,omitempty"`
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
	// as in the config, one address of it: [::]:30380, systemd:NAME
	Listen  string `json:"listen"`
	Address string `json:"address,omitempty"` // where it is bound; absent while it is not
	Problem string `json:"problem,omitempty"` // why it is not: "failed: ..., retrying"
	Hint    string `json:"hint,omitempty"`    // what to do about that
	GRO     bool   `json:"gro"`               // the kernel coalesces what arrives
	// bytes, as the kernel counts; 0 if it doesn't say
	ReceiveBuffer int    `json:"receive_buffer"`
	SendBuffer    int    `json:"send_buffer"`     // bytes
	Packets       uint64 `json:"packets"`         // received
	Dropped       uint64 `json:"packets_dropped"` // lost as the receive buffer was full
	SendFailures  uint64 `json:"send_failures"`   // packets that the kernel refused to send
}

// Figures are how a link does.
type Figures struct {
	RTT Seconds `json:"rtt"` // smoothed round trip
	// share of the packets sent by this end that were lost, 0 to 1
	Loss          float64 `json:"loss"`
	PacketsSent   uint64  `json:"packets_sent"`   // by this end
	PacketsLost   uint64  `json:"packets_lost"`   // of those
	BytesSent     uint64  `json:"bytes_sent"`     // by this end, with QUIC's overhead
	BytesReceived uint64  `json:"bytes_received"` // with QUIC's overhead
	GSO           bool    `json:"gso"`            // packets leave in segments
	ParitySent    uint64  `json:"parity_sent"`    // packets of parity, against loss, sent besides
	// lost on the way to this end, and made again from the other end's parity
	Restored uint64 `json:"packets_restored"`
}

// Socket is what the kernel gives the UDP socket of a link.
type Socket struct {
	GRO bool `json:"gro"` // the kernel coalesces what arrives
	// bytes, as the kernel counts; 0 if it doesn't say
	ReceiveBuffer int    `json:"receive_buffer"`
	Dropped       uint64 `json:"packets_dropped"` // lost as the receive buffer was full
}

// Link is a client's or server's link to one relay of its config.
type Link struct {
	Relay     string `json:"relay"`      // the address in the config
	PublicKey string `json:"public_key"` // the relay's, in the config
	// connected, connecting, or waiting (before the next try)
	State       string    `json:"state"`
	Since       time.Time `json:"since"`              // when it came up or went down
	Address     string    `json:"address,omitempty"`  // the relay's, resolved; if connected
	Figures     *Figures  `json:"figures,omitempty"`  // if connected
	Connections int       `json:"connections"`        // that are attached over it
	Socket      *Socket   `json:"socket,omitempty"`   // if connected
	Attempts    int       `json:"attempts,omitempty"` // dials since it went down
	// why the last link ended or the last dial failed
	LastError string `json:"last_error,omitempty"`
	// the same in one word of those in docs/metrics.md
	LastReason  string    `json:"last_reason,omitempty"`
	NextAttempt time.Time `json:"next_attempt,omitzero"` // if waiting
	// what the relay calls this node; absent until it has said so
	Name string `json:"name,omitempty"`
	// what is wrong beyond that, connected or not: another node holds this node's key
	Problem string `json:"problem,omitempty"`
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
	ID string `json:"id"` // as in the config
	// by which it is still understood, as in the config
	OtherNames  []string  `json:"other_names,omitempty"`
	Role        string    `json:"role"`              // client or server
	Connected   bool      `json:"connected"`         // it has a link
	Since       time.Time `json:"since,omitzero"`    // when the link was made, if connected
	Address     string    `json:"address,omitempty"` // where it comes from, if connected
	Figures     *Figures  `json:"figures,omitempty"` // if connected
	Connections int       `json:"connections"`       // joined over its link
	// when its last link ended, if it is not connected and ever was
	LastSeen time.Time `json:"last_seen,omitzero"`
	Source   string    `json:"source"` // where it is written: file:line
	// what is wrong with it: several nodes hold its key
	Problem string `json:"problem,omitempty"`
}

// Waiting is a node that dials a relay with a key that its config does not name. It has proved that
// it holds the key. A relay remembers 256 of them, each until it has been silent for 15 minutes.
type Waiting struct {
	Key     string    `json:"key"`     // its public key, as a `public_key` of [[peers]] takes it
	Address string    `json:"address"` // where it came from last
	Since   time.Time `json:"since"`   // its first try
	Last    time.Time `json:"last"`    // its last try
	Tries   uint64    `json:"tries"`   // how often it has come
}

// Connection is one forwarded TCP connection.
type Connection struct {
	// the same at the client, the relay and the server
	ID string `json:"id"`
	// opening, attached, detached, closing; at a relay admitted, parked, opening, open, refused
	State string `json:"state"`
	// when it came into that state; at a relay: when its stream came
	Since   time.Time `json:"since"`
	Opened  time.Time `json:"opened"`            // when it began
	Age     Seconds   `json:"age"`               // since then
	Mapping string    `json:"mapping,omitempty"` // at a client: through which it came
	Client  string    `json:"client,omitempty"`  // the client's ID; absent at the client
	Source  string    `json:"source"`            // the TCP client's address (P1)
	Server  string    `json:"server,omitempty"`  // the server's ID; absent at the server
	Target  string    `json:"target"`            // what the client asked for, canonical (P5)
	Peer    string    `json:"peer,omitempty"`    // at a server: the address that was dialled (P5)
	// from P1 towards P5; at a relay with the framing
	BytesUp   uint64 `json:"bytes_up"`
	BytesDown uint64 `json:"bytes_down"`      // from P5 towards P1
	Resumes   int    `json:"resumes"`         // how often it has gone on over a new stream
	Relay     string `json:"relay,omitempty"` // over which it is attached, or was last
}

// Warning is something that a person should act on.
type Warning struct {
	Text string `json:"text"`           // what is wrong
	Hint string `json:"hint,omitempty"` // what to do about it
}

// Shortage is a peer whose connections have to do with 64 KiB a round trip each, as its share of a
// memory budget is used up.
type Shortage struct {
	// the budget, by its name in [limits]: session_memory or retained_memory
	Limit string `json:"limit"`
	Peer  string `json:"peer"` // the ID of the client, at a server, or of the server, at a client
	Held  int64  `json:"held"` // bytes of the budget that its connections hold
	Free  int64  `json:"free"` // bytes that nobody holds; no peer may hold more than that
}

// Counters count since the process began.
type Counters struct {
	Opened uint64 `json:"opened"` // connections that were opened
	// connections that were refused, by status code
	Refused map[string]uint64 `json:"refused,omitempty"`
	// connections that have ended, by how; not at a relay
	Ended map[string]uint64 `json:"ended,omitempty"`
	// times that a connection went on over a new stream
	Resumed uint64 `json:"resumed"`
	// connections that a limit has kept out or made wait, by its name in [limits]
	LimitsHit map[string]uint64 `json:"limits_hit,omitempty"`
	BytesUp   uint64            `json:"bytes_up"`       // from P1 towards P5
	BytesDown uint64            `json:"bytes_down"`     // from P5 towards P1
	Reloads   uint64            `json:"reloads"`        // that came into force
	BadReload uint64            `json:"reloads_failed"` // that changed nothing
}

// Process is what the process takes of its host.
type Process struct {
	Goroutines int    `json:"goroutines"`  // at this moment
	HeapBytes  uint64 `json:"heap_bytes"`  // in use by objects
	Files      int    `json:"files"`       // open file descriptors; 0 if the system doesn't say
	FilesLimit uint64 `json:"files_limit"` // of RLIMIT_NOFILE; 0 if there is none
	// bytes of the session budgets that are promised or kept
	MemoryUsed  int64 `json:"memory_used"`
	MemoryLimit int64 `json:"memory_limit"` // bytes of the session budgets

	// bytes that the control groups allowed when the daemon began; 0 if they have no limit
	GroupMemory int64 `json:"group_memory"`
	// bytes that Go's runtime tries to stay below (GOMEMLIMIT); 0 if there is no limit
	GoMemoryLimit int64 `json:"go_memory_limit"`

	// lines of the log that are missing in it, as nobody read it in time or it could not be written
	LogDropped uint64 `json:"log_dropped"`
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
	Role     string `json:"role"` // of the node that answers
	// false at a client: it asks, the relay and the server decide
	Decides bool   `json:"decides"`
	Allowed bool   `json:"allowed"`        // by this node
	Rule    string `json:"rule,omitempty"` // the rule or service that decides, as written
	Reason  string `json:"reason"`         // in words
	Source  string `json:"source"`         // where it is written, or would have to be: file:line
	Dial    string `json:"dial,omitempty"` // at a server that allows it: what is dialled
	Next    string `json:"next"`           // what else has a say, in words
}

// TraceQuestion asks for a Trace.
type TraceQuestion struct {
	Mapping string `json:"mapping,omitempty"` // at a client: the name of a mapping that is enabled
	Target  string `json:"target,omitempty"`  // at a server: the target of a service, not a range
}

// Trace is what became of a connection that was made to see its way. It carries nothing: it is
// opened and closed.
type Trace struct {
	OK bool `json:"ok"` // the target has been reached
	// its ID in the logs of all nodes, if it came to that
	Connection string `json:"connection,omitempty"`
	// in the order of the way; with several relays, two for each
	Hops []Hop `json:"hops"`
}

// Hop is one step of a Trace.
type Hop struct {
	From string `json:"from"` // this node, a relay's address, or the server's ID
	To   string `json:"to"`   // the next of these, or the target
	OK   bool   `json:"ok"`   // the step was made
	// a round trip to a relay; from there to the server; the dial of the target
	Took  Seconds `json:"took"`
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

	forbidden bool // the answer was 403
}

// ErrForbidden is what an [Error] wraps if the daemon refuses this user.
var ErrForbidden = errors.New("forbidden")

// Is reports whether target is ErrForbidden and the daemon has refused this user.
func (e *Error) Is(target error) bool { return target == ErrForbidden && e.forbidden }

// Error returns the message and, after a semicolon, the hint.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + "; " + e.Hint
}
