//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A soakSample is what a process takes and does at a moment. What it doesn't tell is NaN.
type soakSample struct {
	at      time.Duration // since the soak began
	process string
	pid     int
	age     time.Duration // of the process
	values  [len(quantities)]float64
}

const (
	resident = iota
	heap
	budgets
	unbudgeted
	goroutines
	files
	sessions
	resumes
	sentUp
	sentDown
	processor
)

// quantities are the columns of the CSV file. Each has a plot, of the change each second if rate is set. Those with a slack
// must not grow by more than this share and this number.
//
// What connections keep of a budget is not held against a process: a slow reader's window may rise for hours, step by step,
// with each burst that the kernel's buffers take, as far as its limit and the budget let it. The rest of the heap must not
// grow, and at the end nothing of the budgets may be taken.
var quantities = [...]struct {
	column, title string
	unit          float64
	rate          bool
	share, slack  float64
}{
	resident:   {"rss_bytes", "RSS, MiB", 1 << 20, false, .05, 6 << 20},
	heap:       {"heap_bytes", "HEAP, MiB", 1 << 20, false, 0, 0},
	budgets:    {"budgets_bytes", "USED OF THE BUDGETS OF MEMORY, MiB", 1 << 20, false, 0, 0},
	unbudgeted: {"unbudgeted_bytes", "HEAP WITHOUT WHAT THE BUDGETS COUNT, MiB", 1 << 20, false, .05, 2 << 20},
	goroutines: {"goroutines", "GOROUTINES", 1, false, .01, 20},
	files:      {"files", "FILE DESCRIPTORS", 1, false, .01, 10},
	sessions:   {"sessions", "SESSIONS", 1, false, 0, 0},
	resumes:    {"resumes", "RESUMES, IN ALL", 1, false, 0, 0},
	sentUp:     {"bytes_up", "THROUGHPUT UP, MiB/s", 1 << 20, true, 0, 0},
	sentDown:   {"bytes_down", "THROUGHPUT DOWN, MiB/s", 1 << 20, true, 0, 0},
	processor:  {"cpu_seconds", "PROCESSOR, PERCENT OF ONE", .01, true, 0, 0},
}

// A soakWatcher samples the processes of a soak.
type soakWatcher struct {
	t      *testing.T
	w      *world
	dir    string // where everything goes
	end    int    // process ID of P5
	period time.Duration
	begun  time.Time
	since  map[string]time.Time // when each process began
	csv    *os.File
	like   *os.File // the marks

	connections int // that are open at a time, about

	samples  []soakSample
	marks    []soakSample // those that are compared: of like moments, right after a collection of garbage
	restarts []time.Duration
}

func newSoakWatcher(t *testing.T, w *world, dir string, end int, period time.Duration) *soakWatcher {
	t.Helper()
	o := &soakWatcher{t: t, w: w, dir: dir, end: end, period: period, begun: time.Now(), since: make(map[string]time.Time)}
	columns := []string{"seconds", "process", "pid", "age"}
	for _, q := range quantities {
		columns = append(columns, q.column)
	}
	for name, f := range map[string]**os.File{"samples.csv": &o.csv, "marks.csv": &o.like} {
		csv, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = csv.Close() })
		_, _ = fmt.Fprintln(csv, strings.Join(columns, ","))
		*f = csv
	}
	return o
}

// names are those of ptthqd's processes.
func (o *soakWatcher) names() []string { return append(o.w.relays(), "nas", "laptop") }

// look samples all processes.
func (o *soakWatcher) look() {
	o.t.Helper()
	var all []soakSample
	for _, name := range o.names() {
		all = append(all, o.sample(name))
	}
	for name, pid := range map[string]int{"end server": o.end, "test": os.Getpid()} {
		s := o.blank(name, pid, o.begun)
		o.host(&s)
		if pid == os.Getpid() {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			s.values[goroutines], s.values[heap] = float64(runtime.NumGoroutine()), float64(m.HeapAlloc)
		}
		all = append(all, s)
	}
	for _, s := range all {
		_, _ = fmt.Fprintln(o.csv, s)
	}
	o.samples = append(o.samples, all...)
}

// String is a line of the CSV file.
func (s soakSample) String() string {
	fields := []string{fmt.Sprintf("%.1f", s.at.Seconds()), s.process, strconv.Itoa(s.pid), fmt.Sprintf("%.1f", s.age.Seconds())}
	for _, v := range s.values {
		text := ""
		if !math.IsNaN(v) {
			text = strconv.FormatFloat(v, 'f', -1, 64)
		}
		fields = append(fields, text)
	}
	return strings.Join(fields, ",")
}

func (o *soakWatcher) blank(name string, pid int, since time.Time) soakSample {
	s := soakSample{at: time.Since(o.begun), process: name, pid: pid, age: time.Since(since)}
	for i := range s.values {
		s.values[i] = math.NaN()
	}
	return s
}

// sample asks one of ptthqd's processes.
func (o *soakWatcher) sample(name string) soakSample {
	o.t.Helper()
	s := o.blank(name, o.w.procs[name].cmd.Process.Pid, o.since[name])
	o.host(&s)
	m := o.scrape(name)
	s.values[heap] = m.sum("go_memstats_heap_alloc_bytes")
	s.values[budgets] = 0
	for _, budget := range []string{"session_memory", "retained_memory"} { // of clients and servers
		if used := m.sum("ptthqd_budget_used_bytes", budget); !math.IsNaN(used) {
			s.values[budgets] += used
		}
	}
	s.values[unbudgeted] = s.values[heap] - s.values[budgets]
	s.values[goroutines] = m.sum("go_goroutines")
	s.values[sessions] = m.sum("ptthqd_connections")
	s.values[resumes] = m.sum("ptthqd_connections_resumed_total")
	s.values[sentUp] = m.sum("ptthqd_forwarded_bytes_total", `direction="up"`)
	s.values[sentDown] = m.sum("ptthqd_forwarded_bytes_total", `direction="down"`)
	return s
}

// host samples what the host knows of a process.
func (o *soakWatcher) host(s *soakSample) {
	dir := fmt.Sprintf("/proc/%d", s.pid)
	if open, err := os.ReadDir(dir + "/fd"); err == nil {
		s.values[files] = float64(len(open))
	}
	if status, err := os.ReadFile(dir + "/status"); err == nil {
		if _, rss, found := bytes.Cut(status, []byte("VmRSS:")); found {
			kib, _ := strconv.ParseFloat(strings.Fields(string(rss))[0], 64)
			s.values[resident] = kib * 1024
		}
	}
	if ticks, err := cpuTicks(s.pid); err == nil {
		s.values[processor] = float64(ticks) / 100 // USER_HZ
	}
}

// soakMetrics are what a process has answered to Prometheus, by the name with its labels.
type soakMetrics map[string]float64

// sum adds up all series of a metric that have these labels.
func (m soakMetrics) sum(name string, labels ...string) float64 {
	sum, found := 0.0, false
	for series, v := range m {
		metric, rest, _ := strings.Cut(series, "{")
		if metric == name && !slices.ContainsFunc(labels, func(l string) bool { return !strings.Contains(rest, l) }) {
			sum, found = sum+v, true
		}
	}
	if !found {
		return math.NaN()
	}
	return sum
}

// scrape asks a process for its metrics.
func (o *soakWatcher) scrape(name string) soakMetrics {
	o.t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", o.w.ports[name+" metrics"]))
	if err != nil {
		o.t.Fatalf("metrics of %s: %v", name, err)
	}
	defer func() { _ = answer.Body.Close() }()
	m := make(soakMetrics)
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		line := lines.Text()
		if space := strings.LastIndexByte(line, ' '); space > 0 && line[0] != '#' {
			m[line[:space]], _ = strconv.ParseFloat(line[space+1:], 64)
		}
	}
	return m
}

// mark samples a process right after a collection of garbage, to be compared with its other marks; of its RSS it takes the
// peak of the last period. Its heap is written to a
// file, in the place of an older one.
func (o *soakWatcher) mark(name, profile string) {
	o.t.Helper()
	socket := filepath.Join(o.w.path(name, ".run"), "control.sock")
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	answer, err := client.Get("http://ptthqd/debug/pprof/heap?gc=1")
	if err != nil {
		o.t.Fatalf("heap of %s: %v", name, err)
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err == nil {
		err = os.WriteFile(filepath.Join(o.dir, fmt.Sprintf("heap-%s-%s.pb.gz", name, profile)), text, 0o644)
	}
	if err != nil {
		o.t.Fatalf("heap of %s: %v", name, err)
	}
	now := o.sample(name)
	// How much of the memory that is free the runtime has given back at this moment is a matter of chance.
	for _, s := range o.samples {
		if s.pid == now.pid && s.at > now.at-o.period {
			now.values[resident] = max(now.values[resident], s.values[resident])
		}
	}
	o.marks = append(o.marks, now)
	_, _ = fmt.Fprintln(o.like, now)
}

// fewMarks are too few to tell a trend.
const fewMarks = 9

// growth compares the median of the last third of the marks of each process with that of the first third, behind a warm-up
// of a tenth, at least of three. A relay's mark counts if nearly all connections went over it. It returns a table, and what
// has grown.
func (o *soakWatcher) growth() (table, grown []string) {
	table = append(table, fmt.Sprintf("%-8s %-18s %14s %14s %8s", "process", "", "first third", "last third", "marks"))
	for _, name := range o.names() {
		var marks []soakSample
		for _, m := range o.marks {
			if m.process == name && m.values[sessions] > .9*float64(o.connections) {
				marks = append(marks, m)
			}
		}
		marks = marks[min(len(marks), max(3, len(marks)/10)):]
		if len(marks) < fewMarks {
			table = append(table, fmt.Sprintf("%-8s %d marks behind the warm-up are too few to compare", name, len(marks)))
			continue
		}
		third := len(marks) / 3
		for i, q := range quantities {
			if q.slack == 0 && i != sessions && i != heap && i != budgets {
				continue
			}
			first, last := medianOf(marks[:third], i), medianOf(marks[len(marks)-third:], i)
			line := fmt.Sprintf("%-8s %-18s %14.0f %14.0f %8d", name, q.column, first, last, len(marks))
			if q.slack > 0 && last > first*(1+q.share)+q.slack {
				grown = append(grown, line)
				line += " GROWN"
			}
			table = append(table, line)
		}
	}
	return table, grown
}

func medianOf(samples []soakSample, quantity int) float64 {
	var all []float64
	for _, s := range samples {
		all = append(all, s.values[quantity])
	}
	slices.Sort(all)
	return (all[len(all)/2] + all[(len(all)-1)/2]) / 2
}

// draw makes a plot of each quantity.
func (o *soakWatcher) draw() error {
	for i, q := range quantities {
		p := plot{title: q.title}
		for _, at := range o.restarts {
			p.marks = append(p.marks, at.Minutes())
		}
		for _, name := range append(o.names(), "end server", "test") {
			c := curve{name: name}
			var last *soakSample
			for j := range o.samples {
				s := &o.samples[j]
				if s.process != name || math.IsNaN(s.values[i]) {
					continue
				}
				v := s.values[i]
				if q.rate {
					before := last
					if last = s; before == nil || before.pid != s.pid {
						continue
					}
					v = (v - before.values[i]) / (s.at - before.at).Seconds()
				}
				c.x, c.y = append(c.x, s.at.Minutes()), append(c.y, v/q.unit)
			}
			if len(c.x) > 0 {
				p.curves = append(p.curves, c)
			}
		}
		if err := p.write(filepath.Join(o.dir, q.column+".png")); err != nil {
			return err
		}
	}
	return nil
}

// complaints counts the warnings and errors in the log of a process, by their text, the values left out.
func (o *soakWatcher) complaints(name string) (map[string]int, error) {
	f, err := os.Open(filepath.Join(o.dir, name+".log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	count := make(map[string]int)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		for _, level := range []string{"WARN", "ERROR"} {
			if _, said, found := strings.Cut(line, level); found {
				count[level+" "+textOf(said)]++
			}
		}
		for _, word := range []string{"panic", "fatal error", "internal error", "DATA RACE"} {
			if strings.Contains(line, word) {
				count[line]++
			}
		}
	}
	return count, lines.Err()
}

// textOf is the beginning of a line, up to the first key=value.
func textOf(line string) string {
	before, _, found := strings.Cut(line, "=")
	if !found {
		return strings.TrimSpace(line)
	}
	return strings.TrimSpace(before[:max(0, strings.LastIndexByte(before, ' '))])
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, cmp.Compare[string])
	return keys
}
