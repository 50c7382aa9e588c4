package config

import (
	"slices"
	"strings"
)

// The types of keys, in the words of the manual.
const (
	typeString   = "string"
	typeStrings  = "string or list of strings"
	typeBoolean  = "boolean"
	typeInteger  = "integer"
	typeDuration = "duration" // a string: "30s"
	typeSize     = "size"     // a string: "256MiB"
	typeTable    = "table"
	typeTables   = "list of tables"
)

// Key documents one key of the configuration. Unknown keys, hints and the manual all follow from
// the one list of [Keys].
type Key struct {
	Name    string // "log_level", "peers.public_key", "limits.links"
	Type    string // "string", "string or list of strings", "duration", ...
	Roles   []Role // of whose configuration it can be a part; nil: of every role's
	Default string // as it would stand in the file; empty when there is none
	Example string // a line as it could stand in the file; empty for tables
	Doc     string // one or more sentences
}

// Table returns the table in which the key stands: "peers"; empty at the top.
func (k Key) Table() string {
	table, _, ok := strings.Cut(k.Name, ".")
	if !ok {
		return ""
	}
	return table
}

// allows reports whether the key may stand in a role's configuration. With an unknown role ("") all
// may.
func (k Key) allows(role Role) bool {
	return role == "" || len(k.Roles) == 0 || slices.Contains(k.Roles, role)
}

// Keys returns all keys, tables included, in the order in which the manual describes them.
func Keys() []Key { return slices.Clone(keys) }

var keys = append([]Key{
	{
		Name: "role", Type: typeString, Example: `role = "client"`,
		Doc: `What this node is: "relay", "server" or "client". One file describes one role.`,
	},
	{
		Name: "id", Type: typeString, Roles: bothEnds, Example: `id = "laptop"`,
		Doc: "The name of this node, as the relay's [[peers]] has it: 1 to 63 of a-z 0-9 . _ -, " +
			"beginning and ending in a letter or digit. It is for logs and status alone: the " +
			"relay knows a node by its key.",
	},
	{
		Name: "private_key_file", Type: typeString, Example: `private_key_file = "/etc/ptthq.key"`,
		Doc: "The file with the private key, relative to this file's directory. Nobody but the " +
			"daemon's user may be able to read it. Default: the credential ptthq.key if systemd " +
			"gives the service one, else this file's path with .key for .toml.",
	},
	{
		Name: "log_level", Type: typeString, Default: `"info"`, Example: `log_level = "debug"`,
		Doc: `The least severe messages that are logged: "debug", "info", "warn" or "error".`,
	},
	{
		Name: "admin_group", Type: typeString, Example: `admin_group = "ptthqd"`,
		Doc: "A group whose members may reload, change the log level, trace and profile at the " +
			"control socket, as root and the daemon's user may. With PrivateUsers=yes, as in the " +
			"packaged units, the daemon sees no group but its own.",
	},
	{
		Name: "include", Type: typeStrings, Example: `include = ["ptthq.d/*.toml"]`,
		Doc: "Files with more [[peers]], [[services]] and [[mappings]], as patterns relative to " +
			"this file's directory, read in sorted order. A wildcard matches no leading dot. The " +
			"daemon warns of other files in a directory NAME.d, except for leftovers of editors " +
			"and packages. Default: NAME.d/*.toml beside NAME.toml; [] for none.",
	},
	{
		Name: "resume_timeout", Type: typeDuration, Roles: bothEnds, Default: `"10m"`,
		Example: `resume_timeout = "10m"`,
		Doc: "How long a forwarded connection waits to be resumed after all paths are lost. A " +
			"client asks for this time, and a server grants no more than its own. A program sees " +
			"a lost path as silence for as long. For a connection pool that would rather get an " +
			"error and try again, such as a database client's, set less in its mapping: " +
			`resume_timeout = "30s".`,
	},
	{
		Name: "drain_timeout", Type: typeDuration, Default: `"5s"`, Example: `drain_timeout = "5s"`,
		Doc: "How long a daemon that is asked to stop lets its connections move or end. A client " +
			"or server waits only while data goes by in one of them.",
	},
	{
		Name: "adapt_processors", Type: typeBoolean, Default: "true",
		Example: "adapt_processors = false",
		Doc: "Whether the daemon uses one processor while that is enough, and more while all " +
			"that it uses are busy. That saves processor time, and makes bulk and idle round " +
			"trips faster; beside uploads a round trip can take longer. false: it uses the " +
			"processors that the host or its control group gives. The environment variable " +
			"GOMAXPROCS overrides both.",
	},
	{
		Name: "listen", Type: typeStrings, Roles: relayOnly, Default: `["[::]:30380"]`,
		Example: `listen = ["[::]:30380"]`,
		Doc: `The UDP addresses on which the relay is reached: "[::]:30380" for every address of ` +
			`both families, or a socket that systemd hands over, "systemd:NAME".`,
	},

	{
		Name: "peers", Type: typeTables, Roles: relayOnly,
		Doc: "The nodes that may connect to this relay.",
	},
	{
		Name: "peers.id", Type: typeStrings, Roles: relayOnly, Example: `id = "laptop"`,
		Doc: "The name by which others refer to the peer: 1 to 63 of a-z 0-9 . _ -, beginning " +
			"and ending in a letter or digit. While a peer is being renamed, a list of 8 at " +
			`most: ["storage", "nas"] is called storage from now on, and rules that name nas ` +
			"still mean it. No name belongs to two peers. When a name is taken out, the " +
			"connections under it end.",
	},
	{
		Name: "peers.role", Type: typeString, Roles: relayOnly, Example: `role = "client"`,
		Doc: `What the peer is: "client" or "server".`,
	},
	{
		Name: "peers.public_key", Type: typeStrings, Roles: relayOnly,
		Example: `public_key = "(what ptthqd pubkey prints there)"`,
		Doc: "The peer's public key, as `ptthqd pubkey` prints it there; a list while a key is " +
			"being changed. No two peers have the same.",
	},
	{
		Name: "peers.allowed_servers", Type: typeStrings, Roles: relayOnly, Default: "[]",
		Example: `allowed_servers = ["nas", "db:5432"]`,
		Doc: "The servers that a client may reach, by their IDs: * matches any characters, and ? " +
			`any one. ":TARGET" behind an ID narrows the rule to one target: "db:5432" is a port ` +
			`of the server's loopback, "db:postgres" a service by its name. The relay compares ` +
			"targets as the client writes them, so a service's name and its port are two " +
			"different targets.",
	},

	{
		Name: "relays", Type: typeTables, Roles: bothEnds,
		Doc: "The relays to which this node connects; it holds a link to each.",
	},
	{
		Name: "relays.address", Type: typeString, Roles: bothEnds,
		Example: `address = "relay.example.com:30380"`,
		Doc: "Host name or IP address, and UDP port (default 30380). A name is resolved anew at " +
			"each dial.",
	},
	{
		Name: "relays.public_key", Type: typeStrings, Roles: bothEnds,
		Example: `public_key = "(what ptthqd pubkey prints there)"`,
		Doc: "The relay's public key, as `ptthqd pubkey` prints it there. While the key is being " +
			"changed, a list, each key of which is accepted. Each relay must have a key of its " +
			"own: with one key for two relays, strangers could end their links.",
	},

	{
		Name: "services", Type: typeTables, Roles: serverOnly,
		Doc: "What clients may reach through this server.",
	},
	{
		Name: "services.name", Type: typeString, Roles: serverOnly, Example: `name = "ssh"`,
		Doc: "A name by which clients may ask for the service. It contains a letter, and neither " +
			`":" nor "/".`,
	},
	{
		Name: "services.target", Type: typeString, Roles: serverOnly, Example: `target = "22"`,
		Doc: `Where the service is: "22", a port of this host's loopback; "host:port"; ` +
			`"unix:/path"; or a range, "192.168.1.0/24:5900-5910", in which the client names the ` +
			"exact address. A network leaves out loopback, link-local and multicast addresses, " +
			"unless it is a part of them, and the server's own (see allow_local).",
	},
	{
		Name: "services.clients", Type: typeStrings, Roles: serverOnly, Default: "[]",
		Example: `clients = ["laptop", "ops-*"]`,
		Doc: "The IDs of the clients that may reach the service: * matches any characters, and ? " +
			"any one. Without any, nobody may.",
	},
	{
		Name: "services.allow_local", Type: typeBoolean, Roles: serverOnly, Default: "false",
		Example: "allow_local = true",
		Doc: "Lets a network in target contain the server's own addresses, and a host's name in " +
			"target mean the server's loopback, own or link-local addresses. Otherwise these are " +
			"refused, unless target names them as addresses.",
	},

	{
		Name: "mappings", Type: typeTables, Roles: clientOnly,
		Doc: "What this client listens on, and where the listeners lead.",
	},
	{
		Name: "mappings.name", Type: typeString, Roles: clientOnly, Example: `name = "nas-ssh"`,
		Doc: "The name of the mapping in logs, status and metrics: 1 to 64 printable characters " +
			"without spaces or quotes. Default: the listen address.",
	},
	{
		Name: "mappings.listen", Type: typeString, Roles: clientOnly,
		Example: `listen = "127.0.0.1:2200"`,
		Doc: `Where to listen: "2200", a port of the loopback of both families; ` +
			`"127.0.0.1:2200", "[::1]:2200"; "unix:NAME", a socket in the runtime directory; or ` +
			`"systemd:NAME", one that systemd hands over.`,
	},
	{
		Name: "mappings.listen_mode", Type: typeString, Roles: clientOnly, Default: `"0660"`,
		Example: `listen_mode = "0660"`,
		Doc:     "The permissions of a Unix socket, in octal, as a string.",
	},
	{
		Name: "mappings.listen_group", Type: typeString, Roles: clientOnly,
		Example: `listen_group = "database"`,
		Doc: "The group of a Unix socket, by name or number. The daemon must be a member: with " +
			"the service's unit that takes SupplementaryGroups= and PrivateUsers=no in a " +
			"drop-in. Default: the daemon's own group.",
	},
	{
		Name: "mappings.allow_public", Type: typeBoolean, Roles: clientOnly, Default: "false",
		Example: "allow_public = true",
		Doc: "Confirms that other hosts may connect to the listener. Otherwise `ptthqd check` " +
			"warns of such a listener.",
	},
	{
		Name: "mappings.server", Type: typeString, Roles: clientOnly, Example: `server = "nas"`,
		Doc: "The ID of the server to which the mapping leads.",
	},
	{
		Name: "mappings.target", Type: typeString, Roles: clientOnly, Example: `target = "22"`,
		Doc: `The target at the server: "22", a port of the server's loopback; "ssh", a ` +
			`service's name; "192.168.1.20:5901"; or "unix:/path".`,
	},
	{
		Name: "mappings.enabled", Type: typeBoolean, Roles: clientOnly, Default: "true",
		Example: "enabled = false",
		Doc: "Whether the mapping listens. on_remove says what becomes of the running " +
			"connections of a mapping that is disabled.",
	},
	{
		Name: "mappings.on_remove", Type: typeString, Roles: clientOnly, Default: `"keep"`,
		Example: `on_remove = "close"`,
		Doc: "What becomes of the running connections when the mapping is removed or disabled: " +
			`"keep" lets them go on until they end, "close" ends them.`,
	},
	{
		Name: "mappings.resume_timeout", Type: typeDuration, Roles: clientOnly,
		Example: `resume_timeout = "10m"`,
		Doc:     "As resume_timeout at the top, for this mapping alone.",
	},

	{
		Name: "metrics", Type: typeTable,
		Doc: "Metrics for Prometheus, over HTTP at /metrics; and /healthz and /readyz, for other " +
			"programs that watch the daemon.",
	},
	{
		Name: "metrics.listen", Type: typeString, Example: `listen = "127.0.0.1:9380"`,
		Doc: "The TCP address on which metrics are served; a port alone is the loopback's. Off " +
			"when absent.",
	},
	{
		Name: "metrics.allow_public", Type: typeBoolean, Default: "false",
		Example: "allow_public = true",
		Doc:     "Allows an address that other hosts can reach. There is no authentication.",
	},

	{
		Name: "metrics.hosts", Type: typeStrings, Default: "[]",
		Example: `hosts = ["nas.example.com"]`,
		Doc: "Host names by which requests may address the metrics, besides IP addresses, " +
			"localhost and this host's own name. Others are refused, so that no web page reads " +
			"the metrics through a browser by a name that leads here.",
	},

	{
		Name: "limits", Type: typeTable,
		Doc: "Bounds on all that others can make grow. Each has a safe default.",
	},
}, append(documentLimits(), Key{
	Name: "limits.auth_penalty_exempt", Type: typeStrings, Roles: relayOnly, Default: "[]",
	Example: `auth_penalty_exempt = ["192.0.2.7", "2001:db8:1::/48"]`,
	Doc: "Addresses and networks that get no auth_penalty. For IPv6 the smallest network is a " +
		"/64.",
})...)

func documentLimits() []Key {
	list := make([]Key, len(limitKeys))
	for i, k := range limitKeys {
		list[i] = Key{
			Name: "limits." + k.name, Type: k.kind(), Roles: k.roles, Default: k.text(k.def),
			Example: k.name + " = " + k.text(k.def), Doc: k.doc,
		}
	}
	return list
}

// keysByName holds all keys by their full names.
var keysByName = func() map[string]Key {
	byName := make(map[string]Key, len(keys))
	for _, k := range keys {
		byName[k.Name] = k
	}
	return byName
}()

// keysOf returns the keys of one table that a role may have, without the table's name.
func keysOf(table string, role Role) []string {
	var names []string
	for _, k := range keys {
		if k.Table() == table && k.allows(role) {
			names = append(names, k.Name[strings.LastIndexByte(k.Name, '.')+1:])
		}
	}
	return names
}
