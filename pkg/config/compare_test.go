package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// parse makes a Config of a text, in a file of that name.
func parse(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse(&Snapshot{Path: "ptthq.toml", Files: []File{{"ptthq.toml", []byte(text)}}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	clientHead = "role = \"client\"\nid = \"laptop\"\n[[relays]]\naddress = \"relay.example.com\"\npublic_key = \"" + key3 + "\"\n"
	serverHead = "role = \"server\"\nid = \"nas\"\n[[relays]]\naddress = \"relay.example.com\"\npublic_key = \"" + key3 + "\"\n"
	relayHead  = "role = \"relay\"\n"
)

// mapping makes a [[mappings]] of "name listen server target", with more keys behind it.
func mapping(fields string, more ...string) string {
	f := strings.Fields(fields)
	return fmt.Sprintf("[[mappings]]\nname = %q\nlisten = %q\nserver = %q\ntarget = %q\n%s\n", f[0],
		f[1], f[2], f[3], strings.Join(more, "\n"))
}

func clientPeer(id, key, allowed string) string {
	return fmt.Sprintf("[[peers]]\nid = %q\nrole = \"client\"\npublic_key = %q\nallowed_servers = %s\n", id, key, allowed)
}

func service(name, target, clients string) string {
	return fmt.Sprintf("[[services]]\nname = %q\ntarget = %q\nclients = %s\n", name, target,
		clients)
}

// describe writes a Diff with all that it says, to be compared.
func describe(d Diff) []string {
	var lines []string
	for _, s := range d.Restart {
		lines = append(lines, fmt.Sprintf("restart: %s: %s, was %s", s.Key, s.New, s.Old))
	}
	rest := d
	rest.Restart, rest.Mappings = nil, nil
	lines = append(lines, rest.Lines()...)
	for _, m := range d.Mappings {
		line := m.line("mapping")
		if len(m.Overlaps) > 0 {
			line += " after the release of " + strings.Join(m.Overlaps, ", ")
		}
		lines = append(lines, line)
	}
	return lines
}

// comparison is a row of the table of effects: two configurations and what a reload makes of them.
type comparison struct {
	name, old, next string
	want            []string
}

// Mappings come, go and change.
func TestCompareMappings(t *testing.T) {
	one := mapping("a 2200 nas 22")
	compareAll(t, []comparison{
		{"nothing", clientHead + one, clientHead + one, nil},
		{
			"other words, other places", clientHead + one,
			"# more\n" + clientHead + "[limits]\nhold_timeout = \"5000ms\"\n" +
				mapping("a localhost:2200 nas localhost:22", "enabled = true"), nil,
		},

		{
			"a mapping is added", clientHead + one, clientHead + one + mapping("b 2201 nas 23"),
			[]string{"mapping b: added"},
		},
		{"removed", clientHead + one, clientHead, []string{"mapping a: removed"}},
		{
			"disabled", clientHead + one, clientHead + mapping("a 2200 nas 22", "enabled = false"),
			[]string{"mapping a: removed (enabled)"},
		},
		{
			"enabled", clientHead + mapping("a 2200 nas 22", "enabled = false"), clientHead + one,
			[]string{"mapping a: added"},
		},
		{
			"changed while disabled", clientHead + mapping("a 2200 nas 22", "enabled = false"),
			clientHead + mapping("a 2201 nas 22", "enabled = false"), nil,
		},
		{
			"another server", clientHead + one, clientHead + mapping("a 2200 db 22"),
			[]string{"mapping a: changed (server)"},
		},
		{
			"another target", clientHead + one, clientHead + mapping("a 2200 nas 23"),
			[]string{"mapping a: changed (target)"},
		},
		{
			"another name", clientHead + one, clientHead + mapping("b 2200 nas 22"),
			[]string{"mapping b: changed (name)"},
		},
		{
			"its resume_timeout, by the whole's", clientHead + one, "resume_timeout = \"1m\"\n" +
				clientHead + one,
			[]string{`resume_timeout: "1m", was "10m"`, "mapping a: changed (resume_timeout)"},
		},
		{
			"permissions", clientHead + mapping("a unix:x nas 22"), clientHead +
				mapping("a unix:x nas 22", `listen_mode = "0600"`, `on_remove = "close"`),
			[]string{"mapping a: changed (listen_mode, on_remove)"},
		},
	})
}

// Listeners move, and say which others must be released first.
func TestCompareMoves(t *testing.T) {
	one := mapping("a 2200 nas 22")
	compareAll(t, []comparison{
		{
			"it moves", clientHead + one, clientHead + mapping("a 2201 nas 22"),
			[]string{"mapping a: moved (listen)"},
		},
		{
			"to where it overlaps itself", clientHead +
				mapping("a 127.0.0.1:2200 nas 22"), clientHead + mapping("a 0.0.0.0:2200 nas 23"),
			[]string{"mapping a: moved (listen, target) after the release of a"},
		},
		{
			"to where it overlaps one that goes", clientHead + mapping("a 2201 nas 22") +
				mapping("b 127.0.0.1:2200 nas 22"), clientHead + mapping("a [::]:2200 nas 22"),
			[]string{"mapping a: moved (listen) after the release of b", "mapping b: removed"},
		},
		{
			"one is added where another goes", clientHead +
				mapping("a 127.0.0.1:2200 nas 22"), clientHead + mapping("b 2200 nas 22"),
			[]string{"mapping b: added after the release of a", "mapping a: removed"},
		},
		{
			"two swap their addresses, and no listener moves", clientHead +
				mapping("a 2200 nas 22") + mapping("b 2201 nas 23"), clientHead +
				mapping("a 2201 nas 22") + mapping("b 2200 nas 23"),
			[]string{"mapping a: changed (name, target)", "mapping b: changed (name, target)"},
		},
		{
			"a name goes to another listener", clientHead + mapping("a 2200 nas 22") +
				mapping("b 2201 nas 23"), clientHead + mapping("b 2200 nas 22"),
			[]string{"mapping b: changed (name)", "mapping b: removed"},
		},
	})
}

func TestComparePeers(t *testing.T) {
	compareAll(t, []comparison{
		{
			"a peer is added", relayHead, relayHead + serverPeer("nas", key1),
			[]string{"peer nas: added"},
		},
		{"removed", relayHead + serverPeer("nas", key1), relayHead, []string{"peer nas: removed"}},
		{
			"its key", relayHead + serverPeer("nas", key1), relayHead + serverPeer("nas", key2),
			[]string{"peer nas: changed (public_key)"},
		},
		{
			"its role", relayHead + serverPeer("nas", key1),
			relayHead + clientPeer("nas", key1,
				`["*"]`),
			[]string{"peer nas: changed (role, allowed_servers)"},
		},
		{
			"an allowed server", relayHead +
				clientPeer("a", key1, `["nas", "db:5432"]`), relayHead +
				clientPeer("a", key1, `["nas", "db:5433"]`),
			[]string{"peer a: changed (allowed_servers)"},
		},
		{
			"their order and spelling", relayHead + clientPeer("a", key1, `["nas", "db:5432"]`) +
				serverPeer("nas", key2),
			relayHead + serverPeer("nas", key2) +
				clientPeer("a", key1, `["db:localhost:5432", "nas"]`), nil,
		},
	})
}

// Services and relays.
func TestCompareServices(t *testing.T) {
	compareAll(t, []comparison{
		{
			"a service is added", serverHead, serverHead + service("ssh", "22", `["a"]`),
			[]string{"service ssh: added"},
		},
		{
			"its clients", serverHead + service("ssh", "22", `["a", "b"]`),
			serverHead + service("ssh", "22", `["b"]`),
			[]string{"service ssh: changed (clients)"},
		},
		{
			"its target", serverHead + service("ssh", "22", `["a"]`),
			serverHead + service("ssh", "23", `["a"]`),
			[]string{"service ssh: changed (target)"},
		},
		{
			"one of two without a name", serverHead +
				"[[services]]\ntarget = \"22\"\nclients = [\"a\"]\n[[services]]\ntarget = \"22\"\nclients = [\"b\"]\n",
			serverHead + "[[services]]\ntarget = \"22\"\nclients = [\"a\"]\n",
			[]string{"service :22: removed"},
		},

		{
			"the relay list", clientHead, strings.Replace(clientHead, "relay.example.com",
				"other.example.com", 1),
			[]string{
				"relay other.example.com:30380: added",
				"relay relay.example.com:30380: removed",
			},
		},
		{
			"a relay's key", clientHead, strings.Replace(clientHead, key3, key2, 1),
			[]string{"relay relay.example.com:30380: changed (public_key)"},
		},
	})
}

// Keys at the top and in single tables, some of which only a restart can change.
func TestCompareSettings(t *testing.T) {
	compareAll(t, []comparison{
		{
			"processors", relayHead, "adapt_processors = false\n" + relayHead,
			[]string{"adapt_processors: false, was true"},
		},
		{
			"settings", relayHead, "log_level = \"debug\"\ndrain_timeout = \"1m30s\"\ninclude = []\n" + relayHead + "[metrics]\nlisten = \"9380\"\n[limits]\nlinks = 5\ntip_timeout = \"1s\"\n",
			[]string{
				`log_level: "debug", was "info"`, `include: [], was (default)`, `drain_timeout: "1m30s", was "5s"`, `metrics.listen: "localhost:9380", was ""`,
				`limits.links: 5, was 16384`, `limits.tip_timeout: "1s", was "5s"`,
			},
		},

		{"role", relayHead, clientHead, []string{`restart: role: "client", was "relay"`}},
		{
			"id", clientHead, strings.Replace(clientHead, "laptop", "desk", 1),
			[]string{`restart: id: "desk", was "laptop"`},
		},
		{
			"private key path", relayHead, relayHead + "private_key_file = \"x\"\n",
			[]string{`restart: private_key_file: "x", was "ptthq.key"`},
		},
		{
			"relay's listen, beside what could be done", relayHead, relayHead +
				"listen = [\"[::]:443\", \"systemd:quic\"]\nlog_level = \"warn\"\n",
			[]string{
				`restart: listen: "[::]:443", "systemd:quic", was "[::]:30380"`,
				`log_level: "warn", was "info"`,
			},
		},
	})
}

func compareAll(t *testing.T, rows []comparison) {
	t.Helper()
	for _, test := range rows {
		t.Run(test.name, func(t *testing.T) {
			old, next := parse(t, test.old), parse(t, test.next)
			d := Compare(old, next)
			if got := describe(d); !slices.Equal(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"),
					strings.Join(test.want, "\n"))
			}
			if d.Empty() != (len(test.want) == 0) {
				t.Errorf("empty: %v", d.Empty())
			}
			for _, m := range d.Mappings {
				if (m.Old == nil) != (m.Effect == Added) || m.New == nil && m.Effect != Removed {
					t.Errorf("%s is %s from %v to %v", m.Name, m.Effect, m.Old, m.New)
				}
			}
		})
	}
}
