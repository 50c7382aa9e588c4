package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"ptthqd/pkg/wire"
)

// Size is a number of bytes. Its text has a unit: "256MiB".
type Size int64

var sizeUnits = []struct {
	name string
	size Size
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// String returns the size in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s%u.size == 0 && s != 0 {
			return fmt.Sprintf("%d%s", s/u.size, u.name)
		}
	}
	return "0B"
}

func parseSize(text string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/int64(u.size) {
			break
		}
		return Size(n) * u.size, nil
	}
	return 0, fmt.Errorf("%q is not a size", text)
}

// Limits bound all that a peer, a stranger or a program behind a mapping can make grow. Each is a
// key of the table [limits] and has a safe default, which [DefaultLimits] returns. limitKeys
// documents each one, for this struct and for the manual.
type Limits struct {
	// Handshakes, of a relay.
	Handshakes          int           // in progress, in all
	HandshakesPerSource int           // in progress, for each source address
	HandshakeTimeout    time.Duration // until a handshake must be done
	RetryRate           int           // handshakes per second above which Retry validates addresses
	AuthPenalty         time.Duration // for which a source is ignored after a failed authentication
	AuthPenaltyMax      time.Duration // to which penalties add up
	PenaltySources      int           // sources with a penalty that are remembered

	// Links and the streams on them.
	Links            int           // of a relay
	StreamsPerPeer   int           // at once, on one peer's link, opened by that peer
	Streams          int           // joined at once by a relay, in all
	OpensPerSecond   int           // of one peer, sustained; twice as many in a burst
	PendingTips      int           // streams of one peer whose first tip is not here yet
	PendingTipsTotal int           // the same of all peers
	TipTimeout       time.Duration // until a first tip must be here
	ParkedResumes    int           // resumes that a relay holds for an absent server
	ParkTimeout      time.Duration // for which it holds them

	// Sessions, at both ends.
	Sessions           int  // in all
	SessionsPerClient  int  // of a server: of one client
	SessionsPerMapping int  // of a client: of one mapping
	DetachedPerClient  int  // of a server: sessions of one client that wait to be resumed
	Tombstones         int  // of a server: sessions that have ended and are remembered
	SessionWindow      Size // the largest window of a session, for each direction
	SessionMemory      Size // promised above the floor of 64 KiB for each direction, in all
	RetainedMemory     Size // sent and not acknowledged above the floor, in all
	LinkMemory         Size // promised by the links above 1 MiB each, in all

	// Waiting, at the ends.
	HeldConnections int           // of a client: accepted with no live link
	HoldTimeout     time.Duration // for which it holds them
	Dials           int           // of a server: in progress, in all
	DialsPerTarget  int           // of a server: in progress, to one address
	DialTimeout     time.Duration // until a target must answer, the resolver included

	// The process.
	SpareDescriptors int           // file descriptors that new connections leave alone
	ControlRequests  int           // on the control socket, at once
	ControlTimeout   time.Duration // until a request there must be read and answered
}

// limitKey is a key of [limits]. The type of its field, int, Duration or Size, is the type of the
// key. def, min and max are plain numbers, nanoseconds or bytes.
type limitKey struct {
	name          string
	roles         []Role
	field         func(*Limits) any
	def, min, max int64
	doc           string
}

var (
	relayOnly  = []Role{RoleRelay}
	clientOnly = []Role{RoleClient}
	serverOnly = []Role{RoleServer}
	bothEnds   = []Role{RoleClient, RoleServer}
	whoAccepts = []Role{RoleRelay, RoleServer} // streams; a client opens them
)

const (
	million = 1_000_000
	second  = int64(time.Second)
	hour    = int64(time.Hour)
	mib     = 1 << 20
	gib     = 1 << 30
)

// The defaults suit a host with 1 GiB of memory. Their sources: an idle peer costs a relay 80 KiB,
// an idle stream 14 KiB (measured); each session may fill 64 KiB in each direction outside any
// budget (PROTOCOL.md, section 5 rule 3); the times of tips, parking and holding are those of
// PROTOCOL.md, sections 3 and 4.
var limitKeys = []limitKey{
	{
		"handshakes", relayOnly, func(l *Limits) any { return &l.Handshakes }, 512, 1, million,
		"QUIC handshakes in progress at once. More are refused; the nodes that dial try again.",
	},
	{
		"handshakes_per_source", relayOnly, func(l *Limits) any { return &l.HandshakesPerSource },
		32, 1, million,
		"QUIC handshakes in progress at once from one IPv4 address or IPv6 /64, and no more than " +
			"an eighth of what is left of handshakes. A failed one counts for a second at least. " +
			"Peers behind one NAT share this limit. So where peers were within the last day, " +
			"each of them adds one, as many failed handshakes do not count, and the share is a " +
			"half of what is left of handshakes.",
	},
	{
		"handshake_timeout", relayOnly, func(l *Limits) any { return &l.HandshakeTimeout },
		10 * second, second, 60 * second,
		"How long a handshake may take.",
	},
	{
		"retry_rate", relayOnly, func(l *Limits) any { return &l.RetryRate }, 200, 1, million,
		"Handshakes per second above which a node must first prove its address (QUIC Retry, one " +
			"more round trip). It must also do so while a quarter of handshakes, or of " +
			"handshakes_per_source, is in progress with unproved addresses.",
	},
	{
		"auth_penalty", relayOnly, func(l *Limits) any { return &l.AuthPenalty },
		5 * second, 0, hour,
		"The time that each handshake with an unknown key, or a worthless signature, adds to the " +
			"penalty of its source. Once a penalty exceeds 15 seconds, the source has an eighth " +
			"of handshakes_per_source until the penalty ends. A source where a peer was within " +
			"the last day has no penalty, so peers behind a NAT don't pay for a stranger there. " +
			`A reload ends all penalties. "0s" disables them.`,
	},
	{
		"auth_penalty_max", relayOnly, func(l *Limits) any { return &l.AuthPenaltyMax },
		600 * second, 0, 24 * hour,
		"The longest penalty of one source.",
	},
	{
		"penalty_sources", relayOnly, func(l *Limits) any { return &l.PenaltySources },
		65536, 1, 16 * million,
		"Sources with a penalty that are remembered; the one that ends first is forgotten first.",
	},
	{
		"links", relayOnly, func(l *Limits) any { return &l.Links }, 16384, 1, million,
		"Peers that are connected at once. An idle peer costs about 80 KiB of memory.",
	},
	{
		"streams_per_peer", whoAccepts, func(l *Limits) any { return &l.StreamsPerPeer },
		8192, 1, million,
		"Streams that one peer may have open at once on its link: at a relay those of one " +
			"client, at a server those that one relay brings.",
	},
	{
		"streams", relayOnly, func(l *Limits) any { return &l.Streams }, 65536, 1, 16 * million,
		"Forwarded connections at once, in all.",
	},
	{
		"opens_per_second", whoAccepts, func(l *Limits) any { return &l.OpensPerSecond },
		10000, 1, million,
		"New connections per second from one client, sustained; twice as many may come at once. " +
			"More are refused with 429. At a relay a refused request counts tenfold; requests " +
			"beyond that wait.",
	},
	{
		"pending_tips", whoAccepts, func(l *Limits) any { return &l.PendingTips }, 512, 1, million,
		"Streams of one peer that have not yet said what they want. More wait.",
	},
	{
		"pending_tips_total", relayOnly, func(l *Limits) any { return &l.PendingTipsTotal },
		8192, 1, 16 * million,
		"Streams of all peers that have not yet said what they want. More are answered with 429.",
	},
	{
		"tip_timeout", whoAccepts, func(l *Limits) any { return &l.TipTimeout },
		5 * second, second, 60 * second,
		"How long a new stream may take to say what it wants.",
	},
	{
		"parked_resumes", relayOnly, func(l *Limits) any { return &l.ParkedResumes },
		16384, 1, million,
		"Connections that wait at the relay for their server's link. Half of them may be new " +
			"ones, a sixteenth those of one client. More are answered with 503.",
	},
	{
		"park_timeout", relayOnly, func(l *Limits) any { return &l.ParkTimeout },
		5 * second, 0, 60 * second,
		"How long a connection to resume waits at the relay for its server's link; so does a new " +
			"one whose server was connected within the last minute. 0: not at all. In the " +
			"relay's first minute a new connection waits 12 s.",
	},
	{
		"sessions", bothEnds, func(l *Limits) any { return &l.Sessions }, 16384, 1, million,
		"Forwarded connections at once, in all, those that wait to be resumed included. Each may " +
			"need 128 KiB of memory when its reader stalls.",
	},
	{
		"sessions_per_client", serverOnly, func(l *Limits) any { return &l.SessionsPerClient },
		8192, 1, million,
		"Forwarded connections at once of one client. More are refused with 429.",
	},
	{
		"sessions_per_mapping", clientOnly, func(l *Limits) any { return &l.SessionsPerMapping },
		8192, 1, million,
		"Connections at once through one mapping. More wait in the listener's queue.",
	},
	{
		"detached_per_client", serverOnly, func(l *Limits) any { return &l.DetachedPerClient },
		8192, 1, million,
		"Forwarded connections of one client that wait to be resumed. When there are more, those " +
			"that have waited longest end.",
	},
	{
		"tombstones", serverOnly, func(l *Limits) any { return &l.Tombstones },
		65536, 1, 16 * million,
		"Connections that have ended and are remembered for two minutes, so that a client that " +
			"lost the last message learns how they ended.",
	},
	{
		"session_window", bothEnds, func(l *Limits) any { return &l.SessionWindow },
		wire.MaxWindow, wire.InitialWindow, wire.MaxWindow,
		"The most bytes in flight in one direction of one connection. Twice the product of " +
			"bandwidth and round trip fills a path.",
	},
	{
		"session_memory", bothEnds, func(l *Limits) any { return &l.SessionMemory },
		256 * mib, mib, 1024 * gib,
		"The bytes that peers may be allowed to send, over all connections together, beyond the " +
			"64 KiB that each has in each direction.",
	},
	{
		"retained_memory", bothEnds, func(l *Limits) any { return &l.RetainedMemory },
		256 * mib, mib, 1024 * gib,
		"The bytes that are kept until they are acknowledged, of all connections together, " +
			"beyond the 64 KiB that each has in each direction.",
	},
	{
		"link_memory", nil, func(l *Limits) any { return &l.LinkMemory },
		256 * mib, mib, 1024 * gib,
		"The bytes that all links together may allow peers to send, beyond the 1 MiB that each " +
			"has. A link grows to 32 MiB at most, as its path needs.",
	},
	{
		"held_connections", clientOnly, func(l *Limits) any { return &l.HeldConnections },
		1024, 0, million,
		"Accepted connections that wait while no relay is connected. More are reset.",
	},
	{
		"hold_timeout", clientOnly, func(l *Limits) any { return &l.HoldTimeout },
		5 * second, 0, 60 * second,
		"How long an accepted connection waits while no relay is connected.",
	},
	{
		"dials", serverOnly, func(l *Limits) any { return &l.Dials }, 4096, 1, million,
		"Connections to targets that are being made at once, in all. More wait their turn within " +
			"dial_timeout.",
	},
	{
		"dials_per_target", serverOnly, func(l *Limits) any { return &l.DialsPerTarget },
		256, 1, million,
		"Connections to one target that are being made at once. More wait their turn within " +
			"dial_timeout.",
	},
	{
		"dial_timeout", serverOnly, func(l *Limits) any { return &l.DialTimeout },
		10 * second, second, 600 * second,
		"How long a target may take to answer, the resolver included.",
	},
	{
		"spare_descriptors", bothEnds, func(l *Limits) any { return &l.SpareDescriptors },
		64, 8, million,
		"File descriptors that new connections leave alone: when no others are free, a client " +
			"stops accepting until some come back, and a server refuses with 429.",
	},
	{
		"control_requests", nil, func(l *Limits) any { return &l.ControlRequests }, 16, 1, 1024,
		"Requests on the control socket at once. More wait.",
	},
	{
		"control_timeout", nil, func(l *Limits) any { return &l.ControlTimeout },
		30 * second, second, 600 * second,
		"How long a request on the control socket may take to be read; its answer may take twice " +
			"as long.",
	},
}

// DefaultLimits returns the limits that hold where the configuration says nothing.
func DefaultLimits() Limits {
	var l Limits
	for _, k := range limitKeys {
		k.set(&l, k.def)
	}
	return l
}

func (k limitKey) set(l *Limits, n int64) {
	switch field := k.field(l).(type) {
	case *int:
		*field = int(n)
	case *time.Duration:
		*field = time.Duration(n)
	case *Size:
		*field = Size(n)
	}
}

// kind returns the type of the key as the manual names it.
func (k limitKey) kind() string {
	switch k.field(new(Limits)).(type) {
	case *time.Duration:
		return typeDuration
	case *Size:
		return typeSize
	}
	return typeInteger
}

// text returns n as it is written in TOML.
func (k limitKey) text(n int64) string {
	switch k.kind() {
	case typeDuration:
		return strconv.Quote(formatDuration(time.Duration(n)))
	case typeSize:
		return strconv.Quote(Size(n).String())
	}
	return strconv.FormatInt(n, 10)
}

// number returns the value of the limit in its base unit.
func (k limitKey) number(l *Limits) int64 {
	switch field := k.field(l).(type) {
	case *int:
		return int64(*field)
	case *time.Duration:
		return int64(*field)
	case *Size:
		return int64(*field)
	}
	panic("internal error: the limit " + k.name + " has an unknown type")
}

func limitNamed(name string) limitKey {
	for _, k := range limitKeys {
		if k.name == name {
			return k
		}
	}
	panic("internal error: there is no limit " + name)
}
