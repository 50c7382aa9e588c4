package daemon_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"ptthqd/pkg/control"
	"ptthqd/pkg/daemon"
	"ptthqd/test/testutil"
)

// chain starts a relay, a server with a service that echoes, and a client, which serve metrics.
func (s *site) chain() (relay, server, client *process, metrics map[string]string, mapping int) {
	t := s.t
	t.Helper()
	l := testutil.Listening(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.Close()
	})
	keys := map[string]string{}
	metrics = map[string]string{}
	settings := map[string]string{}
	for _, node := range []string{"relay", "nas", "laptop"} {
		keys[node] = s.key(node)
		metrics[node] = fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t))
		settings[node] = fmt.Sprintf("[metrics]\nlisten = %q\n", metrics[node])
	}
	port, target := testutil.FreePort(t), l.Addr().(*net.TCPAddr).Port
	mapping = testutil.FreePort(t)
	relays := fmt.Sprintf("[[relays]]\naddress = \"127.0.0.1:%d\"\npublic_key = %q\n", port, keys["relay"])
	s.write("relay.toml", relayConfig(port, settings["relay"]+peer("nas", keys["nas"])+
		fmt.Sprintf("[[peers]]\nid = \"laptop\"\nrole = \"client\"\npublic_key = %q\nallowed_servers = [\"nas\"]\n", keys["laptop"])))
	s.write("nas.toml", fmt.Sprintf("role = \"server\"\nid = \"nas\"\n%s%s[[services]]\ntarget = \"%d\"\nclients = [\"laptop\"]\n", settings["nas"], relays, target))
	s.write("laptop.toml", fmt.Sprintf("role = \"client\"\nid = \"laptop\"\n%s%s[[mappings]]\nname = \"echo\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\ntarget = \"%d\"\n",
		settings["laptop"], relays, mapping, target))
	relay, server, client = s.start("relay"), s.start("nas"), s.start("laptop")
	connected := func(now *control.Status) bool { return now.Links[0].State == control.LinkConnected }
	server.until("the server is connected", connected)
	client.until("the client is connected", connected)
	return relay, server, client, metrics, mapping
}

// echo sends text through the chain and reads it back, to the end.
func echo(t *testing.T, mapping int, text string) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", mapping))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != text {
		t.Fatalf("echoed %q, %v", got, err)
	}
}

// get fetches a page of a metrics server.
func get(t *testing.T, address, path string) (status int, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func has(t *testing.T, exposition string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !regexp.MustCompile("(?m)^" + line + "$").MatchString(exposition) {
			t.Errorf("there is no line %s", line)
		}
	}
}

func TestMetrics(t *testing.T) {
	s := newSite(t)
	_, _, client, at, mapping := s.chain()
	for range 3 {
		echo(t, mapping, "twelve bytes")
	}
	client.until("all have ended", func(now *control.Status) bool { return now.Counters.Ended["closed"] == 3 })

	_, laptop := get(t, at["laptop"], "/metrics")
	_, nas := get(t, at["nas"], "/metrics")
	_, relay := get(t, at["relay"], "/metrics")
	has(t, laptop,
		`ptthqd_build_info\{goversion="go1[^"]+",version="test"\} 1`,
		`ptthqd_node_info\{id="laptop",role="client"\} 1`,
		`ptthqd_ready 1`,
		`ptthqd_connections_opened_total\{mapping="echo"\} 3`,
		`ptthqd_connections_ended_total\{end="closed",mapping="echo"\} 3`,
		`ptthqd_connections\{mapping="echo",state="attached"\} 0`,
		`ptthqd_forwarded_bytes_total\{direction="up",mapping="echo"\} 36`,
		`ptthqd_forwarded_bytes_total\{direction="down",mapping="echo"\} 36`,
		`ptthqd_open_duration_seconds_count\{mapping="echo"\} 3`,
		`ptthqd_link_up\{peer="",relay="127.0.0.1:\d+"\} 1`,
		`ptthqd_link_rtt_seconds\{peer="",relay="127.0.0.1:\d+"\} 0\.\d+`,
		`ptthqd_link_bytes_total\{direction="sent",peer="",relay="127.0.0.1:\d+"\} [1-9].*`,
		`ptthqd_budget_limit_bytes\{budget="session_memory"\} 2.68435456e\+08`,
		`ptthqd_connections_refused_total\{code="403",mapping="echo"\} 0`,
		`ptthqd_limits_hit_total\{limit="sessions"\} 0`,
		`ptthqd_link_dials_failed_total\{reason="no_answer",relay="127.0.0.1:\d+"\} \d+`,
		`ptthqd_udp_receive_buffer_bytes\{socket="127.0.0.1:\d+"\} [1-9].*`,
		`go_goroutines \d+`,
	)
	has(t, nas, `ptthqd_dial_duration_seconds_count\{code="200"\} 3`, `ptthqd_connections_opened_total\{mapping=""\} 3`)
	has(t, relay,
		`ptthqd_connections_opened_total\{mapping=""\} 3`,
		`ptthqd_open_duration_seconds_count\{mapping=""\} 3`,
		`ptthqd_peers_known\{role="client"\} 1`,
		`ptthqd_peers_connected\{role="server"\} 1`,
		`ptthqd_link_up\{peer="nas",relay=""\} 1`,
		`ptthqd_udp_packets_received_total\{socket="127.0.0.1:\d+"\} [1-9].*`,
		`ptthqd_udp_packets_dropped_total\{socket="127.0.0.1:\d+"\} 0`,
	)
	if promtool, err := exec.LookPath("promtool"); err == nil {
		for node, page := range map[string]string{"laptop": laptop, "nas": nas, "relay": relay} {
			check := exec.CommandContext(t.Context(), promtool, "check", "metrics")
			check.Stdin = strings.NewReader(page)
			if said, err := check.CombinedOutput(); err != nil || len(said) > 0 {
				t.Errorf("promtool on the metrics of %s: %v\n%s", node, err, said)
			}
		}
	} else if os.Getenv("CI") != "" {
		t.Error("apt-get install prometheus")
	}
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/": 404, "/debug/pprof/": 404} {
		if got, body := get(t, at["laptop"], path); got != want {
			t.Errorf("%s: %d %s", path, got, body)
		}
	}
}

// The metrics listener moves, comes and goes. Where the new one can't be bound, the old one and all
// else stay.
func TestMetricsFollowTheConfig(t *testing.T) {
	s := newSite(t)
	s.key("relay")
	relay, first, second := testutil.FreePort(t), testutil.FreePort(t), testutil.FreePort(t)
	served := func(port string) string { return fmt.Sprintf("[metrics]\nlisten = %q\n", port) }
	at := func(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }
	write := func(more string) { s.write("relay.toml", relayConfig(relay, more)) }
	write("")
	p := s.start("relay")
	reload := func(more string) *control.Reload {
		t.Helper()
		write(more)
		done, err := p.Reload(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	isServed := func(port int, want bool) {
		t.Helper()
		c, err := net.Dial("tcp", at(port))
		if err == nil {
			_ = c.Close()
		}
		if (err == nil) != want {
			t.Errorf("port %d: %v, want served %v", port, err, want)
		}
	}
	isServed(first, false)
	reload(served(at(first)))
	isServed(first, true)
	_, before := get(t, at(first), "/metrics")
	has(t, before, `ptthqd_config_reloads_total\{result="success"\} 1`, `ptthqd_config_last_reload_successful 1`)

	reload(served(at(second)))
	isServed(first, false)
	isServed(second, true)

	// The same port on both loopbacks overlaps the old one.
	if done := reload(served(fmt.Sprint(second))); !done.OK {
		t.Errorf("%+v", done)
	}
	isServed(second, true)

	taken, err := net.Listen("tcp", at(first))
	if err != nil {
		t.Fatal(err)
	}
	done := reload(served(at(first)) + peer("nas", keyA))
	if done.OK || done.Cause != control.CauseHost || !strings.Contains(done.Error, "metrics: listen on "+at(first)+": bind: address already in use") {
		t.Errorf("%+v", done)
	}
	isServed(second, true)
	_, after := get(t, at(second), "/metrics")
	has(t, after, `ptthqd_config_reloads_total\{result="failure"\} 1`, `ptthqd_config_last_reload_successful 0`, `ptthqd_peers_known\{role="server"\} 0`)

	// The obstacle goes: the daemon takes the same config over by itself.
	_ = taken.Close()
	now := p.until("it is in force", func(now *control.Status) bool { return now.Config.Reload.OK })
	if now.Config.Reload.Trigger != "retry" || !p.hasPeer("nas")(now) {
		t.Errorf("%+v", now.Config.Reload)
	}
	isServed(first, true)

	reload("")
	isServed(first, false)
}

const metricsManual = "../../docs/metrics.md"

// The manual's table of metrics lists what the daemon shows. PTTHQD_UPDATE=1 writes it.
func TestMetricsManual(t *testing.T) {
	text, err := os.ReadFile(metricsManual)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := bytes.Cut(text, []byte("<!-- metrics: begin -->\n"))
	_, tail, ok2 := bytes.Cut(rest, []byte("<!-- metrics: end -->\n"))
	if !ok || !ok2 {
		t.Fatal("the marks around the table are gone")
	}
	want := string(head) + "<!-- metrics: begin -->\n" + daemon.MetricsTable() + "<!-- metrics: end -->\n" + string(tail)
	if want == string(text) {
		return
	}
	if os.Getenv("PTTHQD_UPDATE") == "" {
		t.Fatalf("%s isn't what the daemon shows; mend it with PTTHQD_UPDATE=1 go test ./pkg/daemon", metricsManual)
	}
	if err := os.WriteFile(metricsManual, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}
