//go:build linux

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/control"
	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

// A soak runs a chain of two relays for a long time, with thousands of connections of all kinds. A reload of one of the
// nodes, each time with another change, comes every sixth of a period; a relay is restarted every period, which is a minute
// in a soak of 20 minutes or more.
type soak struct {
	*testing.T
	w        *world
	crowd    *crowd
	watch    *soakWatcher
	end      *exec.Cmd // P5
	hurry    io.WriteCloser
	ended    chan [2]uint64 // what P5 has done: connections, bytes
	period   time.Duration
	dir      string
	r        *rand.Rand
	base     map[string]string      // the config of each node, as it was at the beginning
	idle     map[string]soakSample  // what each node took before anything was connected
	counted  map[string]soakMetrics // what each node had counted then
	begun    time.Time
	length   time.Duration
	failures atomic.Int64
	over     atomic.Bool // nothing is a failure any more

	reloads   int
	rounds    map[string]int // of reloads, for each node
	guest     *person        // through the mapping that comes and goes
	restarted map[string]int // by how
	moved     float64        // resumes that no restart is to blame for
	lastMoved float64
}

// enoughFailures end a soak.
const enoughFailures = 20

// TestSoak is the long test, for as long as PTTHQD_SOAK says, as in 1h. It fails if a byte is lost or wrong, if a connection
// ends that nobody has ended, or if a process grows. Samples and plots go to the directory PTTHQD_SOAK_DIR, or to one that
// is printed.
func TestSoak(t *testing.T) {
	if os.Getenv("PTTHQD_SOAK") == "" {
		t.Skip("PTTHQD_SOAK tells how long")
	}
	length, err := time.ParseDuration(os.Getenv("PTTHQD_SOAK"))
	if err != nil || length < time.Minute {
		t.Fatalf("PTTHQD_SOAK=%s: %v; it is a duration of at least 1m, as in 1h", os.Getenv("PTTHQD_SOAK"), err)
	}
	s := &soak{
		T: t, begun: time.Now(), length: length, period: min(max(length/20, 10*time.Second), time.Minute), dir: os.Getenv("PTTHQD_SOAK_DIR"),
		ended: make(chan [2]uint64, 1), r: rand.New(rand.NewPCG(1, 2)),
		base: make(map[string]string), idle: make(map[string]soakSample), counted: make(map[string]soakMetrics), rounds: make(map[string]int), restarted: make(map[string]int),
	}
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "ptthqd-soak-"); err != nil { //nolint:usetesting // it is to stay
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Logf("samples, plots and logs: %s", s.dir)
	s.prepare()
	defer s.report()
	s.crowd.gather(min(s.period, 20*time.Second))
	s.run()
	s.finish()
}

// failed notes what must not be.
func (s *soak) failed(format string, args ...any) {
	if s.over.Load() || s.failures.Add(1) > 2*enoughFailures {
		return
	}
	s.Errorf("%v: "+format, append([]any{time.Since(s.begun).Round(100 * time.Millisecond)}, args...)...)
}

// prepare starts all processes.
func (s *soak) prepare() {
	s.Helper()
	s.w = newWorld(s.T, nil, "one", "two")
	s.startEnd()
	for _, name := range []string{"one", "two", "nas", "laptop"} {
		s.w.ports[name+" metrics"] = testutil.FreePort(s.T)
		s.w.extra[name] = fmt.Sprintf("drain_timeout = \"5s\"\n[metrics]\nlisten = \"127.0.0.1:%d\"\n", s.w.ports[name+" metrics"])
		s.w.prefix[name] = []string{"sh", "-c", `exec "$@" >> "$0" 2>&1`, filepath.Join(s.dir, name+".log")}
	}
	s.w.ports["guest"] = testutil.FreePort(s.T)
	s.w.writeConfigs()
	s.watch = newSoakWatcher(s.T, s.w, s.dir, s.end.Process.Pid, s.period)
	for _, name := range s.watch.names() {
		text, err := os.ReadFile(s.w.path(name, ".toml"))
		if err != nil {
			s.Fatal(err)
		}
		s.base[name] = string(text)
		s.watch.since[name] = time.Now()
	}
	visitor, err := ident.Generate()
	if err != nil {
		s.Fatal(err)
	}
	s.w.keys["visitor"] = visitor
	s.w.all()
	s.linked()
	s.w.empties(s.T, 10*time.Second)
	for _, name := range s.watch.names() {
		s.idle[name] = s.watch.sample(name)
		s.counted[name] = s.watch.scrape(name)
	}
	s.crowd = newCrowd(s.w, s.period, s.failed)
	for _, k := range soakKinds {
		s.watch.connections += k.slots
	}
}

// startEnd starts P5, which is this program again.
func (s *soak) startEnd() {
	s.Helper()
	self, err := os.Executable()
	if err != nil {
		s.Fatal(err)
	}
	s.end = exec.Command(self, "-test.run=^TestSoakEnd$", "-test.timeout=0")
	s.end.Env = append(os.Environ(), "PTTHQD_SOAK_END=1", "PTTHQD="+program)
	s.end.Stderr = os.Stderr
	if s.hurry, err = s.end.StdinPipe(); err != nil {
		s.Fatal(err)
	}
	out, err := s.end.StdoutPipe()
	if err != nil {
		s.Fatal(err)
	}
	if err := s.end.Start(); err != nil {
		s.Fatal(err)
	}
	port := make(chan int, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			what, rest, _ := strings.Cut(lines.Text(), " ")
			switch what {
			case "port":
				n, _ := strconv.Atoi(rest)
				port <- n
			case "wrong":
				s.failed("P5: %s", rest)
			case "done":
				var done [2]uint64
				_, _ = fmt.Sscan(rest, &done[0], &done[1])
				s.ended <- done
			}
		}
	})
	s.Cleanup(func() {
		_ = s.hurry.Close()
		_ = s.end.Process.Kill()
		reading.Wait()
		_ = s.end.Wait()
	})
	s.w.ports["target"] = <-port
}

// dialLocal is P1 at a port of this host.
func dialLocal(port int) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 30*time.Second)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// run does to the chain what is to be done, one after the other.
func (s *soak) run() {
	s.Helper()
	const sampling = 5 * time.Second
	begun := time.Now()
	restart, reload, look := begun.Add(s.period), begun.Add(s.period/12), begun
	story := begun.Add(5 * s.period)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for now := begun; now.Sub(begun) < s.length && s.failures.Load() < enoughFailures; now = <-tick.C {
		switch {
		case now.After(restart):
			restart = restart.Add(s.period)
			s.restart()
		case now.After(reload):
			reload = reload.Add(s.period / 6)
			s.reload()
		case now.After(look):
			look = look.Add(sampling)
			s.watch.look()
			s.count()
		case now.After(story):
			story = story.Add(5 * s.period)
			s.Logf("%v: %s", now.Sub(begun).Round(time.Second), s.figures())
		}
	}
}

// restart ends a relay and starts it again: one after the other, by SIGTERM and by SIGKILL; and each fifth time both at once.
func (s *soak) restart() {
	s.Helper()
	i := len(s.watch.restarts)
	round := []struct {
		signal syscall.Signal
		relays []string
	}{
		{syscall.SIGTERM, []string{"one"}},
		{syscall.SIGKILL, []string{"two"}},
		{syscall.SIGKILL, []string{"one"}},
		{syscall.SIGTERM, []string{"two"}},
		{[]syscall.Signal{syscall.SIGKILL, syscall.SIGTERM}[i/5%2], []string{"one", "two"}},
	}
	now := round[i%len(round)]
	profile := "early"
	if time.Since(s.begun) > s.length/4 {
		profile = "late"
	}
	for _, name := range append([]string{"nas", "laptop"}, now.relays...) {
		// A relay is compared with others of its age, which have had all connections since the other one was restarted.
		if name == "nas" || name == "laptop" || time.Since(s.watch.since[name]) > s.period*3/2 {
			s.watch.mark(name, profile)
		}
	}
	s.watch.restarts = append(s.watch.restarts, time.Since(s.watch.begun))
	s.restarted[now.signal.String()] += len(now.relays)
	if len(now.relays) > 1 {
		// Nobody can open anything, which is as it must be.
		s.crowd.mayOpen.Lock()
		defer s.crowd.mayOpen.Unlock()
		defer s.linked()
	}
	for _, name := range now.relays {
		s.w.procs[name].signal(now.signal)
	}
	for _, name := range now.relays {
		select {
		case <-s.w.procs[name].exited:
		case <-time.After(20 * time.Second):
			s.Fatalf("%s doesn't stop", name)
		}
	}
	<-time.After(time.Duration(s.r.Int64N(int64(s.period / 20))))
	for _, name := range now.relays {
		s.watch.since[name] = time.Now()
		s.w.start(name)
	}
}

// linked waits until every relay has its peers.
func (s *soak) linked() {
	s.Helper()
	for _, name := range s.w.relays() {
		eventually(s.T, 30*time.Second, name+" has its peers", func() error {
			<-time.After(100 * time.Millisecond)
			if n := s.watch.scrape(name).sum("ptthqd_peers_connected"); n != 2 {
				return fmt.Errorf("%v are connected", n)
			}
			return nil
		})
	}
}

// count tells connections that had to move because of a restart from those that moved without.
func (s *soak) count() {
	now := s.watch.samples[len(s.watch.samples)-1]
	for i := len(s.watch.samples) - 1; now.process != "laptop"; i-- {
		now = s.watch.samples[i]
	}
	settled := now.at
	if n := len(s.watch.restarts); n > 0 {
		settled = now.at - s.watch.restarts[n-1]
	}
	if settled > s.period/2 {
		s.moved += now.values[resumes] - s.lastMoved
	}
	s.lastMoved = now.values[resumes]
}

// reload changes the config of a node, each role in turn, and has it taken over: by the command, by SIGHUP, or because the
// file is watched.
func (s *soak) reload() {
	s.Helper()
	i := s.reloads
	s.reloads++
	name := []string{"laptop", "nas", "one", "laptop", "nas", "two"}[i%6]
	round := s.rounds[name]
	s.rounds[name]++
	before := s.watch.scrape(name)
	s.w.write(name, s.variant(name, round%4)(s.base[name]))
	switch (i + i/3) % 3 {
	case 0:
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		asked := &control.Client{Socket: filepath.Join(s.w.path(name, ".run"), "control.sock")}
		done, err := asked.Reload(ctx)
		if err != nil || !done.OK || len(done.Changes) == 0 {
			s.failed("reload %d of %s: %+v, %v", round, name, done, err)
		}
	case 1:
		s.w.procs[name].signal(syscall.SIGHUP)
	}
	eventually(s.T, 30*time.Second, fmt.Sprintf("reload %d of %s", round, name), func() error {
		const total = "ptthqd_config_reloads_total"
		<-time.After(100 * time.Millisecond)
		now := s.watch.scrape(name)
		if now.sum(total, "failure") > before.sum(total, "failure") {
			s.Fatalf("reload %d of %s has failed", round, name)
		}
		if now.sum(total, "success") == before.sum(total, "success") {
			return errors.New("not yet")
		}
		return nil
	})
	if name == "laptop" {
		if err := s.visit(round % 4); err != nil {
			s.failed("reload %d of %s: %v", round, name, err)
		}
	}
}

// variant is how a node's config differs from the one that it began with. None is like the one before it.
func (s *soak) variant(name string, i int) func(string) string {
	guest := fmt.Sprintf("[[mappings]]\nname = \"guest\"\nlisten = \"127.0.0.1:%d\"\nserver = \"nas\"\n", s.w.ports["guest"])
	visitor := fmt.Sprintf("[[peers]]\nid = \"visitor\"\nrole = \"client\"\npublic_key = %q\n", s.w.keys["visitor"].Public())
	const service = "[[services]]\ntarget = \"192.168.91.0/24:5900-5910\"\n"
	return map[string][]func(string) string{
		"laptop": {
			also(guest + fmt.Sprintf("target = \"%d\"", s.w.ports["target"])),
			also(guest + `target = "main"`),
			also(guest + "target = \"main\"\nenabled = false"),
			swap(`drain_timeout = "5s"`, `drain_timeout = "6s"`),
		},
		"nas": {
			also(service + `clients = ["laptop"]`),
			also(service + `clients = ["laptop", "ops-*"]`),
			also("[limits]\ndials = 4000"),
			swap(`drain_timeout = "5s"`, `drain_timeout = "6s"`),
		},
		"one": {
			also(visitor + `allowed_servers = ["nas"]`),
			also(visitor + `allowed_servers = ["nas", "n?s"]`),
			swap(`allowed_servers = ["nas"]`, `allowed_servers = ["nas", "n?s"]`),
			also("[limits]\nlinks = 16000"),
		},
	}[strings.Replace(name, "two", "one", 1)][i]
}

// visit uses the client's mapping that comes, changes its target, is disabled and goes. A connection that was opened when
// it came goes on until it has gone.
func (s *soak) visit(i int) error {
	open := func() (*person, error) {
		p := &person{crowd: s.crowd, kind: "guest", r: s.r}
		err := p.openAt(s.w.ports["guest"], errand{Kind: errandAnswer})
		if err == nil {
			err = p.ask(4096)
		}
		return p, err
	}
	leave := func(p *person) error {
		defer p.leave()
		return p.finish()
	}
	switch i {
	case 0:
		var err error
		s.guest, err = open()
		return err
	case 1:
		p, err := open()
		if err != nil {
			return err
		}
		return leave(p)
	case 2:
		if c, err := dialLocal(s.w.ports["guest"]); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("a disabled mapping: %v, %w", c, err)
		}
	}
	if s.guest == nil {
		return nil
	}
	if err := s.guest.ask(4096); err != nil || i != 3 {
		return err
	}
	p := s.guest
	s.guest = nil
	return leave(p)
}

// finish has everything end in good order, and looks at what is left.
func (s *soak) finish() {
	s.Helper()
	s.watch.look()
	ending := time.Now()
	close(s.crowd.stop)
	_, _ = io.WriteString(s.hurry, "hurry\n")
	if s.guest != nil {
		if err := s.guest.finish(); err != nil {
			s.failed("guest: %v", err)
		}
		s.guest.leave()
	}
	all := make(chan struct{})
	go func() { s.crowd.slots.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(3 * time.Minute):
		s.Fatalf("%d connections don't end", s.crowd.standing.Load())
	}
	s.Logf("all connections have ended within %v", time.Since(ending).Round(time.Millisecond))
	s.w.empties(s.T, 30*time.Second)
	_ = s.hurry.Close()
	select {
	case done := <-s.ended:
		if done[0] != s.crowd.opened.Load() || done[1] != s.crowd.up.Load() {
			s.failed("P5 has had %d connections and %d bytes, P1 has had %d and sent %d", done[0], done[1], s.crowd.opened.Load(), s.crowd.up.Load())
		}
	case <-time.After(30 * time.Second):
		s.failed("P5 doesn't end")
	}
	for name, was := range s.idle {
		eventually(s.T, 30*time.Second, name+" is as it was before", func() error {
			is := s.watch.sample(name)
			for _, i := range []int{goroutines, files, budgets} {
				if is.values[i] > was.values[i]+5 {
					return fmt.Errorf("%v %s, before %v", is.values[i], quantities[i].column, was.values[i])
				}
			}
			return nil
		})
	}
	s.watch.look()
	for _, name := range []string{"nas", "laptop"} {
		m := s.watch.scrape(name)
		for series, n := range m {
			n -= s.counted[name][series]
			ended := strings.HasPrefix(series, "ptthqd_connections_ended_total") && !strings.Contains(series, `end="closed"`) && !strings.Contains(series, `end="reset by`)
			if (ended || strings.HasPrefix(series, "ptthqd_connections_refused_total")) && n > 0 {
				s.failed("%s: %v of %s", name, n, series)
			}
		}
	}
}

func (s *soak) figures() string {
	c := s.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	var kinds []string
	for _, kind := range sortedKeys(c.answers) {
		kinds = append(kinds, fmt.Sprintf("%s %d, at most %v", kind, c.answers[kind], c.longest[kind].Round(time.Millisecond)))
	}
	return fmt.Sprintf("%d connections are open, %d were opened, %d of them reset; answers: %s; reloads %d %v, relays restarted %d times %v; "+
		"resumes %.0f, %.0f of them without a restart; failures %d",
		c.standing.Load(), c.opened.Load(), c.resets.Load(), strings.Join(kinds, ", "), s.reloads, s.rounds, len(s.watch.restarts), s.restarted,
		s.lastMoved, s.moved, s.failures.Load())
}

// report tells how it went, and draws the plots.
func (s *soak) report() {
	s.over.Store(s.crowd.standing.Load() > 0) // it is cut off
	s.Logf("%s; bytes up %d, down %d", s.figures(), s.crowd.up.Load(), s.crowd.down.Load())
	used := 0.0
	last := make(map[string]float64) // by process and its ID
	for _, m := range s.watch.samples {
		if !math.IsNaN(m.values[processor]) {
			last[fmt.Sprint(m.process, " ", m.pid)] = m.values[processor]
		}
	}
	for _, seconds := range last {
		used += seconds
	}
	s.Logf("processor: %.0f %% of one, test and end server included", 100*used/time.Since(s.watch.begun).Seconds())
	table, grown := s.watch.growth()
	s.Logf("at like moments:\n%s", strings.Join(table, "\n"))
	for _, line := range grown {
		s.Errorf("has grown: %s", line)
	}
	for _, name := range s.watch.names() {
		said, err := s.watch.complaints(name)
		if err != nil {
			s.Error(err)
		}
		for _, text := range sortedKeys(said) {
			s.Logf("%s has said %d times: %s", name, said[text], text)
			if !strings.HasPrefix(text, "WARN") || strings.HasPrefix(text, "WARN connection ") {
				s.Errorf("%s must not say: %s", name, text)
			}
		}
	}
	if err := s.watch.draw(); err != nil {
		s.Error(err)
	}
}
