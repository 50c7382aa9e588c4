//go:build linux

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ptthqd/test/testutil"
)

// TestManyAtOnce holds 2,000 connections open through one mapping, all of which
// exchange data both before and after the last of them is open.
func TestManyAtOnce(t *testing.T) {
	const connections, bytesEach = 2000, 8 << 10
	w := newWorld(t, endServer).all()
	start, stood := time.Now(), testutil.WatchMachine()

	conns := make([]*net.TCPConn, connections)
	each(t, "opens", connections, func(i int) error {
		c, err := w.dial()
		if err != nil {
			return err
		}
		conns[i] = c
		if _, err := c.Write(request{kind: kindEcho}.bytes()); err != nil {
			return err
		}
		return echo(c, uint64(i), bytesEach)
	})
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	opened := time.Since(start)
	for name := range w.procs {
		eventually(t, 10*time.Second, name+" knows them all", func() error {
			if n := len(w.status(name).Connections); n != connections {
				return fmt.Errorf("it has %d connections, not %d", n, connections)
			}
			return nil
		})
	}
	each(t, "goes on and ends", connections, func(i int) error {
		if err := echo(conns[i], uint64(i)+connections, bytesEach); err != nil {
			return err
		}
		if err := conns[i].CloseWrite(); err != nil {
			return err
		}
		if n, err := conns[i].Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			return fmt.Errorf("instead of the end: %d bytes, %w", n, err)
		}
		return nil
	})
	done := time.Since(start)
	w.empties(t, 10*time.Second)
	resumed, still := w.status("laptop").Counters.Resumed, stood()
	t.Logf("%d connections: open after %v, done after %v, resumed %d times; the machine itself stood still for %v at a time", connections, opened, done, resumed, still)
	// Nothing was lost. To some connections a busy host looks like a dead path. A link that is lost
	// takes all with it: that a busy machine explains once, and not more often.
	switch {
	case resumed > connections+connections/10:
		t.Errorf("%d connections have resumed %d times", connections, resumed)
	case resumed > connections/10:
		testutil.Broken(t, still, stalled, "%d connections have resumed %d times", connections, resumed)
	}
}

// each calls do for every connection, all at the same time.
func each(t *testing.T, what string, connections int, do func(i int) error) {
	t.Helper()
	errs := make([]error, connections)
	var work sync.WaitGroup
	for i := range connections {
		work.Go(func() { errs[i] = do(i) })
	}
	work.Wait()
	failed := 0
	for i, err := range errs {
		if err != nil {
			if failed++; failed <= 5 {
				t.Errorf("connection %d %s: %v", i, what, err)
			}
		}
	}
	if failed > 0 {
		t.Fatalf("%d connections have failed", failed)
	}
}

// echo sends n bytes that nobody else sends and reads them back.
func echo(c net.Conn, seed, n uint64) error {
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- send(c, seed, n) }()
	if err := check(c, seed, n, nil); err != nil {
		return err
	}
	return <-sent
}

// empties waits until no process knows of a connection any more.
func (w *world) empties(t *testing.T, within time.Duration) {
	t.Helper()
	eventually(t, within, "all connections are gone", func() error {
		for name := range w.procs {
			if left := w.status(name).Connections; len(left) > 0 {
				return fmt.Errorf("%s has %d, the first is %+v", name, len(left), left[0])
			}
		}
		return nil
	})
}

// A footprint is what a process takes of its host.
type footprint struct {
	goroutines, files int
	resident          int64 // bytes
}

func (w *world) footprint(t *testing.T, name string) footprint {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d", w.procs[name].cmd.Process.Pid)
	files, err := os.ReadDir(dir + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	f := footprint{goroutines: w.status(name).Process.Goroutines, files: len(files)}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, resident, _ := bytes.Cut(status, []byte("VmRSS:"))
	kib, err := strconv.ParseInt(strings.Fields(string(resident))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	f.resident = kib << 10
	return f
}

// TestManyInTurn opens 10,000 connections one after another. Goroutines, file
// descriptors and memory are then where they were.
func TestManyInTurn(t *testing.T) {
	const warmUp, connections, lanes = 2000, 10_000, 4
	w := newWorld(t, endServer).all()
	inTurn := func(n int) {
		each(t, "comes in turn", lanes, func(lane int) error {
			for i := range n / lanes {
				c, err := w.dial()
				if err != nil {
					return err
				}
				_ = c.SetDeadline(time.Now().Add(time.Minute))
				seed := uint64(lane*connections + i)
				if _, err := c.Write(request{kind: kindEcho}.bytes()); err != nil {
					return err
				}
				if err := echo(c, seed, 1<<10); err != nil {
					return err
				}
				switch i % 3 {
				case 0:
					_ = c.SetLinger(0) // a reset
				case 1:
					_ = c.CloseWrite()
					if _, err := io.ReadAll(c); err != nil {
						return err
					}
				}
				_ = c.Close()
			}
			return nil
		})
		w.empties(t, 10*time.Second)
	}
	inTurn(warmUp)
	before := map[string]footprint{}
	for name := range w.procs {
		before[name] = w.footprint(t, name)
	}
	start := time.Now()
	inTurn(connections)
	t.Logf("%d connections in %v", connections, time.Since(start))
	for name, was := range before {
		// What is left of the last connection takes a moment.
		eventually(t, 10*time.Second, name+" is as it was", func() error {
			is := w.footprint(t, name)
			// A tombstone for each connection stays at the server for two minutes.
			if is.goroutines > was.goroutines+5 || is.files > was.files+2 || is.resident > was.resident+16<<20 {
				return fmt.Errorf("%+v before, %+v after", was, is)
			}
			t.Logf("%s: %+v before, %+v after", name, was, is)
			return nil
		})
	}
}
