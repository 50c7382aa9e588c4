package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"ptthqd/pkg/client"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/daemon"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/server"
	"ptthqd/test/testutil"
)

// What random policies are made of, and what is asked of them.
var (
	askers       = []string{"laptop", "desk"}
	servers      = []string{"nas", "db-1"}
	asked        = []string{"nas", "db-1", "ghost"} // nobody knows the last
	askedTargets = []string{"22", "23", "ssh", "web", "10.0.0.5:80", "10.0.0.5:81", "10.0.1.9:80", "unix:/run/x.sock", "host.example:443", "10.0.0.7:80", "169.254.169.254:80"}

	rules          = []string{"nas", "db-1", "db-*", "n?s", "*", "*", "ghost", "other"}
	ruleTargets    = []string{"", "", "", "", ":22", ":ssh", ":web", ":10.0.0.5:80", ":unix:/run/x.sock", ":host.example:443"}
	clientPatterns = []string{"laptop", "desk", "l*", "d?sk", "*", "*", "nobody"}
	serviceNames   = []string{"ssh", "web"}
	exactTargets   = []string{"22", "23", "10.0.0.5:80", "10.0.1.9:80", "unix:/run/x.sock", "host.example:443"}
	ranges         = []string{"20-22", "22-30", "10.0.0.0/24:80", "10.0.0.0/16:80-90", "10.0.1.9:1-100", "0.0.0.0/0:80", "169.254.0.0/16:80", "10.0.0.7:80-81"}
	destinations   = []string{"127.0.0.1:22", "127.0.0.1:23", "10.0.0.5:80", "10.0.0.5:81", "10.0.1.9:80", "/run/x.sock", "host.example:443", "10.0.0.7:80", "169.254.169.254:80"}
)

// TestExplainAgrees gives the nodes of a chain random policies, one after the other, and asks for every target of every
// server as every client: what happens is what `ptthqd explain` says at the relay and at the server.
func TestExplainAgrees(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("the seed is %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	inBubble(t, func(t *testing.T, w *world) {
		for _, address := range destinations {
			w.target(address, func(conn *testutil.Conn) {
				_, _ = io.WriteString(conn, address+"\n")
				_ = conn.Close()
			})
		}
		hosts := make(map[string]string)
		for i, node := range slices.Concat(askers, servers) {
			hosts[node] = fmt.Sprintf("10.0.%d.1", i)
		}
		a := &agreement{world: w, dir: t.TempDir(), hosts: hosts, servers: make(map[string]*server.Server)}
		outcomes := make(map[string]int)
		for range 25 {
			a.change(r)
			for _, q := range a.questions() {
				want := a.explained(q)
				if got := a.observed(q); got != want {
					t.Errorf("%s asks %s for %s: got %s, explained was %s", q.Client, q.Server, q.Target, got, want)
				}
				outcome, _, _ := strings.Cut(want, ": ")
				outcomes[outcome]++
			}
			if t.Failed() {
				for name, text := range a.texts {
					t.Logf("%s:\n%s", name, text)
				}
				return
			}
		}
		t.Logf("outcomes: %v", outcomes)
		for _, outcome := range []string{"200", "403 by relay", "403 by nas", "403 by db-1"} {
			if outcomes[outcome] < 10 {
				t.Errorf("of the outcome %q there were %d only", outcome, outcomes[outcome])
			}
		}
	})
}

// An agreement is a chain whose policies change, beside what explain has to go by.
type agreement struct {
	*world
	dir     string
	hosts   map[string]string // by node
	texts   map[string]string // of the configs in force, by node
	configs map[string]*config.Config

	relay   *relayNode
	servers map[string]*server.Server
	begun   bool
}

// change puts a random policy in force at every node.
func (a *agreement) change(r *rand.Rand) {
	a.t.Helper()
	for {
		a.texts = a.random(r)
		a.configs = make(map[string]*config.Config)
		for name, text := range a.texts {
			file := filepath.Join(a.dir, name+".toml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				a.t.Fatal(err)
			}
			c, err := config.Load(file)
			if err != nil {
				break // two of what was drawn don't go together
			}
			a.configs[name] = c
		}
		if len(a.configs) == len(a.texts) {
			break
		}
	}
	peers, err := policy.NewRelay(a.configs["relay"].Peers)
	if err != nil {
		a.t.Fatal(err)
	}
	if a.begun {
		a.relay.Apply(peers, relay.Limits{})
		for _, name := range servers {
			if err := a.servers[name].Apply(a.t.Context(), a.configs[name]); err != nil {
				a.t.Fatal(err)
			}
		}
		return
	}
	a.begun = true
	a.relay = a.world.relay(relayHost)
	a.relay.Apply(peers, relay.Limits{})
	for _, name := range servers {
		s, err := server.New(server.Config{
			Settings: a.configs[name], Identity: a.key(a.hosts[name]), Logger: a.logger(name),
			Host: a.host(), Dial: a.dial, AdjustDialer: a.on(a.hosts[name]),
		})
		if err != nil {
			a.t.Fatal(err)
		}
		a.servers[name] = s
		a.start(s.Run)
	}
	for _, name := range askers {
		c, err := client.New(client.Config{
			Settings: a.configs[name], Identity: a.key(a.hosts[name]), Logger: a.logger(name),
			Inherit: a.inherit, AdjustDialer: a.on(a.hosts[name]),
		})
		if err != nil {
			a.t.Fatal(err)
		}
		a.start(c.Run)
	}
	settle()
}

func pick(r *rand.Rand, from []string) string { return from[r.IntN(len(from))] }

// some picks a few, each once.
func some(r *rand.Rand, most int, draw func() string) []string {
	var list []string
	for range r.IntN(most + 1) {
		list = append(list, fmt.Sprintf("%q", draw()))
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// random draws the configs of all nodes. Those of the clients are always the same.
func (a *agreement) random(r *rand.Rand) map[string]string {
	texts := make(map[string]string)
	var p3 strings.Builder
	p3.WriteString("role = \"relay\"\nlisten = [\"[::]:30380\"]\n")
	relays := fmt.Sprintf("[[relays]]\naddress = \"%s:30380\"\npublic_key = %q\n", relayHost, a.key(relayHost).Public())
	for _, name := range askers {
		allowed := some(r, 4, func() string { return pick(r, rules) + pick(r, ruleTargets) })
		fmt.Fprintf(&p3, "[[peers]]\nid = %q\nrole = \"client\"\npublic_key = %q\nallowed_servers = [%s]\n",
			name, a.key(a.hosts[name]).Public(), strings.Join(allowed, ", "))
		var p2 strings.Builder
		fmt.Fprintf(&p2, "role = \"client\"\nid = %q\n%s", name, relays)
		for _, q := range a.questions() {
			if q.Client == name {
				fmt.Fprintf(&p2, "[[mappings]]\nname = %[1]q\nlisten = \"systemd:%[1]s\"\nserver = %[2]q\ntarget = %[3]q\n", mappingOf(q), q.Server, q.Target)
			}
		}
		texts[name] = p2.String()
	}
	for _, name := range servers {
		fmt.Fprintf(&p3, "[[peers]]\nid = %q\nrole = \"server\"\npublic_key = %q\n", name, a.key(a.hosts[name]).Public())
		var p4 strings.Builder
		fmt.Fprintf(&p4, "role = \"server\"\nid = %q\n%s", name, relays)
		for range r.IntN(9) {
			p4.WriteString("[[services]]\n")
			target := pick(r, exactTargets)
			switch r.IntN(3) {
			case 0:
				target = pick(r, ranges)
			case 1:
				fmt.Fprintf(&p4, "name = %q\n", pick(r, serviceNames))
			}
			clients := some(r, 3, func() string { return pick(r, clientPatterns) })
			fmt.Fprintf(&p4, "target = %q\nclients = [%s]\nallow_local = %v\n", target, strings.Join(clients, ", "), r.IntN(2) == 0)
		}
		texts[name] = p4.String()
	}
	texts["relay"] = p3.String()
	return texts
}

// host is what each server runs on.
func (a *agreement) host() *server.Host {
	return &server.Host{
		Addresses: func() ([]net.Addr, error) {
			return []net.Addr{&net.IPNet{IP: net.IPv4(10, 0, 0, 7), Mask: net.CIDRMask(24, 32)}}, nil
		},
		Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("no name server") // what a name means is left to the dial
		}},
	}
}

// questions are all that can be asked.
func (a *agreement) questions() []control.Question {
	var all []control.Question
	for _, c := range askers {
		for _, s := range asked {
			for _, target := range askedTargets {
				all = append(all, control.Question{Client: c, Server: s, Target: target})
			}
		}
	}
	return all
}

// mappingOf is the name of the mapping that asks a question.
func mappingOf(q control.Question) string {
	return fmt.Sprintf("%s-%d-%d", q.Client, slices.Index(asked, q.Server), slices.Index(askedTargets, q.Target))
}

// explained is what is to happen by what explain says: "403 by nas", or "200: " and what is dialled.
func (a *agreement) explained(q control.Question) string {
	a.t.Helper()
	at := func(node string) *control.Explanation {
		e, err := daemon.Explain(a.configs[node], a.host(), q)
		if err != nil || !e.Decides || e.Reason == "" || e.Allowed && e.Rule == "" || !strings.Contains(e.Source, node+".toml") {
			a.t.Fatalf("%s explains %v by %+v, %v", node, q, e, err)
		}
		return e
	}
	if !at("relay").Allowed {
		return "403 by relay"
	}
	e := at(q.Server)
	if !e.Allowed {
		return "403 by " + q.Server
	}
	dialled, err := policy.ParseTarget(e.Dial)
	if err != nil {
		a.t.Fatalf("%s explains %v by %+v: %v", q.Server, q, e, err)
	}
	return "200: " + dialled.Addresses()[0]
}

// observed asks the chain itself.
func (a *agreement) observed(q control.Question) string {
	a.t.Helper()
	mapping := mappingOf(q)
	before := len(a.books[q.Client].String())
	conn := a.connect(mapping)
	got, err := io.ReadAll(conn)
	_ = conn.Close()
	synctest.Wait()
	refused := a.refusals(q.Client, mapping, before)
	switch {
	case err == nil && len(refused) == 0:
		return "200: " + strings.TrimSpace(string(got))
	case len(refused) != 1:
		return fmt.Sprintf("%q, %v, and %d refusals in the log", got, err, len(refused))
	}
	return fmt.Sprintf("%v by %v", refused[0]["code"], refused[0]["by"])
}

// refusals are the lines of a client's log about a mapping, from an offset on.
func (a *agreement) refusals(node, mapping string, from int) []map[string]any {
	a.t.Helper()
	news := new(testutil.Log)
	_, _ = io.WriteString(news, a.books[node].String()[from:])
	return slices.DeleteFunc(news.Lines(a.t, "connection refused"), func(line map[string]any) bool {
		_, summary := line["more"]
		return summary || line["mapping"] != mapping
	})
}
