//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

// withMetrics has nodes serve their metrics. Call it before they start.
func (w *world) withMetrics(nodes ...string) {
	for _, node := range nodes {
		w.ports[node+" metrics"] = testutil.FreePort(w.t)
		w.extra[node] += fmt.Sprintf("[metrics]\nlisten = \"127.0.0.1:%d\"\n", w.ports[node+" metrics"])
	}
	w.writeConfigs()
}

// limitsHit is how often each limit of a node has kept something out or made it wait, by its metrics.
func (w *world) limitsHit(node string) map[string]float64 {
	w.t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			dial := func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			}
			if w.lab == nil {
				return c, dial()
			}
			host := node
			if _, relay := w.hosts[node]; relay {
				host = "hub"
			}
			return c, w.lab.do(host, dial)
		},
	}}
	answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", w.ports[node+" metrics"]))
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	hits := make(map[string]float64)
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		rest, found := strings.CutPrefix(lines.Text(), `ptthqd_limits_hit_total{limit="`)
		if !found {
			continue
		}
		limit, value, _ := strings.Cut(rest, `"} `)
		if n, _ := strconv.ParseFloat(value, 64); n > 0 {
			hits[limit] = n
		}
	}
	if err := lines.Err(); err != nil {
		w.t.Fatal(err)
	}
	return hits
}

// resident is how much memory a node's process has, in bytes.
func (w *world) resident(node string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.procs[node].cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.ParseInt(strings.Fields(rest + " ?")[0], 10, 64)
	return kib << 10, err
}

// A watcher looks at what nodes take of their host, all the time.
type watcher struct {
	w     *world
	nodes []string
	stop  chan struct{}
	done  sync.WaitGroup

	mu   sync.Mutex
	peak map[string]int64 // bytes of memory
}

func (w *world) watch(t *testing.T, nodes ...string) *watcher {
	t.Helper()
	a := &watcher{w: w, nodes: nodes, stop: make(chan struct{}), peak: make(map[string]int64)}
	a.done.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, node := range nodes {
				if now, err := w.resident(node); err == nil {
					a.mu.Lock()
					a.peak[node] = max(a.peak[node], now)
					a.mu.Unlock()
				}
			}
			select {
			case <-tick.C:
			case <-a.stop:
				return
			}
		}
	})
	return a
}

// end tells the most memory that each node had, in MiB.
func (a *watcher) end() map[string]int64 {
	close(a.stop)
	a.done.Wait()
	for node := range a.peak {
		a.peak[node] >>= 20
	}
	return a.peak
}

// load is the share of one processor that a node's process takes for as long as during lasts.
func (w *world) load(t *testing.T, node string, during func()) float64 {
	t.Helper()
	ticks := func() int {
		n, err := cpuTicks(w.procs[node].cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	start, before := time.Now(), ticks()
	during()
	const perSecond = 100 // of all Linux hosts
	return float64(ticks()-before) / perSecond / time.Since(start).Seconds()
}

// settles waits until a node takes no more of its host than it did before, and says what it takes.
func (w *world) settles(t *testing.T, node string, was footprint, within time.Duration) {
	t.Helper()
	eventually(t, within, node+" is as it was", func() error {
		is := w.footprint(t, node)
		if is.goroutines > was.goroutines+10 || is.files > was.files+5 {
			return fmt.Errorf("%+v before, %+v after", was, is)
		}
		t.Logf("%s: %+v before, %+v after", node, was, is)
		return nil
	})
}

// A pingpong is an honest connection that sends a few bytes now and then, and measures how long they take through an echo and back.
type pingpong struct {
	conn net.Conn
	stop atomic.Bool
	done chan error

	mu     sync.Mutex
	trips  []time.Duration
	asking time.Time // since when an answer is due
}

// pings starts one on a connection to an endServer.
func pings(t *testing.T, c net.Conn) *pingpong {
	t.Helper()
	if _, err := c.Write(request{kind: kindEcho}.bytes()); err != nil {
		t.Fatal(err)
	}
	p := &pingpong{conn: c, done: make(chan error, 1)}
	go func() { p.done <- p.run() }()
	return p
}

func (p *pingpong) run() error {
	every := time.NewTicker(5 * time.Millisecond)
	defer every.Stop()
	var sent, got [64]byte
	for n := uint64(1); !p.stop.Load(); n++ {
		<-every.C
		begun := time.Now()
		p.mu.Lock()
		p.asking = begun
		p.mu.Unlock()
		binary.BigEndian.PutUint64(sent[:], n)
		_ = p.conn.SetDeadline(begun.Add(time.Minute))
		if _, err := p.conn.Write(sent[:]); err != nil {
			return err
		}
		if _, err := io.ReadFull(p.conn, got[:]); err != nil {
			return err
		}
		if got != sent {
			return errors.New("something else came back")
		}
		p.mu.Lock()
		p.trips = append(p.trips, time.Since(begun))
		p.asking = time.Time{}
		p.mu.Unlock()
	}
	return nil
}

// trips are the round trips of some time.
type trips struct {
	n             int
	p50, p99, max time.Duration
}

func (r trips) String() string {
	return fmt.Sprintf("p50 %.1f, p99 %.1f, most %.1f ms", float64(r.p50.Microseconds())/1000, float64(r.p99.Microseconds())/1000, float64(r.max.Microseconds())/1000)
}

// take returns the round trips since the last call. One that hasn't ended counts with what it has taken so far.
func (p *pingpong) take() trips {
	p.mu.Lock()
	all := p.trips
	p.trips = nil
	if !p.asking.IsZero() {
		all = append(all, time.Since(p.asking))
	}
	p.mu.Unlock()
	if len(all) == 0 {
		return trips{}
	}
	slices.Sort(all)
	return trips{n: len(all), p50: all[len(all)/2], p99: all[len(all)*99/100], max: all[len(all)-1]}
}

// end ends it, which must have had all its answers.
func (p *pingpong) end(t *testing.T) {
	t.Helper()
	p.stop.Store(true)
	if err := <-p.done; err != nil {
		t.Errorf("an honest connection: %v", err)
	}
	_ = p.conn.Close()
}

func newKey(t *testing.T) ident.PrivateKey {
	t.Helper()
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// unharmed does something hostile, and wants who is honest not to notice: connections that are open, one that is opened
// meanwhile, and one that is opened then. The nodes' memory stays in bounds.
func (w *world) unharmed(t *testing.T, name string, honest *pingpong, nodes []string, do func()) {
	t.Helper()
	const patience, memory = 2 * time.Second, 256 // MiB
	stood := testutil.WatchMachine()
	honest.take()
	<-time.After(300 * time.Millisecond)
	before := honest.take()
	watched := w.watch(t, nodes...)
	opened := make(chan error, 1)
	var took time.Duration
	go func() {
		<-time.After(200 * time.Millisecond)
		begun := time.Now()
		c, err := w.dial()
		if err == nil {
			_ = c.SetDeadline(begun.Add(20 * time.Second))
			err = probe(c)
			_ = c.Close()
		}
		took = time.Since(begun)
		opened <- err
	}()
	begun := time.Now()
	do()
	lasted := time.Since(begun)
	err := <-opened
	during, peaks := honest.take(), watched.end()
	t.Logf("%s (%.1f s): trips before: %v; during: %v; a new connection: %v; memory: %v MiB",
		name, lasted.Seconds(), before, during, took.Round(time.Millisecond), peaks)
	if err != nil {
		t.Errorf("%s: a new connection: %v", name, err)
	}
	if still := stood(); during.p99 > patience || took > 3*patience {
		testutil.Broken(t, still, stalled, "%s: honest connections were held up", name)
	}
	for node, peak := range peaks {
		if peak > memory {
			t.Errorf("%s: %s took %d MiB", name, node, peak)
		}
	}
	w.carries(5 * time.Second)
}

// linesPerSecond is what is told of one client, or mapping, that makes more lines than anybody reads, after the first 2,000.
const linesPerSecond = 100

// fewLines wants a node to have said little, and nothing that a terminal or a script would take for something else.
func (w *world) fewLines(t *testing.T, node string, most int) {
	t.Helper()
	out := w.procs[node].output()
	if n := strings.Count(out, "\n"); n > most {
		t.Errorf("%s has written %d lines; the last: %s", node, n, out[max(0, len(out)-3000):])
	}
	for line := range strings.Lines(out) {
		if len(line) > 6000 {
			t.Errorf("%s has written a line of %d bytes: %.200q…", node, len(line), line)
		}
		for _, r := range strings.TrimSuffix(line, "\n") {
			if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u202e' || r == '\ufffd' {
				t.Errorf("%s has written %U in %.300q", node, r, line)
				return
			}
		}
	}
}
