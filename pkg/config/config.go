// Package config turns the text of /etc/ptthq.toml and its included files into one validated value.
//
// Its one idea: every fault is reported here, all faults at once, each with file, line and column
// and a hint for an administrator. Behind this package a configuration cannot be wrong.
//
//	c, err := config.Load("/etc/ptthq.toml")
//
// The steps of Load, which a daemon takes one by one:
//
//   - [ReadFiles] reads the bytes of all files into a [Snapshot]. Its errors are faults of the host
//     ([*HostError]): the same text may be fine later.
//   - [Parse] turns a Snapshot into a [Config]. Its errors are faults of the text ([Errors]). A
//     library decodes the TOML, and pkg/config/tomlpos finds where each key stands.
//   - [Config.Warnings] returns what is legal and probably not meant.
//   - [Compare] returns what a reload has to change to go from one Config to another ([Diff]).
//   - [Watches] returns the paths to watch for changes.
//
// [Keys] documents every key; the manual and the hints are made from it. Limits are in limits.go.
//
// Config, Snapshot and Diff never change once they are made, so any goroutine may read them.
package config

import (
	"io/fs"
	"log/slog"
	"net/netip"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
)

// Role is the role of a node.
type Role string

// The three roles.
const (
	RoleRelay  Role = "relay"
	RoleServer Role = "server"
	RoleClient Role = "client"
)

// The values of on_remove: what happens to the running connections of a mapping that is removed or
// disabled.
const (
	OnRemoveKeep  = "keep"  // they go on until they end
	OnRemoveClose = "close" // they end with the mapping
)

// The defaults of keys; those of the table [limits] are in limits.go.
const (
	DefaultResumeTimeout = 10 * time.Minute
	DefaultDrainTimeout  = 5 * time.Second
	DefaultListenMode    = fs.FileMode(0o660)
)

// Config is the configuration of one node. Fields of another role are zero.
type Config struct {
	Path    string   // of the main file, as it was given
	Files   []string // all files read, the main one first
	Hash    string   // over all of their bytes; see [Snapshot]
	Include []string // the patterns; nil for the default

	Role            Role
	ID              string // of a client or server; shown to people, decides nothing
	PrivateKeyFile  string // the key's, else the service's credential, else KeyFileOf(Path)
	LogLevel        slog.Level
	AdminGroup      string        // its members may make all requests at the control socket
	ResumeTimeout   time.Duration // a client asks for it, a server grants it at most
	DrainTimeout    time.Duration
	AdaptProcessors bool // use as few processors as the work needs
	Metrics         Metrics
	Limits          Limits
	PenaltyExempt   []netip.Prefix // relay: limits.auth_penalty_exempt

	Listen   []Listen         // relay: UDP or Systemd, at least one
	Peers    []policy.Peer    // relay
	Relays   []Relay          // client and server: at least one
	Services []policy.Service // server
	Mappings []Mapping        // client: the disabled ones too

	dirs []string // where included files were looked for
}

// Metrics is the table [metrics]: where metrics are served.
type Metrics struct {
	Listen      Listen // TCP; zero for nowhere
	AllowPublic bool
	Hosts       []string // names besides this host's that requests may use, in lower case
}

// Relay is a relay to which a client or server connects.
type Relay struct {
	Address string            // "host:port", in lower case
	Keys    []ident.PublicKey // one; several while the key is being changed
	Source  policy.Source
}

// Mapping is a listener of a client and the target to which it leads.
type Mapping struct {
	Name          string
	Listen        Listen // TCP, Unix or Systemd
	ListenMode    fs.FileMode
	ListenGroup   string // of a Unix socket, by name or number; empty: the daemon's own
	AllowPublic   bool
	Server        string
	Target        policy.Target
	Enabled       bool
	OnRemove      string        // OnRemoveKeep or OnRemoveClose
	ResumeTimeout time.Duration // its own, or the configuration's
	Source        policy.Source
}

// Load reads and parses the configuration at path. The error is [Errors] or a [*HostError].
func Load(path string) (*Config, error) {
	s, err := ReadFiles(path)
	if err != nil {
		return nil, err
	}
	return Parse(s)
}
