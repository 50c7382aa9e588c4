//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A traffic is a connection that is in use, whose pauses are measured.
type traffic struct {
	kind  string
	clock clock
	end   chan struct{} // closed to ask for its end
	done  chan error
}

// startTraffic opens a connection of each kind: an upload and a download, both
// checked, and requests with responses. They go on until they are asked to end.
func startTraffic(w *world, kinds ...string) []*traffic {
	w.t.Helper()
	var all []*traffic
	for _, kind := range kinds {
		c := w.mustDial()
		f := &traffic{kind: kind, end: make(chan struct{}), done: make(chan error, 1)}
		all = append(all, f)
		go func() { f.done <- f.run(c) }()
	}
	for _, f := range all {
		eventually(w.t, 10*time.Second, f.kind+" flows", func() error {
			if f.clock.bytes.Load() < 1000 {
				return errors.New("nothing arrives")
			}
			return nil
		})
	}
	return all
}

// run echoes a pattern through the chain: how much is under way is what makes
// the kinds. It ends with a half-close and its answer.
func (f *traffic) run(c *net.TCPConn) error {
	if _, err := c.Write(request{kind: kindEcho}.bytes()); err != nil {
		return err
	}
	var window, chunk uint64
	switch f.kind {
	case "request": // one at a time
		window, chunk = 64, 64
	case "bulk": // as much as fits
		window, chunk = 1<<40, 32<<10
	default:
		return fmt.Errorf("traffic of the kind %q", f.kind)
	}
	answered := make(chan uint64, 1024)
	total := make(chan uint64, 1)
	read := make(chan error, 1)
	go func() { read <- f.readBack(c, chunk, answered, total) }()
	var sent, got uint64
	p := make([]byte, chunk)
	for asked := false; !asked; {
		for sent-got >= window {
			n, ok := <-answered
			if !ok {
				return <-read
			}
			got = n
		}
		select {
		case <-f.end:
			asked = true
			continue
		default:
		}
		pattern(p, 1, sent)
		if _, err := c.Write(p); err != nil {
			return fmt.Errorf("after %d bytes sent: %w", sent, err)
		}
		sent += chunk
		if f.kind == "request" {
			<-time.After(5 * time.Millisecond)
		}
	}
	total <- sent
	if err := c.CloseWrite(); err != nil {
		return err
	}
	return <-read
}

func (f *traffic) readBack(c *net.TCPConn, chunk uint64, answered chan<- uint64, total <-chan uint64) error {
	defer close(answered)
	p, want := make([]byte, chunk), make([]byte, chunk)
	for offset := uint64(0); ; offset += chunk {
		for got := 0; got < len(p); {
			n, err := c.Read(p[got:])
			got += n
			f.clock.tick(n)
			if errors.Is(err, io.EOF) && got == 0 {
				if sent := <-total; sent != offset {
					return fmt.Errorf("the end after %d of %d bytes", offset, sent)
				}
				return nil
			}
			if err != nil {
				return fmt.Errorf("after %d bytes back: %w", offset+uint64(got), err)
			}
		}
		pattern(want, 1, offset)
		if string(p) != string(want) {
			return fmt.Errorf("the bytes behind %d are wrong", offset)
		}
		select {
		case answered <- offset + chunk:
		default:
			if f.kind == "request" {
				return errors.New("more answers than requests")
			}
		}
	}
}

// measure calls what breaks something, waits until all traffic has flowed again
// for a while, and returns the longest pause of each.
func measure(w *world, all []*traffic, breakIt func()) map[string]time.Duration {
	w.t.Helper()
	for _, f := range all {
		f.clock.from(time.Now())
	}
	breakIt()
	before := make([]uint64, len(all))
	<-time.After(time.Second)
	for i, f := range all {
		before[i] = f.clock.bytes.Load()
	}
	for i, f := range all {
		eventually(w.t, 30*time.Second, f.kind+" flows again", func() error {
			select {
			case err := <-f.done:
				w.t.Fatalf("%s ended: %v", f.kind, err)
			default:
			}
			if f.clock.bytes.Load() <= before[i]+1000 {
				return errors.New("nothing arrives")
			}
			return nil
		})
	}
	<-time.After(500 * time.Millisecond)
	pauses := make(map[string]time.Duration)
	for _, f := range all {
		pauses[f.kind] = max(pauses[f.kind], f.clock.pause())
	}
	return pauses
}

// finish ends the traffic and checks that nothing was lost.
func finish(w *world, all []*traffic) {
	w.t.Helper()
	for _, f := range all {
		close(f.end)
	}
	for _, f := range all {
		select {
		case err := <-f.done:
			if err != nil {
				w.t.Errorf("%s: %v", f.kind, err)
			}
		case <-time.After(time.Minute):
			w.t.Errorf("%s doesn't end", f.kind)
		}
	}
}

func within(t *testing.T, what string, pauses map[string]time.Duration, most time.Duration) {
	t.Helper()
	t.Logf("%s: longest pauses %v", what, pauses)
	for kind, pause := range pauses {
		if pause > most {
			t.Errorf("%s: %s paused for %v; %v is the most", what, kind, pause, most)
		}
	}
}

func TestTwoRelaysOneKilled(t *testing.T) {
	promised(t, 3*time.Second, func() map[string]time.Duration {
		w := newWorld(t, endServer, "one", "two").all()
		return pausesOf(w, func(relay string) { w.procs[relay].kill() })
	})
}

func TestTwoRelaysOneStopped(t *testing.T) {
	promised(t, 300*time.Millisecond, func() map[string]time.Duration {
		w := newWorld(t, endServer, "one", "two").all()
		return pausesOf(w, func(relay string) { w.procs[relay].signal(syscall.SIGTERM) })
	})
}

func TestTwoRelaysOneBlackHoled(t *testing.T) {
	for _, hop := range []string{"laptop", "nas"} {
		t.Run("the hop of "+hop, func(t *testing.T) {
			t.Parallel()
			promised(t, 5*time.Second, func() map[string]time.Duration {
				w, l := newLabWorld(t, endServer, "one", "two")
				w.all()
				return pausesOf(w, func(relay string) { l.blackHole(hop, w.hosts[relay]) })
			})
		})
	}
}

// pausesOf breaks the relay that carries the traffic, and returns the longest pause of each kind of traffic. Then the world ends.
func pausesOf(w *world, breakIt func(relay string)) map[string]time.Duration {
	w.t.Helper()
	all := startTraffic(w, "bulk", "request")
	relay := w.carrier()
	pauses := measure(w, all, func() { breakIt(relay) })
	finish(w, all)
	_, told, _ := strings.Cut(w.procs["laptop"].says(w.t, "sessions? resumed .* pause="), " pause=")
	if pause, err := time.ParseDuration(told); err != nil || pause > time.Minute {
		w.t.Errorf("the client tells of a pause of %s", told)
	}
	w.end()
	return pauses
}

func TestAddressChanges(t *testing.T) {
	for _, host := range []string{"laptop", "nas"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			w, l := newLabWorld(t, endServer, "one")
			w.all()
			all := startTraffic(w, "bulk", "request")
			net := map[string]string{"laptop": "10.91.1.", "nas": "10.91.2."}[host]
			for _, last := range []string{"77", "78"} {
				pauses := measure(w, all, func() { l.address(host, net+last) })
				within(t, host+" has moved", pauses, 8*time.Second)
			}
			finish(w, all)
		})
	}
}

func TestClientSuspended(t *testing.T) {
	for _, host := range []string{"laptop", "nas"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, endServer).all()
			all := startTraffic(w, "bulk", "request")
			sleep := 8 * time.Second
			if *full {
				sleep = 90 * time.Second
			}
			w.procs[host].signal(syscall.SIGSTOP)
			<-time.After(sleep)
			pauses := measure(w, all, func() { w.procs[host].signal(syscall.SIGCONT) })
			within(t, host+" has slept", pauses, 5*time.Second)
			finish(w, all)
		})
	}
}

// TestStorm breaks a chain of two relays again and again, by a seeded schedule,
// under connections of all kinds: nothing is lost, and nothing is left.
func TestStorm(t *testing.T) {
	length := 20 * time.Second
	if *full {
		length = 3 * time.Minute
	}
	w, l := newLabWorld(t, endServer, "one", "two")
	w.all()
	kinds := slices.Repeat([]string{"request"}, 40)
	kinds = append(kinds, "bulk", "bulk", "bulk")
	all := startTraffic(w, kinds...)
	var idle []*net.TCPConn
	for range 100 {
		c := w.mustDial()
		if _, err := c.Write(append(request{kind: kindEcho}.bytes(), "hello"...)); err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	r := rand.New(rand.NewPCG(1, 2))
	var story []string
	for begun := time.Now(); time.Since(begun) < length; {
		name := w.relays()[r.IntN(2)]
		host := []string{"laptop", "nas"}[r.IntN(2)]
		switch r.IntN(4) {
		case 0:
			story = append(story, "kill "+name)
			w.procs[name].kill()
			<-time.After(time.Duration(r.IntN(2000)) * time.Millisecond)
			w.start(name)
		case 1:
			story = append(story, "black hole between "+host+" and "+name)
			l.blackHole(host, w.hosts[name])
			<-time.After(time.Duration(r.IntN(4000)) * time.Millisecond)
			l.clear()
		case 2:
			story = append(story, "stop "+name)
			w.procs[name].stop(t)
			w.start(name)
		case 3:
			story = append(story, "pause "+host)
			w.procs[host].signal(syscall.SIGSTOP)
			<-time.After(time.Duration(r.IntN(3000)) * time.Millisecond)
			w.procs[host].signal(syscall.SIGCONT)
		}
		<-time.After(time.Duration(r.IntN(3000)) * time.Millisecond)
	}
	t.Logf("the storm: %s", strings.Join(story, ", "))
	finish(w, all)
	for i, c := range idle {
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "hello" {
			t.Errorf("idle connection %d: %q, %v", i, got, err)
		}
	}
}
