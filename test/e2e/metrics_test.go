//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

// A prometheus is a real one that scrapes the nodes of a world.
type prometheus struct {
	t       *testing.T
	address string
}

// scrapeEvery is how often it does so.
const scrapeEvery = 500 * time.Millisecond

// prometheus starts one. The nodes must serve metrics at w.ports["NODE metrics"].
func (w *world) prometheus(nodes ...string) *prometheus {
	t := w.t
	t.Helper()
	requires(t, has("prometheus"), "apt-get install prometheus")
	p := &prometheus{t: t, address: fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t))}
	var text strings.Builder
	rules, err := filepath.Abs("../../docs/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&text, "global: {scrape_interval: %v, evaluation_interval: 1s}\nrule_files: [%q]\nscrape_configs:\n- job_name: ptthqd\n  static_configs:\n", scrapeEvery, rules)
	for _, node := range nodes {
		fmt.Fprintf(&text, "  - {targets: [\"127.0.0.1:%d\"], labels: {node: %s}}\n", w.ports[node+" metrics"], node)
	}
	config := filepath.Join(w.dir, "prometheus.yml")
	if err := os.WriteFile(config, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(w.dir, "prometheus.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(w.dir, "tsdb"), "--web.listen-address="+p.address)
	cmd.Stdout, cmd.Stderr = log, log
	ended, err := startForLife(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = log.Close()
		if said, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("prometheus said:\n%s", said)
		}
	})
	for _, node := range nodes {
		p.eventually(fmt.Sprintf("up{node=%q}", node), 1)
	}
	return p
}

// startForLife starts a command that the system kills when this process dies. What the system means by that is the death of
// the thread that has started it, and those that enter a namespace (see lab.do) die early: so it has one of its own.
func startForLife(cmd *exec.Cmd) (ended <-chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, done := make(chan error), make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	return done, <-started
}

// query evaluates an expression that has one value.
func (p *prometheus) query(expression string) (float64, error) {
	answer, err := http.Get("http://" + p.address + "/api/v1/query?query=" + url.QueryEscape(expression))
	if err != nil {
		return 0, err
	}
	defer func() { _ = answer.Body.Close() }()
	var body struct {
		Status, Error string
		Data          struct {
			Result []struct{ Value [2]any }
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&body); err != nil {
		return 0, err
	}
	if body.Status != "success" || len(body.Data.Result) != 1 {
		return 0, fmt.Errorf("%s: %+v", expression, body)
	}
	text, _ := body.Data.Result[0].Value[1].(string)
	return strconv.ParseFloat(text, 64)
}

// eventually waits until an expression has a value; a scrape may be a moment old.
func (p *prometheus) eventually(expression string, want float64) {
	p.t.Helper()
	eventually(p.t, 20*time.Second, expression, func() error {
		got, err := p.query(expression)
		if err == nil && got != want {
			err = fmt.Errorf("it is %v, not %v", got, want)
		}
		return err
	})
}

// The load of TestPrometheus: connections that carry a head of 17 bytes and the payload up, and the
// payload down.
const (
	loadConnections = 10000
	loadPayload     = 3000
	loadHead        = 17
)

var allNodes = []string{"relay", "nas", "laptop"}

// TestPrometheus has a real Prometheus scrape a chain under load, and compares its figures with the
// load.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	w.withMetrics(allNodes...)
	refused := w.forward(strconv.Itoa(testutil.FreePort(t))) // nobody listens there
	for _, node := range allNodes {
		w.start(node)
	}
	linked(t, w, "nas", "laptop") // or the first connection may be refused, and count
	serverConnected(t, w)
	w.carries(10 * time.Second)
	p := w.prometheus(allNodes...)

	// The only series that come later are those of histograms, one for each code that a dial comes
	// to: let them come.
	refusedOnce(t, refused)
	eventually(t, 10*time.Second, "all is counted", func() error {
		if now := w.status("nas"); len(now.Connections) > 0 {
			return errors.New("a connection is open")
		}
		return nil
	})
	opened := float64(w.status("laptop").Counters.Opened) // by w.carries
	p.eventually(`ptthqd_connections_opened_total{node="laptop",mapping="main"}`, opened)
	p.eventually(`sum(ptthqd_connections_refused_total{node="laptop",code="502"})`, 1)
	p.eventually(`ptthqd_dial_duration_seconds_count{node="nas",code="200"}`, opened)
	p.eventually(`ptthqd_dial_duration_seconds_count{node="nas",code="502"}`, 1)
	series := p.series()
	up := p.value(`ptthqd_forwarded_bytes_total{node="laptop",mapping="main",direction="up"}`)
	down := p.value(`ptthqd_forwarded_bytes_total{node="laptop",mapping="main",direction="down"}`)

	w.underLoad()
	for range 3 {
		refusedOnce(t, refused)
	}
	p.hasCounted(opened, up, down)
	w.compareGauges(p)
	w.failsReload(p)

	// After all that there are as many series as before.
	for node, before := range series {
		p.eventually(seriesOf(node), before)
	}
	t.Logf("%d connections; series: %v", loadConnections, series)
	w.losesRelay(p)
}

// refusedOnce opens a connection that is refused.
func refusedOnce(t *testing.T, port int) {
	t.Helper()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if errors.Is(err, syscall.ECONNRESET) { // the refusal was faster than Dial
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	wantReset(t, "P1 of a refused connection", c, 10*time.Second)
	_ = c.Close()
}

// value is that of an expression, at once.
func (p *prometheus) value(expression string) float64 {
	p.t.Helper()
	n, err := p.query(expression)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

// series counts the series of each node, after two scrapes.
func (p *prometheus) series() map[string]float64 {
	p.t.Helper()
	<-time.After(2 * scrapeEvery)
	all := make(map[string]float64)
	for _, node := range allNodes {
		all[node] = p.value(seriesOf(node))
	}
	return all
}

// underLoad opens the load's connections, eight at a time.
func (w *world) underLoad() {
	w.t.Helper()
	var load sync.WaitGroup
	errs := make(chan error, 8)
	for worker := range 8 {
		load.Go(func() {
			for i := worker; i < loadConnections; i += 8 {
				if err := w.echo(loadPayload); err != nil {
					errs <- fmt.Errorf("connection %d: %w", i, err)
					return
				}
			}
		})
	}
	load.Wait()
	close(errs)
	for err := range errs {
		w.t.Error(err)
	}
}

// hasCounted wants what Prometheus knows to be the load and four refused connections, above the
// connections and bytes of before.
func (p *prometheus) hasCounted(opened, up, down float64) {
	p.t.Helper()
	const n, payload = float64(loadConnections), float64(loadPayload)
	for _, node := range allNodes {
		p.eventually(fmt.Sprintf(`sum(ptthqd_connections_opened_total{node=%q})`, node), n+opened)
		p.eventually(fmt.Sprintf(`sum(ptthqd_connections{node=%q})`, node), 0)
		p.eventually(fmt.Sprintf(`sum(ptthqd_connections_refused_total{node=%q})`, node), 4)
	}
	for _, node := range []string{"nas", "laptop"} {
		p.eventually(fmt.Sprintf(`sum(ptthqd_connections_ended_total{node=%q,end="closed"})`, node), n+opened)
		p.eventually(fmt.Sprintf(`sum(ptthqd_connections_ended_total{node=%q,end!="closed"})`, node), 4)
		p.eventually(fmt.Sprintf(`sum(ptthqd_forwarded_bytes_total{node=%q,direction="up"})`, node), up+n*(payload+loadHead))
		p.eventually(fmt.Sprintf(`sum(ptthqd_forwarded_bytes_total{node=%q,direction="down"})`, node), down+n*payload)
	}
	p.eventually(`ptthqd_open_duration_seconds_count{node="laptop",mapping="main"}`, n+opened)
	p.eventually(`ptthqd_open_duration_seconds_count{node="relay"}`, n+opened)
	p.eventually(`ptthqd_dial_duration_seconds_count{node="nas",code="200"}`, n+opened)
	p.eventually(`ptthqd_dial_duration_seconds_count{node="nas",code="502"}`, 4)
	p.eventually(`sum(ptthqd_peers_connected)`, 2)
	p.eventually(`count(ptthqd_link_up == 1)`, 4)
	p.eventually(`sum(ptthqd_udp_packets_dropped_total) >= bool 0`, 1)

	// A relay sees the bytes of all of them with the framing; the links carry at least what was forwarded.
	for _, expression := range []string{
		fmt.Sprintf(`sum(ptthqd_forwarded_bytes_total{node="relay"}) > bool %v`, n*2*payload),
		fmt.Sprintf(`sum(ptthqd_link_bytes_total{node="laptop"}) > bool %v`, n*2*payload),
		fmt.Sprintf(`sum(ptthqd_link_bytes_total{node="relay"}) > bool %v`, n*4*payload),
		`histogram_quantile(0.5, sum by (le) (ptthqd_open_duration_seconds_bucket{node="laptop"})) < bool 1`,
	} {
		p.eventually(expression, 1)
	}
}

// failsReload has a reload fail, and its alert come.
func (w *world) failsReload(p *prometheus) {
	w.t.Helper()
	w.write("laptop", "nonsense\n")
	p.eventually(`ptthqd_config_last_reload_successful{node="laptop"}`, 0)
	p.eventually(`ptthqd_config_reloads_total{node="laptop",result="failure"}`, 1)
	p.eventually(`ALERTS{alertname="PtthqdReloadFailed",alertstate="pending"}`, 1)
	w.writeConfigs()
	p.eventually(`ptthqd_config_last_reload_successful{node="laptop"}`, 1)
}

// losesRelay kills the relay under an open connection, and starts it again.
func (w *world) losesRelay(p *prometheus) {
	w.t.Helper()
	p1 := w.mustDial()
	if _, err := p1.Write(append(request{kind: kindEcho}.bytes(), "before"...)); err != nil {
		w.t.Fatal(err)
	}
	if err := hears(p1, "before"); err != nil {
		w.t.Fatal(err)
	}
	w.procs["relay"].kill()
	p.eventually(`up{node="relay"}`, 0)
	p.eventually(`sum(ptthqd_link_up{relay!=""})`, 0)
	p.eventually(`sum(ptthqd_link_dials_failed_total{node="laptop",reason="no_answer"}) > bool 0`, 1)
	p.eventually(`count(ALERTS{alertname="PtthqdNoLink"})`, 2)
	p.eventually(`sum(ptthqd_connections{state="detached"})`, 2)
	w.start("relay")
	p.eventually(`sum(ptthqd_link_up{relay!=""})`, 2)
	p.eventually(`sum(ptthqd_connections_resumed_total{node="laptop",mapping="main"})`, 1)
	p.eventually(`sum(ptthqd_connections_resumed_total{node="nas"})`, 1)
	p.eventually(`sum(ptthqd_connections{state="detached"})`, 0)
	p.eventually(`sum(increase(ptthqd_link_ended_total{node="laptop",reason=~"silent|restarted|failed"}[1m])) > bool 0`, 1)
}

// compareGauges compares what Prometheus knows of the nodes' config, links, sockets and budgets with their status.
func (w *world) compareGauges(p *prometheus) {
	w.t.Helper()
	number := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	for _, node := range allNodes {
		s := w.status(node)
		is := func(want float64, metric, labels string) {
			w.t.Helper()
			p.eventually(fmt.Sprintf("sum(%s{node=%q%s})", metric, node, labels), want)
		}
		is(1, "ptthqd_build_info", fmt.Sprintf(",version=%q", s.Version))
		is(1, "ptthqd_config_info", fmt.Sprintf(",hash=%q", s.Config.Hash[:12]))
		if limit := s.Process.MemoryLimit; limit > 0 { // a relay has no sessions
			is(float64(limit), "ptthqd_budget_limit_bytes", `,budget=~"session_memory|retained_memory"`)
		}
		for _, l := range s.Links {
			is(number(l.Figures.GSO), "ptthqd_link_gso", "")
			is(number(l.Socket.GRO), "ptthqd_udp_gro", "")
			is(float64(l.Socket.ReceiveBuffer), "ptthqd_udp_receive_buffer_bytes", "")
			p.eventually(fmt.Sprintf("ptthqd_link_rtt_seconds{node=%q} > bool 0", node), 1)
		}
		for _, l := range s.Listeners {
			is(number(l.GRO), "ptthqd_udp_gro", "")
			is(float64(l.ReceiveBuffer), "ptthqd_udp_receive_buffer_bytes", "")
		}
		if s.Role == "relay" {
			is(1, "ptthqd_peers_known", `,role="client"`)
			is(1, "ptthqd_peers_connected", `,role="server"`)
			is(2, "ptthqd_link_up", "")
		}
	}
}

// seriesOf counts the series of a node. The number of buckets of the Go runtime's own histograms is the runtime's business.
func seriesOf(node string) string { return fmt.Sprintf(`count({node=%q,__name__=~"ptthqd_.+"})`, node) }

// echo opens a connection, and sends and gets back so many bytes, in good order.
func (w *world) echo(n int) error {
	c, err := w.dial()
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(append(request{kind: kindEcho}.bytes(), make([]byte, n)...)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.Copy(io.Discard, c)
	if err == nil && got != int64(n) {
		err = fmt.Errorf("%d bytes came back", got)
	}
	return err
}

// A client that is stopped, and still carries a connection, is alive, and not ready any more.
func TestReadiness(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer)
	port := testutil.FreePort(t)
	w.extra["laptop"] = fmt.Sprintf("drain_timeout = \"20s\"\n[metrics]\nlisten = \"127.0.0.1:%d\"\n", port)
	w.writeConfigs()
	w.all()
	page := func(path string) (int, string) {
		answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = answer.Body.Close() }()
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(body)
	}
	p1 := w.mustDial()
	if _, err := p1.Write(append(request{kind: kindEcho}.bytes(), "before"...)); err != nil {
		t.Fatal(err)
	}
	if err := hears(p1, "before"); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/readyz", "/healthz"} {
		if code, body := page(path); code != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	w.procs["laptop"].signal(syscall.SIGTERM)
	eventually(t, 10*time.Second, "it is not ready", func() error {
		if code, body := page("/readyz"); code != http.StatusServiceUnavailable || body != "draining\n" {
			return fmt.Errorf("%d %q", code, body)
		}
		return nil
	})
	if code, body := page("/healthz"); code != http.StatusOK {
		t.Errorf("its health: %d %q", code, body)
	}
	if _, body := page("/metrics"); !strings.Contains(body, "\nptthqd_ready 0\n") {
		t.Error("its metrics say that it is ready")
	}
	_ = p1.Close()
	select {
	case <-w.procs["laptop"].exited:
	case <-time.After(10 * time.Second):
		t.Error("it does not stop")
	}
}

// TestAlertRules has promtool look at the rules, and try the ones that compare over time.
func TestAlertRules(t *testing.T) {
	t.Parallel()
	requires(t, has("promtool"), "apt-get install prometheus")
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", "../../docs/alerts.yml"},
		{"test", "rules", "testdata/alerts_test.yml"},
	} {
		if said, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, said)
		}
	}
}
