//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"time"
)

// TestTargetThatNeverReads has many connections to a target that accepts and
// never reads, each full to the brim. The others on the same links go on as if
// they were alone, memory stays within bounds, and nothing is left of them when P1 gives up.
func TestTargetThatNeverReads(t *testing.T) {
	w := newWorld(t, endServer).all()
	nodes := []string{"relay", "nas", "laptop"}
	before := map[string]footprint{}
	for _, node := range nodes {
		before[node] = w.footprint(t, node)
	}
	connections := 100
	if *full {
		connections = 2000
	}
	first := w.echoes(t)
	roundTrip := func() time.Duration {
		took := make([]time.Duration, 100)
		for i := range took {
			begun := time.Now()
			if err := goesBack(first, "quickly"); err != nil {
				t.Fatalf("the connection beside them: %v", err)
			}
			took[i] = time.Since(begun)
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	alone := roundTrip()
	unread := w.floods(t, connections)
	eventually(t, 15*time.Second, "round trips are as short as before", func() error { // what was poured in comes to rest
		beside := roundTrip()
		t.Logf("a round trip takes %v, and %v beside %d full connections", alone, beside, connections)
		if beside > 3*alone+5*time.Millisecond {
			return fmt.Errorf("%v beside them, %v alone", beside, alone)
		}
		return nil
	})
	c := w.mustDial()
	if err := exchange(c, 8<<20, 8<<20, nil); err != nil {
		t.Errorf("a new connection beside them: %v", err)
	}
	for _, node := range nodes {
		now := w.footprint(t, node)
		t.Logf("%s: %d MiB resident, %d before", node, now.resident>>20, before[node].resident>>20)
		// What each may hold in each direction, twice for the collector's sake, and a margin.
		if most := before[node].resident + int64(connections)*512<<10 + 64<<20; now.resident > most {
			t.Errorf("%s has %d MiB resident", node, now.resident>>20)
		}
	}
	w.idle(t, nodes...)
	for _, c := range unread {
		resetConn(c)
	}
	_ = first.Close()
	_ = c.Close()
	w.empties(t, 10*time.Second)
	w.carries(5 * time.Second)
}

// TestTargetThatResets has targets reset their connections at each moment. P1 is
// reset then, too, nothing is left, and a connection beside them doesn't notice.
func TestTargetThatResets(t *testing.T) {
	t.Parallel()
	const (
		atOnce = iota
		afterABit
		whileItSends
		whileItReads
		afterItsEnd
		kinds
	)
	w := newWorld(t, func(c net.Conn) {
		defer resetConn(c)
		kind := make([]byte, 1)
		if _, err := io.ReadFull(c, kind); err != nil {
			return
		}
		switch kind[0] {
		case kindEcho:
			_, _ = io.Copy(c, struct{ io.Reader }{c})
		case 'A' + afterABit:
			_, _ = io.WriteString(c, "a bit")
			_, _ = io.ReadFull(c, make([]byte, 1))
		case 'A' + whileItSends:
			_ = send(c, 1, 1<<20)
		case 'A' + whileItReads:
			_, _ = io.CopyN(io.Discard, c, 300_000)
		case 'A' + afterItsEnd:
			_, _ = io.WriteString(c, "the end")
			_ = c.(*net.TCPConn).CloseWrite()
			_, _ = io.ReadFull(c, make([]byte, 1))
		}
	})
	for _, name := range w.relays() {
		w.start(name)
	}
	w.start("nas")
	w.start("laptop")
	beside := func() *net.TCPConn {
		c := w.mustDial()
		if _, err := c.Write([]byte{kindEcho}); err != nil {
			t.Fatal(err)
		}
		if err := goesBack(c, "opened"); err != nil {
			t.Fatal(err)
		}
		return c
	}()
	each(t, "is reset", 100, func(i int) error {
		c, err := w.dial()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		kind := i % kinds
		if _, err := c.Write([]byte{'A' + byte(kind)}); err != nil {
			return err
		}
		told := ""
		switch kind {
		case afterABit:
			told = "a bit"
		case afterItsEnd:
			told = "the end"
		case whileItReads:
			p := make([]byte, 32<<10)
			for err == nil {
				_, err = c.Write(p)
			}
			if !isResetError(err) {
				return fmt.Errorf("write: %w", err)
			}
			return nil
		}
		got := make([]byte, len(told))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != told {
			return fmt.Errorf("%q, %w", got, err)
		}
		if kind == afterItsEnd {
			if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
				return fmt.Errorf("%d bytes, %w, not the end", n, err)
			}
		}
		if told != "" {
			if _, err := c.Write([]byte{1}); err != nil {
				return err
			}
		}
		if kind == afterItsEnd { // who has read the end learns of the reset by writing
			for err == nil {
				_, err = c.Write([]byte{1})
				<-time.After(10 * time.Millisecond)
			}
		} else {
			_, err = io.Copy(io.Discard, c)
		}
		if !isResetError(err) {
			return fmt.Errorf("kind %d: %w, not a reset", kind, err)
		}
		return nil
	})
	if err := goesBack(beside, "still here"); err != nil {
		t.Errorf("the connection beside them: %v", err)
	}
	_ = beside.Close()
	w.empties(t, 10*time.Second)
}

func isResetError(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
