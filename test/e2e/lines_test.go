//go:build linux

package e2e

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/control"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

// A way is how a connection ends or is refused. It makes that happen to one connection, and returns P1's address or the
// connection's ID; neither where there is no other connection and P1 was too slow to learn its own.
type way struct {
	plays   string                       // the node that is no ptthqd: happen plays it itself
	prepare func(t *testing.T, w *world) // before the nodes start
	happen  func(t *testing.T, w *world, p5s *recorder) (who string)
}

// open is a way that begins with a connection that carries.
func opened(prepare func(*testing.T, *world), end func(t *testing.T, w *world, p1, p5 net.Conn)) way {
	return way{prepare: prepare, happen: func(t *testing.T, w *world, p5s *recorder) string {
		p1, p5 := p5s.open(t, w)
		end(t, w, p1, p5)
		return p1.LocalAddr().String()
	}}
}

// refusedWith is a way in which a connection is refused at once.
func refusedWith(prepare func(*testing.T, *world)) way {
	return way{prepare: prepare, happen: func(t *testing.T, w *world, _ *recorder) string {
		return refusedConnection(t, cmp.Or(w.ports["P1"], w.ports["mapping"]))
	}}
}

// set adds settings to the configs of nodes.
func set(settings string, nodes ...string) func(*testing.T, *world) {
	return func(_ *testing.T, w *world) {
		for _, node := range nodes {
			w.extra[node] += settings
		}
	}
}

func resetConn(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// edit changes a node's config while it runs.
func edit(t *testing.T, w *world, node, old, with string) {
	t.Helper()
	text, err := os.ReadFile(w.path(node, ".toml"))
	if err != nil || !strings.Contains(string(text), old) {
		t.Fatalf("%s has no %q: %v", node, old, err)
	}
	w.write(node, strings.ReplaceAll(string(text), old, with))
}

func signalled(node string, s syscall.Signal, again bool) func(*testing.T, *world, net.Conn, net.Conn) {
	return func(_ *testing.T, w *world, _, _ net.Conn) {
		w.procs[node].signal(s)
		<-w.procs[node].exited
		if again {
			w.start(node, logJSON)
		}
	}
}

const logJSON = "--log-format=json"

// ways has a way for each row of the table in docs/ends.md; otherWays has the others.
var ways = map[string]way{
	"both programs close": opened(nil, func(t *testing.T, _ *world, p1, p5 net.Conn) {
		_ = p1.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, p5)
		_ = p5.Close()
		_, _ = io.Copy(io.Discard, p1)
	}),
	"P1 resets": opened(nil, func(_ *testing.T, _ *world, p1, _ net.Conn) { resetConn(p1) }),
	"P5 resets": opened(nil, func(_ *testing.T, _ *world, _, p5 net.Conn) { resetConn(p5) }),
	"P1 gives up before it is answered": {
		prepare: func(t *testing.T, w *world) { w.ports["target"] = deafListener(t) },
		happen: func(t *testing.T, w *world, _ *recorder) string {
			p1 := w.mustDial()
			eventually(t, 10*time.Second, "the server dials", func() error {
				if now := w.status("nas").Connections; len(now) != 1 {
					return fmt.Errorf("%+v", now)
				}
				return nil
			})
			resetConn(p1)
			return p1.LocalAddr().String()
		},
	},
	"the client is stopped": opened(set("drain_timeout = \"100ms\"\n", "laptop"), signalled("laptop", syscall.SIGTERM, false)),
	"the server is stopped": opened(set("drain_timeout = \"100ms\"\n", "nas"), signalled("nas", syscall.SIGTERM, false)),
	`the mapping is removed, and on_remove is "close"`: opened(nil, func(t *testing.T, w *world, _, _ net.Conn) {
		edit(t, w, "laptop", `server = "nas"`, "server = \"nas\"\non_remove = \"close\"\nenabled = false")
	}),
	"the relay withdraws the right": opened(nil, func(t *testing.T, w *world, _, _ net.Conn) {
		edit(t, w, "relay", `allowed_servers = ["nas"]`, `allowed_servers = []`)
	}),
	"the server withdraws the right": opened(nil, func(t *testing.T, w *world, _, _ net.Conn) {
		edit(t, w, "nas", `clients = ["laptop"]`, `clients = ["somebody"]`)
	}),
	"the client is killed":                                  opened(set("resume_timeout = \"1s\"\n", "nas"), signalled("laptop", syscall.SIGKILL, false)),
	"the server is killed, and comes back":                  opened(nil, signalled("nas", syscall.SIGKILL, true)),
	"the relay is killed, and no other takes over in time":  opened(set("resume_timeout = \"1s\"\n", "nas", "laptop"), signalled("relay", syscall.SIGKILL, false)),
	"the relay is stopped, and no other takes over in time": opened(set("resume_timeout = \"1s\"\n", "nas", "laptop"), signalled("relay", syscall.SIGTERM, false)),
	"the relay does not allow it":                           refusedWith(func(_ *testing.T, w *world) { w.allowed = `"nas:22"` }),
	"the server does not allow it": refusedWith(func(t *testing.T, w *world) {
		w.ports["P1"] = elsewhere(t, w, "nas")
	}),
	"the server is not connected": refusedWith(func(t *testing.T, w *world) {
		w.allowed = `"absent"`
		w.extra["relay"] += "[limits]\npark_timeout = \"0s\"\n[[peers]]\nid = \"absent\"\nrole = \"server\"\npublic_key = \"m5ZbHNo2w1bOBuJ5rWBgPSCA4jHW2Xn2iWVvYtDmZzo=\"\n"
		w.ports["P1"] = elsewhere(t, w, "absent")
	}),
	"nobody listens at the target": refusedWith(func(t *testing.T, w *world) { w.ports["target"] = testutil.FreePort(t) }),
	"the target does not answer": refusedWith(func(t *testing.T, w *world) {
		w.extra["nas"] += "[limits]\ndial_timeout = \"1s\"\n"
		w.ports["target"] = deafListener(t)
	}),
	"the mapping leads to itself": {
		prepare: func(_ *testing.T, w *world) { w.ports["P1"] = w.loop(1) },
		happen: func(t *testing.T, w *world, _ *recorder) string {
			refusedConnection(t, w.ports["P1"])
			return idOf(t, w, "laptop", wire.StatusLoop)
		},
	},
	"the server is about to stop, and does not come back": {
		happen: func(t *testing.T, w *world, p5s *recorder) string {
			p5s.open(t, w)
			w.procs["nas"].signal(syscall.SIGTERM)
			w.procs["nas"].says(t, "ptthqd is stopping")
			return refusedConnection(t, w.ports["mapping"])
		},
	},
	"a limit of the relay":  tooMany("relay", "opens_per_second = 1"),
	"a limit of the server": tooMany("nas", "sessions_per_client = 1"),
	"no relay is connected": {
		prepare: set("[limits]\nhold_timeout = \"100ms\"\n", "laptop"),
		happen: func(t *testing.T, w *world, _ *recorder) string {
			w.procs["relay"].kill()
			w.procs["laptop"].says(t, "link down")
			return refusedConnection(t, w.ports["mapping"])
		},
	},
}

// elsewhere adds a mapping that leads to a port of a server that no service covers, and returns its own port.
func elsewhere(t *testing.T, w *world, server string) int {
	t.Helper()
	port := testutil.FreePort(t)
	w.mapping("other", fmt.Sprintf("127.0.0.1:%d", port), server, "9")
	return port
}

// tooMany is a way in which a connection is one too many for a node. It returns its ID: which of them is told of is known
// from the log alone, as those that follow it, and differ in nothing but the port, are not.
func tooMany(node, limit string) way {
	return way{prepare: set("[limits]\n"+limit+"\n", node), happen: func(t *testing.T, w *world, p5s *recorder) (id string) {
		for range 20 { // each but the first, or second, or after a second's rest
			p1, err := w.dial()
			if err == nil {
				defer func() { _ = p1.Close() }()
				_ = p1.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				_, err = p1.Read(make([]byte, 1))
			}
			if os.IsTimeout(err) {
				continue
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Fatal(err)
			}
			eventually(t, 10*time.Second, "the client tells of a refusal", func() error {
				for _, e := range w.procs["laptop"].entries(t) {
					if e.end == "refused" {
						id = e.id
						return nil
					}
				}
				return errors.New("it tells of none")
			})
			return id
		}
		t.Fatal("never too many")
		return ""
	}}
}

// An entry is a line of a log.
type entry struct {
	level, message, end, by, id, source string
	code                                float64
}

// entries are the lines of a node about the end of connections.
func (p *process) entries(t *testing.T) (all []entry) {
	t.Helper()
	for line := range strings.Lines(p.output()) {
		var fields map[string]any
		if !strings.HasSuffix(line, "\n") || json.Unmarshal([]byte(line), &fields) != nil {
			continue // begun, or none of the log
		}
		text := func(key string) string { s, _ := fields[key].(string); return s }
		e := entry{level: text("level"), message: text("msg"), end: text("end"), by: text("by"), id: text("connection"), source: text("source"), code: -1}
		if code, ok := fields["code"].(float64); ok {
			e.code = code
		}
		if strings.HasPrefix(e.message, "connection ") && e.id != "" && e.level != "DEBUG" {
			all = append(all, e)
		}
	}
	return all
}

// A row is one of the table: what happens, and the lines that each node has then.
type row struct {
	happens string
	lines   map[string][]wanted
	plays   string // the node that is no ptthqd, of which the table says nothing
}

type wanted struct {
	level, message string
	fields         map[string]string
}

func (want wanted) is(e entry) bool {
	have := map[string]string{"end": e.end, "by": e.by, "code": fmt.Sprint(e.code)}
	for key, value := range want.fields {
		if have[key] != value {
			return false
		}
	}
	return e.level == want.level && e.message == want.message
}

var cell = regexp.MustCompile("^([A-Z]+) (connection [a-z]+)(?: `([^`]*)`)?$")

var pair = regexp.MustCompile(`(\w+)=("[^"]*"|\S+)`)

// manualRows reads the table of docs/ends.md.
func manualRows(t *testing.T) (rows []row) {
	t.Helper()
	text, err := os.ReadFile("../../docs/ends.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "|---|---|---|---|\n")
	table, _, _ = strings.Cut(table, "\n\n")
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 {
			t.Fatalf("%d cells: %s", len(cells), line)
		}
		r := row{strings.TrimSpace(cells[0]), map[string][]wanted{}, ""}
		for i, node := range []string{"laptop", "relay", "nas"} {
			for part := range strings.SplitSeq(strings.TrimSpace(cells[i+1]), "<br>") {
				if part == "-" {
					continue
				}
				if part == "…" {
					r.plays = node
					continue
				}
				found := cell.FindStringSubmatch(part)
				if found == nil {
					t.Fatalf("%s: %q", r.happens, part)
				}
				want := wanted{found[1], found[2], map[string]string{}}
				for _, p := range pair.FindAllStringSubmatch(found[3], -1) {
					want.fields[p[1]] = strings.Trim(p[2], `"`)
				}
				r.lines[node] = append(r.lines[node], want)
			}
		}
		rows = append(rows, r)
	}
	return rows
}

// TestLines has each connection of docs/ends.md end as it says there, and finds at each node the lines that it says, and no
// others, all with the ID that the first node has given it.
func TestLines(t *testing.T) {
	t.Parallel()
	rows := manualRows(t)
	all := maps.Clone(ways)
	maps.Copy(all, otherWays)
	if len(rows) != len(all) {
		t.Errorf("%d rows in the manual, %d ways here", len(rows), len(all))
	}
	for i, r := range rows {
		how, ok := all[r.happens]
		if !ok || how.plays != r.plays {
			t.Errorf("nobody makes %q happen, with %q played", r.happens, r.plays)
			continue
		}
		t.Run(fmt.Sprintf("way%02d", i), func(t *testing.T) {
			t.Log(r.happens)
			p5s := newRecorder()
			w := newWorld(t, p5s.serve)
			if how.prepare != nil {
				how.prepare(t, w)
			}
			w.writeConfigs()
			nodes := slices.DeleteFunc([]string{"relay", "nas", "laptop"}, func(node string) bool { return node == how.plays })
			for _, node := range nodes {
				w.start(node, logJSON)
			}
			if how.plays != "relay" {
				linked(t, w, nodes[1:]...)
			}
			if how.plays == "" {
				serverConnected(t, w)
			}
			who := how.happen(t, w, p5s)
			id := ""
			eventually(t, 20*time.Second, "the lines of all nodes are as in the manual", func() error {
				for _, node := range nodes {
					for _, e := range w.procs[node].entries(t) {
						if e.source == who || e.id == who || who == "" {
							id = e.id
						}
					}
				}
				for _, node := range nodes {
					var found []entry
					for _, e := range w.procs[node].entries(t) {
						if e.id == id {
							found = append(found, e)
						}
					}
					if len(found) != len(r.lines[node]) {
						return fmt.Errorf("%s: %+v, want %+v", node, found, r.lines[node])
					}
					for _, want := range r.lines[node] {
						if !slices.ContainsFunc(found, want.is) {
							return fmt.Errorf("%s: %+v, want %+v", node, found, want)
						}
					}
				}
				return nil
			})
		})
	}
}

// Each end and each code that the manual explains is in a line of its table, and the other way round.
func TestManualOfEnds(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/ends.md")
	if err != nil {
		t.Fatal(err)
	}
	_, explained, _ := strings.Cut(string(text), "\n## Codes\n")
	codes, ends, _ := strings.Cut(explained, "\n## Ends\n")
	said := map[string]bool{}
	for _, r := range manualRows(t) {
		for _, lines := range r.lines {
			for _, want := range lines {
				said[want.fields["end"]], said[want.fields["code"]] = true, true
				if end, code := want.fields["end"], want.fields["code"]; end != "" && !strings.Contains(ends, "`"+end+"`") || code != "" && !strings.Contains(codes, "\n| "+code+" |") {
					t.Errorf("end %q, code %q are not explained", end, code)
				}
			}
		}
	}
	for _, found := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllStringSubmatch(codes, -1) {
		if !said[found[1]] {
			t.Errorf("no row ends with code %s", found[1])
		}
	}
	for row := range strings.Lines(ends) {
		cells := strings.Split(row, "|")
		if len(cells) < 2 {
			continue
		}
		for _, found := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			if !said[found[1]] {
				t.Errorf("no row ends with %q", found[1])
			}
		}
	}
	for status := wire.Status(100); status < 1000; status++ {
		if status.String() != strconv.Itoa(int(status)) && !said[strconv.Itoa(int(status))] {
			t.Errorf("no row ends with %v", status)
		}
	}
}

// TestStatusShowsTheConnection has the status of all nodes show one connection, under one ID, with what each knows of it.
func TestStatusShowsTheConnection(t *testing.T) {
	t.Parallel()
	p5s := newRecorder()
	w := p5s.started(t, "")
	p1, p5 := p5s.open(t, w)
	var found []control.Connection
	for _, node := range []string{"laptop", "relay", "nas"} {
		eventually(t, 10*time.Second, node+" shows it alone", func() error {
			now := w.status(node).Connections
			if len(now) != 1 || now[0].State != "attached" && now[0].State != "open" {
				return fmt.Errorf("%+v", now)
			}
			found = append(found, now[0])
			return nil
		})
	}
	target := fmt.Sprintf(":%d", w.ports["target"])
	for _, c := range found {
		if len(c.ID) != 8 || c.ID != found[0].ID || c.Source != p1.LocalAddr().String() || c.Target != target || c.BytesUp < 5 || c.BytesDown < 5 {
			t.Errorf("%+v", c)
		}
	}
	if c := found[0]; c.Mapping != "main" || c.Server != "nas" || c.Relay == "" {
		t.Errorf("the client: %+v", c)
	}
	if c := found[1]; c.Client != "laptop" || c.Server != "nas" {
		t.Errorf("the relay: %+v", c)
	}
	if c := found[2]; c.Client != "laptop" || c.Peer != p5.LocalAddr().String() || c.Relay == "" {
		t.Errorf("the server: %+v", c)
	}
}
