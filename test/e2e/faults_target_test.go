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

// The moments at which a target resets its connection. The first byte on a connection asks for one.
const (
	resetAtOnce = 'A' + iota
	afterABit
	whileItSends
	whileItReads
	afterItsEnd
	moments = iota
)

// resetsWhenAsked is P5: it resets the connection at the moment that its first byte asks for.
func resetsWhenAsked(c net.Conn) {
	defer resetConn(c)
	kind := make([]byte, 1)
	if _, err := io.ReadFull(c, kind); err != nil {
		return
	}
	switch kind[0] {
	case kindEcho:
		_, _ = io.Copy(c, struct{ io.Reader }{c})
	case afterABit:
		_, _ = io.WriteString(c, "a bit")
		_, _ = io.ReadFull(c, make([]byte, 1))
	case whileItSends:
		_ = send(c, 1, 1<<20)
	case whileItReads:
		_, _ = io.CopyN(io.Discard, c, 300_000)
	case afterItsEnd:
		_, _ = io.WriteString(c, "the end")
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.ReadFull(c, make([]byte, 1))
	}
}

// TestTargetThatResets has targets reset their connections at each moment. P1 is reset then, too.
// Nothing is left, and a connection beside them goes on.
func TestTargetThatResets(t *testing.T) {
	t.Parallel()
	w := newWorld(t, resetsWhenAsked)
	for _, name := range w.relays() {
		w.start(name)
	}
	w.start("nas")
	w.start("laptop")
	beside := w.mustDial()
	if _, err := beside.Write([]byte{kindEcho}); err != nil {
		t.Fatal(err)
	}
	if err := goesBack(beside, "opened"); err != nil {
		t.Fatal(err)
	}
	each(t, "is reset", 100, func(i int) error {
		c, err := w.dial()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		kind := byte('A' + i%moments)
		if _, err := c.Write([]byte{kind}); err != nil {
			return err
		}
		if err := seesReset(c, kind); !isResetError(err) {
			return fmt.Errorf("kind %c: %w, not a reset", kind, err)
		}
		return nil
	})
	if err := goesBack(beside, "still here"); err != nil {
		t.Errorf("the connection beside them: %v", err)
	}
	_ = beside.Close()
	w.empties(t, 10*time.Second)
}

// seesReset is P1 of a connection that its target resets. It returns how the connection ended, or
// what was wrong before.
func seesReset(c *net.TCPConn, kind byte) (err error) {
	if kind == whileItReads {
		p := make([]byte, 32<<10)
		for err == nil {
			_, err = c.Write(p)
		}
		return err
	}
	told := map[byte]string{afterABit: "a bit", afterItsEnd: "the end"}[kind]
	got := make([]byte, len(told))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != told {
		return fmt.Errorf("read %q: %v", got, err) //nolint:errorlint // a reset is too early here
	}
	if kind == afterItsEnd {
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			return fmt.Errorf("%d bytes, %v, not the end", n, err) //nolint:errorlint // as above
		}
	}
	if told != "" {
		if _, err := c.Write([]byte{1}); err != nil {
			return fmt.Errorf("write: %v", err) //nolint:errorlint // as above
		}
	}
	if kind != afterItsEnd {
		_, err = io.Copy(io.Discard, c)
		return err
	}
	for err == nil { // P1 has read the end, and learns of the reset by writing
		_, err = c.Write([]byte{1})
		<-time.After(10 * time.Millisecond)
	}
	return err
}

func isResetError(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
