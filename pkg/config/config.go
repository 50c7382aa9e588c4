// Package config turns the text of /etc/ptthq.toml, and of the files that it includes, into one immutable, validated value,
// and tells how two such values differ.
//
// The one idea: what is wrong is said once, here, with its file, line and column, all at once, in words for an
// administrator; behind this package a configuration cannot be wrong. Faults of the text are [Errors], faults of the host
// a [*HostError]. The library decodes TOML; where each key stands is found by an index of our own (index.go), since the
// library gives no place for unknown keys, nor for anything within an array of tables.
//
// The road: [ReadFiles] reads bytes, [Parse] judges them, [Load] does both, [Compare] says what a reload has to change,
// and [Keys] documents every key. A Config is never changed once it is made, so that any goroutine may read it.
//
//	c, err := config.Load("/etc/ptthq.toml")
package config

import (
	"io/fs"
	"log/slog"
	"net/netip"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
)

// Role is what a node is.
type Role string

// The three roles.
const (
	RoleRelay  Role = "relay"
	RoleServer Role = "server"
	RoleClient Role = "client"
)

// What becomes of the running connections of a mapping that is removed or disabled.
const (
	OnRemoveKeep  = "keep"  // they go on until they end
	OnRemoveClose = "close" // they end with it
)

// The defaults of keys that have one; those of [limits] are in limits.go.
const (
	DefaultResumeTimeout = 10 * time.Minute
	DefaultDrainTimeout  = 5 * time.Second
	DefaultListenMode    = fs.FileMode(0o660)
)

// Config is one role's configuration. What belongs to another role is zero.
type Config struct {
	Path    string   // of the main file, as it was given
	Files   []string // all files read, the main one first
	Hash    string   // over all of their bytes; see [Snapshot]
	Include []string // the patterns; nil for the default

	Role           Role
	ID             string // of a client or server; for people alone
	PrivateKeyFile string // an explicit one, else the service's credential, else the default path; it need not exist
	LogLevel       slog.Level
	AdminGroup     string        // whose members may do all at the control socket; empty: none
	ResumeTimeout  time.Duration // client: what it asks; server: what it grants at most
	DrainTimeout   time.Duration
	Metrics        Metrics
	Limits         Limits
	PenaltyExempt  []netip.Prefix // relay: limits.auth_penalty_exempt

	Listen   []Listen         // relay: UDP or Systemd, at least one
	Peers    []policy.Peer    // relay
	Relays   []Relay          // client and server: at least one
	Services []policy.Service // server
	Mappings []Mapping        // client: the disabled ones too

	dirs []string // where included files were looked for
}

// Metrics says where metrics are served.
type Metrics struct {
	Listen      Listen // TCP; zero for nowhere
	AllowPublic bool
	Hosts       []string // names besides this host's by which it may be asked, in lower case
}

// Relay is a relay to connect to.
type Relay struct {
	Address string            // "host:port", in lower case
	Keys    []ident.PublicKey // one; more while its key is being changed
	Source  policy.Source
}

// Mapping is a listener of a client, and where it leads.
type Mapping struct {
	Name          string
	Listen        Listen // TCP, Unix or Systemd
	ListenMode    fs.FileMode
	ListenGroup   string // a Unix socket's, by name or number; empty: the daemon's own
	AllowPublic   bool
	Server        string
	Target        policy.Target
	Enabled       bool
	OnRemove      string        // OnRemoveKeep or OnRemoveClose
	ResumeTimeout time.Duration // its own, or the configuration's
	Source        policy.Source
}

// Load reads and judges the configuration at path. The error is [Errors] or a [*HostError].
func Load(path string) (*Config, error) {
	s, err := ReadFiles(path)
	if err != nil {
		return nil, err
	}
	return Parse(s)
}
