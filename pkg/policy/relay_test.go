package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
)

// at returns the place of a rule in the tests' config.
func at(line int) policy.Source { return policy.Source{File: "relay.toml", Line: line} }

func rules(t *testing.T, line int, texts ...string) []policy.Rule {
	t.Helper()
	var rules []policy.Rule
	for i, text := range texts {
		r, err := policy.ParseRule(text)
		if err != nil {
			t.Fatal(err)
		}
		r.Source = at(line + i)
		rules = append(rules, r)
	}
	return rules
}

func keys(n ...byte) (list []ident.PublicKey) {
	for _, b := range n {
		list = append(list, ident.PublicKey{b})
	}
	return list
}

func TestRules(t *testing.T) {
	for text, want := range map[string]policy.Rule{
		"nas":                     {Server: pattern(t, "nas")},
		"build-*":                 {Server: pattern(t, "build-*")},
		"db:5432":                 {Server: pattern(t, "db"), Target: ":5432"},
		"db::5432":                {Server: pattern(t, "db"), Target: ":5432"},
		"db:localhost:5432":       {Server: pattern(t, "db"), Target: ":5432"},
		"nas:ssh":                 {Server: pattern(t, "nas"), Target: "ssh"},
		"nas:192.168.1.20:5901":   {Server: pattern(t, "nas"), Target: "192.168.1.20:5901"},
		"n?s:[FD00::1]:22":        {Server: pattern(t, "n?s"), Target: "[fd00::1]:22"},
		"nas:unix:/run/../x.sock": {Server: pattern(t, "nas"), Target: "unix:/x.sock"},
		"*:22":                    {Server: pattern(t, "*"), Target: ":22"},
	} {
		got, err := policy.ParseRule(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"":                     "empty",
		":22":                  "empty",
		"nas:":                 "empty",
		"NAS":                  "NAS",
		"nas:0":                "65535",
		"nas:192.168.1.0/24:1": "unix:/path",
		"nas:*":                "letters",
		"nas, db":              "nas, db",
	} {
		if got, err := policy.ParseRule(text); err == nil {
			t.Errorf("%q is taken for the rule %q", text, got)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %q does not say %q", text, err, want)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	for _, seed := range []string{"nas", "db:5432", "nas:ssh", "nas:unix:/run/x", "*-?:[::1]:22"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := policy.ParseRule(text)
		if err != nil {
			return
		}
		if again, err := policy.ParseRule(r.String()); err != nil || again != r {
			t.Fatalf("%q prints as %q, which is another rule (%v)", text, r, err)
		}
	})
}

func TestAllow(t *testing.T) {
	relay, err := policy.NewRelay([]policy.Peer{
		{ID: "laptop", Role: policy.RoleClient, Keys: keys(1), Source: at(10), Allowed: rules(t, 11, "nas", "db:5432", "db:ssh", "build-*:22", "ghost", "phone")},
		{ID: "phone", Role: policy.RoleClient, Keys: keys(2, 3), Source: at(20)},
		{ID: "nas", Role: policy.RoleServer, Keys: keys(4), Source: at(30)},
		{ID: "db", Role: policy.RoleServer, Keys: keys(5), Source: at(40)},
		{ID: "build-1", Role: policy.RoleServer, Keys: keys(6), Source: at(50)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		client, server, target string
		want                   policy.Decision
	}{
		{"laptop", "nas", ":22", policy.Decision{Allowed: true, Rule: "nas", Source: at(11), Reason: "laptop may reach nas"}},
		{"laptop", "nas", "anything at all", policy.Decision{Allowed: true, Rule: "nas", Source: at(11), Reason: "laptop may reach nas"}},
		{"laptop", "db", ":5432", policy.Decision{Allowed: true, Rule: "db:5432", Source: at(12), Reason: "laptop may reach db"}},
		{"laptop", "db", "ssh", policy.Decision{Allowed: true, Rule: "db:ssh", Source: at(13), Reason: "laptop may reach db"}},
		{"laptop", "build-1", ":22", policy.Decision{Allowed: true, Rule: "build-*:22", Source: at(14), Reason: "laptop may reach build-1"}},

		{"laptop", "db", ":22", policy.Decision{Rule: "db:5432", Source: at(12), Reason: "laptop may reach db, but not its target :22"}},
		{"laptop", "db", "127.0.0.1:5432", policy.Decision{Rule: "db:5432", Source: at(12), Reason: "laptop may reach db, but not its target 127.0.0.1:5432"}},
		{"laptop", "db", "", policy.Decision{Rule: "db:5432", Source: at(12), Reason: "laptop may reach db, but not its target "}},
		{"laptop", "unknown", ":22", policy.Decision{Source: at(10), Reason: "no allowed_servers of laptop name unknown"}},
		{"laptop", "ghost", ":22", policy.Decision{Rule: "ghost", Source: at(15), Reason: "no peer has the ID ghost"}},
		{"laptop", "phone", ":22", policy.Decision{Rule: "phone", Source: at(20), Reason: "phone is a client, not a server"}},
		{"phone", "nas", ":22", policy.Decision{Source: at(20), Reason: "no allowed_servers of phone name nas"}},
		{"nas", "db", ":22", policy.Decision{Source: at(30), Reason: "nas is a server, not a client"}},
		{"stranger", "nas", ":22", policy.Decision{Reason: "no peer has the ID stranger"}},
	} {
		if got := relay.Allow(test.client, test.server, test.target); got != test.want {
			t.Errorf("%s to %s, %s:\n got %+v\nwant %+v", test.client, test.server, test.target, got, test.want)
		}
	}

	for _, key := range keys(2, 3) {
		if peer, ok := relay.PeerByKey(key); !ok || peer.ID != "phone" {
			t.Errorf("key %v belongs to %q", key, peer.ID)
		}
	}
	if peer, ok := relay.PeerByKey(ident.PublicKey{99}); ok {
		t.Errorf("an unknown key belongs to %q", peer.ID)
	}
	if peer, ok := relay.Peer("db"); !ok || peer.Source != at(40) {
		t.Errorf("peer db is %+v", peer)
	}
	if _, ok := relay.Peer("stranger"); ok {
		t.Error("there is a peer stranger")
	}
	if peers := relay.Peers(); len(peers) != 5 || peers[0].ID != "laptop" || peers[4].ID != "build-1" {
		t.Errorf("the peers are %+v", peers)
	}
}

func TestRelayIsNotWhatItWasMadeOf(t *testing.T) {
	peers := []policy.Peer{
		{ID: "laptop", Role: policy.RoleClient, Keys: keys(1), Allowed: rules(t, 1, "nas:22")},
		{ID: "nas", Role: policy.RoleServer, Keys: keys(2)},
	}
	relay, err := policy.NewRelay(peers)
	if err != nil {
		t.Fatal(err)
	}
	peers[0].Allowed[0].Target = ""
	peers[0].Keys[0] = ident.PublicKey{3}
	peers[1].Role = policy.RoleClient
	if relay.Allow("laptop", "nas", ":23").Allowed || !relay.Allow("laptop", "nas", ":22").Allowed {
		t.Error("it changed with the list that it was made of")
	}
	if peer, _ := relay.Peer("laptop"); peer.Keys[0] != (ident.PublicKey{1}) {
		t.Error("its keys changed with the list that it was made of")
	}
}

func TestPeersThatCannotBe(t *testing.T) {
	nas := policy.Peer{ID: "nas", Role: policy.RoleServer, Keys: keys(1), Source: at(1)}
	for _, test := range []struct {
		name, key string
		change    func(*policy.Peer)
		want      string
	}{
		{"ID twice", "id", func(p *policy.Peer) { p.ID = "nas" }, "relay.toml:9: id: two peers have the ID nas; the other one is at relay.toml:1"},
		{"another name twice", "id", func(p *policy.Peer) { p.Others = []string{"nas"} }, "relay.toml:9: id: two peers have the ID nas; the other one is at relay.toml:1"},
		{"one name twice", "id", func(p *policy.Peer) { p.Others = []string{"a", "a"} }, "relay.toml:9: id: a is named twice"},
		{"no other ID", "id", func(p *policy.Peer) { p.Others = []string{"A"} }, `relay.toml:9: id: the ID "A" has 'A' in it; only a-z 0-9 . _ - may be used`},
		{"too many names", "id", func(p *policy.Peer) { p.Others = strings.Split("a b c d e f g h", " ") }, "relay.toml:9: id: laptop has 9 names; 8 are the most"},
		{"no ID", "id", func(p *policy.Peer) { p.ID = "" }, "relay.toml:9: id: the ID is empty"},
		{"key twice", "public_key", func(p *policy.Peer) { p.Keys = keys(2, 1) }, "relay.toml:9: public_key: nas and laptop have the same key; each node has a key of its own"},
		{"key twice in one", "public_key", func(p *policy.Peer) { p.Keys = keys(2, 2) }, "relay.toml:9: public_key: laptop has the same key twice; each node has a key of its own"},
		{"no key", "public_key", func(p *policy.Peer) { p.Keys = nil }, "relay.toml:9: public_key: laptop has no key; `ptthqd pubkey` prints it there"},
		{"no role", "role", func(p *policy.Peer) { p.Role = "" }, `relay.toml:9: role: "" is no role of a peer; write "client" or "server"`},
		{"a relay", "role", func(p *policy.Peer) { p.Role = "relay" }, `relay.toml:9: role: "relay" is no role of a peer; write "client" or "server"`},
		{"a server with rights", "allowed_servers", func(p *policy.Peer) { p.Role = policy.RoleServer }, "relay.toml:9: allowed_servers: laptop is a server, and reaches no other; give them to the client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			laptop := policy.Peer{ID: "laptop", Role: policy.RoleClient, Keys: keys(2), Allowed: rules(t, 10, "nas"), Source: at(9)}
			test.change(&laptop)
			_, err := policy.NewRelay([]policy.Peer{nas, laptop})
			fault, ok := errors.AsType[*policy.Error](err)
			if !ok {
				t.Fatalf("error %v, want a policy.Error", err)
			}
			if fault.Error() != test.want || fault.Key != test.key || fault.Source != at(9) {
				t.Errorf("error %q about %s at %v, want %q", fault, fault.Key, fault.Source, test.want)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	r, err := policy.NewRelay([]policy.Peer{
		{ID: "laptop", Role: policy.RoleClient, Keys: keys(1), Allowed: rules(t, 1, "nas:22", "n*:80", "nas:22", "db", "db:5432", "ghost")},
		{ID: "nas", Role: policy.RoleServer, Keys: keys(2)},
		{ID: "db", Role: policy.RoleServer, Keys: keys(3)},
		{ID: "mail", Role: policy.RoleServer, Keys: keys(4)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		client, server string
		all            bool
		targets        string
	}{
		{"laptop", "nas", false, "[:22 :80]"},
		{"laptop", "db", true, "[]"},
		{"laptop", "mail", false, "[]"},
		{"laptop", "ghost", false, "[]"},
		{"nobody", "nas", false, "[]"},
		{"nas", "db", false, "[]"},
	} {
		all, targets := r.Targets(c.client, c.server)
		if got := fmt.Sprint(targets); all != c.all || got != c.targets {
			t.Errorf("%s at %s: all %v, %s", c.client, c.server, all, got)
		}
	}
}

// Each name of a peer means the peer, also in rules.
func TestNames(t *testing.T) {
	r, err := policy.NewRelay([]policy.Peer{
		{ID: "notebook", Others: []string{"laptop"}, Role: policy.RoleClient, Keys: keys(1), Allowed: rules(t, 1, "nas:22", "stor*:80")},
		{ID: "storage", Others: []string{"nas", "attic"}, Role: policy.RoleServer, Keys: keys(2)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, client := range []string{"notebook", "laptop"} {
		for _, server := range []string{"storage", "nas", "attic"} {
			for _, target := range []string{":22", ":80"} {
				if d := r.Allow(client, server, target); !d.Allowed {
					t.Errorf("%s to %s at %s: %+v", client, target, server, d)
				}
			}
			if all, targets := r.Targets(client, server); all || len(targets) != 2 {
				t.Errorf("%s at %s: all %v, %v", client, server, all, targets)
			}
		}
	}
	if d := r.Allow("notebook", "attic2", ":22"); d.Allowed {
		t.Errorf("a name that nobody has: %+v", d)
	}
	if p, _ := r.Peer("attic"); p.ID != "storage" || !p.Is("nas") || p.Is("notebook") {
		t.Errorf("attic is %+v", p)
	}
}
