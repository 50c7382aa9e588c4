package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/policy"
)

func TestParseRelay(t *testing.T) {
	c, err := Parse(&Snapshot{Path: "/etc/ptthq.toml", Hash: "h", Files: []File{
		{"/etc/ptthq.toml", []byte(`role = "relay"
listen = ["0.0.0.0:443", "[::1]:443", ":30380", "systemd:quic"]
log_level = "warn"
[metrics]
listen = "9380"
[[peers]]
id = "laptop"
role = "client"
public_key = ["` + key1 + `", "` + key2 + `"]
allowed_servers = ["nas", "build-*",
    "db:localhost:5432"]
`)},
		{"/etc/ptthq.d/nas.toml", []byte("\n" + serverPeer("nas", key3))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := []Listen{
		{UDP, "0.0.0.0:443"},
		{UDP, "[::1]:443"},
		{UDP, "[::]:30380"},
		{Systemd, "quic"},
	}
	if c.Role != RoleRelay || !slices.Equal(c.Listen, want) || c.LogLevel != slog.LevelWarn ||
		c.Metrics.Listen.String() != "localhost:9380" || c.Hash != "h" {
		t.Errorf("%+v", c)
	}
	if c.PrivateKeyFile != "/etc/ptthq.key" || len(c.Files) != 2 || c.Include != nil {
		t.Errorf("%+v", c)
	}

	// Each rule knows its own line, for `explain`.
	laptop, nas := c.Peers[0], c.Peers[1]
	var rules []string
	for _, r := range laptop.Allowed {
		rules = append(rules, fmt.Sprintf("%v %v", r, r.Source))
	}
	got := strings.Join(rules, ", ")
	wantRules := "nas /etc/ptthq.toml:10, build-* /etc/ptthq.toml:10, db:5432 /etc/ptthq.toml:11"
	if got != wantRules {
		t.Errorf("rules %s, want %s", got, wantRules)
	}
	if laptop.Source.Line != 6 || len(laptop.Keys) != 2 ||
		nas.Source != (policy.Source{File: "/etc/ptthq.d/nas.toml", Line: 2}) ||
		nas.Role != policy.RoleServer {
		t.Errorf("%+v", c.Peers)
	}
}

func TestParseServer(t *testing.T) {
	c := parse(t, `role = "server"
id = "nas"
resume_timeout = "1h"
relays = [{ address = "Relay.Example.com", public_key = "`+key1+`" }, { address = "[2001:db8::1]:443", public_key = "`+key2+`" }]
[limits]
session_memory = "1GiB"
dial_timeout = "2500ms"
dials = 7
`+service("ssh", "localhost:22", `["laptop", "ops-*"]`)+"[[services]]\ntarget = \"unix:/run/x\"\n")
	if c.Relays[0].Address != "relay.example.com:30380" ||
		c.Relays[1].Address != "[2001:db8::1]:443" || c.Relays[1].Keys[0].String() != key2 ||
		c.Relays[0].Source.Line != 4 {
		t.Errorf("%+v", c.Relays)
	}
	if c.ResumeTimeout != time.Hour || c.Limits.SessionMemory != 1<<30 ||
		c.Limits.DialTimeout != 2500*time.Millisecond || c.Limits.Dials != 7 {
		t.Errorf("%+v", c)
	}
	ssh := c.Services[0]
	if ssh.Name != "ssh" || ssh.Target.String() != ":22" || len(ssh.Clients) != 2 ||
		ssh.Source.Line != 9 {
		t.Errorf("%+v", ssh)
	}
	if s := c.Services[1]; s.Target.String() != "unix:/run/x" || s.Clients != nil {
		t.Errorf("%+v", s)
	}
}

func TestParseClient(t *testing.T) {
	c := parse(t, "resume_timeout = \"2m\"\n"+clientHead+
		mapping("a [::1]:2200 nas 127.0.0.1:22", `on_remove = "close"`)+
		mapping("b unix:.s.PGSQL.5432 db postgres", `listen_mode = "600"`, `resume_timeout = "5s"`,
			"enabled = false")+
		mapping("c systemd:ssh nas 192.168.1.20:5901"))
	for i, want := range []string{
		"a [::1]:2200 nas :22 close 0660 2m0s true ptthq.toml:7",
		"b unix:.s.PGSQL.5432 db postgres keep 0600 5s false ptthq.toml:13",
		"c systemd:ssh nas 192.168.1.20:5901 keep 0660 2m0s true ptthq.toml:21",
	} {
		m := c.Mappings[i]
		if got := fmt.Sprintf("%s %v %s %v %s %04o %v %v %v", m.Name, m.Listen, m.Server, m.Target,
			m.OnRemove, m.ListenMode, m.ResumeTimeout, m.Enabled, m.Source); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// Keys of another role's tables are not judged: one error says that they don't belong here.
func TestErrorsAreValues(t *testing.T) {
	_, err := Parse(&Snapshot{
		Path:  "p.toml",
		Files: []File{{"p.toml", []byte("role = \"relay\"\n[[mappings]]\nlisten = 5\n")}},
	})
	faults, ok := errors.AsType[Errors](err)
	if !ok {
		t.Fatal(err)
	}
	text, err := json.Marshal(faults)
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"file":"p.toml","line":2,"column":3,"key":"mappings","message":"belongs to role client, and this is a relay"}]`
	if string(text) != want {
		t.Errorf("got %s, want %s", text, want)
	}
}

// A private key that was pasted in a wrong place never shows up in a message.
func TestErrorsKeepSecrets(t *testing.T) {
	const secret = "9e5SECRETsecretSECRETsecretSECRETsecretSECRE="
	for _, text := range []string{
		"private_key = %q", "public_key = %q", "private_key = %s", "%s", "%q", "%s = 1",
		"[[peers]]\npublic_key = %q", "[[peers]]\npublic_key = [%q, %q]", "[[peers]]\npublic_key = %s", "[[peers]]\npublic_key = '%s",
		"[[relays]]\npublic_key = %q", "[[relays]]\npublic_key = %s", "[[relays]]\npublic_key = [%q]", "private_key_file = %q",
	} {
		text = "role = \"relay\"\n" +
			strings.ReplaceAll(strings.ReplaceAll(text, "%q", `"`+secret+`"`), "%s", secret) + "\n"
		_, err := Parse(&Snapshot{Path: "p.toml", Files: []File{{"p.toml", []byte(text)}}})
		if err == nil {
			continue
		}
		if strings.Contains(strings.ToLower(err.Error()), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestListen(t *testing.T) {
	for _, test := range []struct {
		kind        Kind
		text, want  string
		addrs       string
		reachedFrom string
	}{
		{TCP, "2200", "localhost:2200", "[127.0.0.1:2200 [::1]:2200]", "here"},
		{TCP, "LocalHost:2200", "localhost:2200", "[127.0.0.1:2200 [::1]:2200]", "here"},
		{TCP, "127.0.0.2:2200", "127.0.0.2:2200", "[127.0.0.2:2200]", "here"},
		{TCP, "[::1]:2200", "[::1]:2200", "[[::1]:2200]", "here"},
		{TCP, "[::ffff:127.0.0.1]:2200", "127.0.0.1:2200", "[127.0.0.1:2200]", "here"},
		{TCP, "[0:0::0]:2200", "[::]:2200", "[[::]:2200]", "anywhere"},
		{TCP, "0.0.0.0:2200", "0.0.0.0:2200", "[0.0.0.0:2200]", "anywhere"},
		{TCP, "[fe80::1%eth0]:2200", "[fe80::1%eth0]:2200", "[[fe80::1%eth0]:2200]", "anywhere"},
		{TCP, "unix:db.sock", "unix:db.sock", "[]", "here"},
		{TCP, "systemd:ssh", "systemd:ssh", "[]", "here"},
		{UDP, "30380", "[::]:30380", "[[::]:30380]", "anywhere"},
		{UDP, ":30380", "[::]:30380", "[[::]:30380]", "anywhere"},
		{UDP, "localhost:30380", "localhost:30380", "[127.0.0.1:30380 [::1]:30380]", "here"},
		{UDP, "systemd:quic", "systemd:quic", "[]", "here"},
	} {
		l, _, err := parseListen(test.kind, test.text)
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		if got := fmt.Sprint(l.Addrs()); l.String() != test.want || got != test.addrs ||
			l.Loopback() != (test.reachedFrom == "here") {
			t.Errorf("%s: %v, %v, loopback %v", test.text, l, got, l.Loopback())
		}
		again(t, test.kind, l)
	}
}

func TestPenaltyExempt(t *testing.T) {
	c := parse(t, relayHead+"limits.auth_penalty_exempt = [\"192.0.2.7\", \"::ffff:10.1.2.3/104\", \"2001:db8::1/48\"]\n")
	if got := fmt.Sprint(c.PenaltyExempt); got != "[192.0.2.7/32 10.0.0.0/8 2001:db8::/48]" {
		t.Error(got)
	}
	if d := describe(Compare(parse(t, relayHead), c)); len(d) != 1 ||
		!strings.Contains(d[0], "limits.auth_penalty_exempt") {
		t.Error(d)
	}
	for _, bad := range []string{"example.com", "192.0.2.0/33", "fe80::1%eth0", ""} {
		text := relayHead + fmt.Sprintf("limits.auth_penalty_exempt = %q\n", bad)
		_, err := Parse(&Snapshot{Path: "ptthq.toml", Files: []File{{"ptthq.toml", []byte(text)}}})
		if err == nil || !strings.Contains(err.Error(), "is no address and no network") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// A string counts as a list of one, wherever a list of strings may stand.
func TestStringIsAListOfOne(t *testing.T) {
	for _, test := range []struct{ list, text string }{
		{"listen = [\"systemd:relay\"]\n" + relayHead, "listen = \"systemd:relay\"\n" + relayHead},
		{relayHead + clientPeer("a", key1, `["nas"]`), relayHead + clientPeer("a", key1, `"nas"`)},
		{
			serverHead + service("ssh", "22", `["laptop"]`),
			serverHead + service("ssh", "22", `"laptop"`),
		},
		{"include = [\"more/*.toml\"]\n" + relayHead, "include = \"more/*.toml\"\n" + relayHead},
	} {
		list, text := parse(t, test.list), parse(t, test.text)
		if d := describe(Compare(list, text)); d != nil ||
			!slices.Equal(list.Include, text.Include) {
			t.Errorf("%s\nand\n%s\ndiffer: %v", test.list, test.text, d)
		}
	}

	dir := t.TempDir()
	main := filepath.Join(dir, "ptthq.toml")
	for name, text := range map[string]string{
		"ptthq.toml": "include = \"one.toml\"\n" + relayHead,
		"one.toml":   serverPeer("nas", key1),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := Load(main); err != nil || len(c.Peers) != 1 {
		t.Errorf("the file of an include that is a string: %+v, %v", c, err)
	}
}

func TestListenOverlaps(t *testing.T) {
	listen := func(text string) Listen {
		l, _, err := parseListen(TCP, text)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, test := range []struct {
		a, b string
		want bool
	}{
		{"2200", "2200", true},
		{"2200", "2201", false},
		{"2200", "127.0.0.1:2200", true},
		{"2200", "[::1]:2200", true},
		{"2200", "127.0.0.2:2200", false},
		{"2200", "0.0.0.0:2200", true},
		{"127.0.0.1:2200", "[::]:2200", true},
		{"[::1]:2200", "0.0.0.0:2200", false},
		{"[::1]:2200", "[::]:2200", true},
		{"0.0.0.0:2200", "[::]:2200", true},
		{"0.0.0.0:2200", "0.0.0.0:2201", false},
		{"192.0.2.1:2200", "192.0.2.2:2200", false},
		{"[fe80::1%eth0]:2200", "[fe80::1%eth1]:2200", false},
		{"unix:a", "unix:a", true},
		{"unix:a", "unix:b", false},
		{"unix:a", "systemd:a", false},
	} {
		if got := listen(test.a).Overlaps(listen(test.b)); got != test.want {
			t.Errorf("%s and %s: %v", test.a, test.b, got)
		}
		if got := listen(test.b).Overlaps(listen(test.a)); got != test.want {
			t.Errorf("%s and %s: %v", test.b, test.a, got)
		}
	}
	if udp := (Listen{UDP, "[::]:2200"}); udp.Overlaps(listen("[::]:2200")) {
		t.Error("UDP and TCP overlap")
	}
}

func TestWarnings(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{"a relay without peers", relayHead, []string{"1: peers: there are none"}},
		{
			"clients, servers and rules that miss each other",
			relayHead + clientPeer("a", key1, `["nsa", "db*", "b:5432"]`) +
				serverPeer("nas", key2) + clientPeer("b", key3, `[]`),
			[]string{
				`6: peers.allowed_servers: "nsa" matches no server among the peers; did you mean "nas"?`,
				`6: peers.allowed_servers: "db*" matches no server`,
				`6: peers.allowed_servers: "b:5432" matches no server`,
				`7: peers.id: no client may reach server "nas"`,
				`11: peers.allowed_servers: client "b" may reach no server`,
			},
		},
		{"a server without services", serverHead, []string{"1: services: there are none"}},
		{
			"services that nobody reaches", serverHead + "[[services]]\ntarget = \"22\"\n" +
				service("screens", "10.0.0.0/24:5900-5910", `["a"]`),
			[]string{
				`6: services.clients: no client can reach service ":22"`,
				`8: services.name: "10.0.0.0/24:5900-5910" is a range`,
			},
		},
		{
			"services that are everything", serverHead +
				"[[services]]\ntarget = \"0.0.0.0/0:22\"\nclients = [\"a\"]\n[[services]]\ntarget = \"[::/0]:22\"\nclients = [\"a\"]\n",
			[]string{
				`6: services.target: "0.0.0.0/0:22" is every address that this host can reach`,
				`9: services.target: "[::/0]:22" is every address`,
			},
		},
		{
			"a client that listens nowhere", clientHead + mapping("a 2200 nas 22", "enabled = false"),
			[]string{"1: mappings: none is enabled"},
		},
		{
			"listeners",
			clientHead + mapping("a 0.0.0.0:2200 nas 22") +
				mapping("b [::]:2201 nas 22", "allow_public = true") +
				mapping("c 2200 nas 22", "enabled = false") +
				mapping("d unix:d nas 22", `listen_mode = "0440"`),
			[]string{
				"6: mappings.listen: other hosts can connect to 0.0.0.0:2200",
				`18: mappings.listen: mapping "c" can't be enabled as it is: localhost:2200 is that of mapping "a"`,
				"24: mappings.listen_mode: with 0440 nobody can connect",
			},
		},
		{
			"limits above others", clientHead +
				"[limits]\nsessions = 100\nsessions_per_mapping = 200\n" + mapping("a 2200 nas 22"),
			[]string{"1: limits.sessions_per_mapping: 200 is more than sessions allows: 100"},
		},
	} {
		var got []string
		for _, w := range parse(t, test.text).Warnings() {
			got = append(got, w.String())
		}
		for i := range max(len(got), len(test.want)) {
			if i >= len(got) || i >= len(test.want) ||
				!strings.HasPrefix(got[i], "ptthq.toml:"+test.want[i]) {
				t.Errorf("%s: got\n%s\nwant\n%s", test.name, strings.Join(got, "\n"),
					strings.Join(test.want, "\n"))
				break
			}
		}
	}
}

func TestNotes(t *testing.T) {
	narrow := relayHead + clientPeer("a", key1, `["nas:ssh", "nas:22"]`) + serverPeer("nas", key2)
	if notes := parse(t, narrow).Notes(); len(notes) != 1 ||
		!strings.Contains(notes[0].String(), "two things") {
		t.Errorf("%v", notes)
	}
	if notes := parse(t,
		relayHead+clientPeer("a", key1, `["nas"]`)+serverPeer("nas",
			key2)).Notes(); len(notes) != 0 {
		t.Errorf("%v", notes)
	}
}

func TestDidYouMean(t *testing.T) {
	words := []string{"listen", "listen_mode", "server", "target"}
	for word, want := range map[string]string{
		"listn": "listen", "Listen": "listen", "lsiten": "listen", "listen-mode": "listen_mode", "sevrer": "server", "targets": "target",
		"x": "", "": "", "port": "", "relay": "", strings.Repeat("listen", 20): "",
	} {
		got := didYouMean(word, words)
		if want != "" {
			want = fmt.Sprintf("did you mean %q?", want)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
	if d := editDistance("abcd", "acbd"); d != 1 {
		t.Errorf("a swap counts %d", d)
	}
}

// A large configuration is read, judged and compared in a moment: a reload with 10,000 peers and
// 1,000 mappings.
func BenchmarkReload(b *testing.B) {
	var relay, client strings.Builder
	relay.WriteString(relayHead)
	client.WriteString(clientHead)
	for i := range 10_000 {
		key := fmt.Sprintf("%06d", i) + key1[6:]
		relay.WriteString(clientPeer(fmt.Sprintf("peer-%d", i), key,
			`["nas", "build-*", "db:5432"]`))
	}
	for i := range 1_000 {
		client.WriteString(mapping(fmt.Sprintf("m%d %d nas 22", i, 10_000+i)))
	}
	for name, text := range map[string]string{
		"peers":    relay.String(),
		"mappings": client.String(),
	} {
		b.Run(name, func(b *testing.B) {
			s := &Snapshot{Path: "ptthq.toml", Files: []File{{"ptthq.toml", []byte(text)}}}
			for b.Loop() {
				c, err := Parse(s)
				if err != nil {
					b.Fatal(err)
				}
				if d := Compare(c, c); !d.Empty() {
					b.Fatal(d)
				}
			}
		})
	}
}
