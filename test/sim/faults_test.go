package sim

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/link/linktest"
	"ptthqd/test/testutil"
)

// pour sends size bytes through an echo, as fast as they are taken, and checks what comes back, to the end.
func pour(conn *testutil.Conn, seed byte, size int) error {
	sent := make(chan error, 1)
	go func() {
		random := rand.NewChaCha8([32]byte{seed})
		chunk := make([]byte, 16<<10)
		for left := size; left > 0; left -= len(chunk) {
			_, _ = random.Read(chunk)
			if _, err := conn.Write(chunk); err != nil {
				sent <- err
				return
			}
		}
		sent <- conn.CloseWrite()
	}()
	random := rand.NewChaCha8([32]byte{seed})
	chunk, want := make([]byte, 16<<10), make([]byte, 16<<10)
	for at := 0; at < size; at += len(chunk) {
		if n, err := io.ReadFull(conn, chunk); err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", at+n, size, err)
		}
		if _, _ = random.Read(want); !bytes.Equal(chunk, want) {
			return fmt.Errorf("what comes back after %d bytes is wrong", at)
		}
	}
	if n, err := conn.Read(chunk); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes and %w, not the end", n, err)
	}
	return <-sent
}

// Paths that lose, reorder and double packets, each on both hops and in both directions: nothing is lost, nothing comes
// twice, and no connection ends.
func TestBadPaths(t *testing.T) {
	const size = 512 << 10
	chance := func(seed uint64, p float64) func() bool {
		random := rand.New(rand.NewPCG(seed, 1))
		return func() bool { return random.Float64() < p }
	}
	lose := func(w *world, p float64) {
		lost := chance(1, p)
		w.network.Drop(func(linktest.Packet) bool { return lost() })
	}
	reorder := func(w *world) {
		late := chance(2, 0.3)
		random := rand.New(rand.NewPCG(3, 1))
		w.network.Delay(func(linktest.Packet) time.Duration {
			if late() {
				return time.Duration(random.Int64N(int64(3 * hop)))
			}
			return 0
		})
	}
	double := func(w *world) {
		twice := chance(4, 0.3)
		w.network.Double(func(linktest.Packet) bool { return twice() })
	}
	for _, path := range []struct {
		name  string
		spoil func(w *world)
	}{
		{"20 % of the packets are lost", func(w *world) { lose(w, 0.2) }},
		{"packets overtake each other", reorder},
		{"packets come twice", double},
		{"all of it", func(w *world) {
			lose(w, 0.1)
			reorder(w)
			double(w)
		}},
	} {
		t.Run(path.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				_, _, c := w.chain()
				idle := w.connect("echo")
				exchange(t, idle, "before")
				path.spoil(w)
				began := time.Now()
				const connections = 3
				results := make(chan error, connections)
				for i := range connections {
					conn := w.connect("echo")
					go func() { results <- pour(conn, byte(i), size) }()
				}
				for range connections {
					if err := <-results; err != nil {
						t.Error(err)
					}
				}
				t.Logf("%d times %d bytes each way in %v", connections, size, time.Since(began))
				for i := range 50 { // short ones, which are all beginning and end
					conn := w.connect("echo")
					exchange(t, conn, fmt.Sprint("hello ", i))
					_ = conn.CloseWrite()
					if rest, err := io.ReadAll(conn); len(rest) > 0 || err != nil {
						t.Errorf("the end of a short connection: %q, %v", rest, err)
					}
				}
				exchange(t, idle, "after")
				w.network.Drop(nil)
				time.Sleep(time.Minute)
				if left := c.Snapshot().Sessions; len(left) != 1 {
					t.Errorf("sessions are left besides the idle one: %+v", left)
				}
				for _, node := range []string{laptop, nas} {
					if failed := w.books[node].Lines(t, "connection failed"); len(failed) > 0 {
						t.Errorf("%s has lost connections: %v", node, failed)
					}
				}
			})
		})
	}
}

// A NAT that forgets its bindings every 10 s is a NAT all the same.
func TestNATForgets(t *testing.T) {
	const (
		every = 10 * time.Second
		lasts = 40 * time.Second
	)
	for _, behind := range [][]string{{laptopHost}, {laptopHost, nasHost}} {
		t.Run(fmt.Sprint(behind), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				_, _, c := w.chain()
				idle := w.connect("echo")
				exchange(t, idle, "before")
				busy := w.connect("echo")
				text := strings.Repeat("some packets ", 500)
				var longest time.Duration
				for range lasts / every {
					for forgotten := time.Now(); time.Since(forgotten) < every; time.Sleep(250 * time.Millisecond) {
						begun := time.Now()
						exchange(t, busy, text)
						longest = max(longest, time.Since(begun))
					}
					for _, host := range behind {
						w.network.Rebind(host)
					}
				}
				t.Logf("the longest pause: %v", longest)
				if longest > 1500*time.Millisecond {
					t.Errorf("a pause of %v", longest)
				}
				exchange(t, idle, "after")
				for _, s := range c.Snapshot().Sessions {
					t.Logf("resumed %d times", s.Resumes)
				}
				if failed := w.books[laptop].Lines(t, "connection failed"); len(failed) > 0 {
					t.Errorf("connections are lost: %v", failed)
				}
			})
		})
	}
}

// Nobody speaks for a minute, and the NAT has forgotten both ends again and again. The next word arrives, as soon as the
// server has sent its next heartbeat: before, nobody can reach it.
func TestNATForgetsTheIdle(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		const heartbeat = 10 * time.Second
		_, _, c := w.chain()
		conn := w.connect("echo")
		for range 10 {
			exchange(t, conn, "a word")
			for range 6 {
				time.Sleep(10 * time.Second)
				w.network.Rebind(laptopHost)
				w.network.Rebind(nasHost)
			}
			began := time.Now()
			exchange(t, conn, "another")
			if took := time.Since(began); took > heartbeat+2*time.Second {
				t.Errorf("the answer took %v", took)
			}
		}
		if s := c.Snapshot().Sessions; len(s) != 1 {
			t.Errorf("sessions: %+v", s)
		}
	})
}

// P1 fills a connection whose P5 never reads, and resets it. Nobody reads P1 any more then, and all the same it is noticed.
func TestResetIsSeenWhileNobodyReads(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there the session learns of it when it reads or writes")
	}
	over := make(chan struct{})
	chain := overSockets(t, func(p5 net.Conn) {
		<-over
		_ = p5.Close()
	})
	t.Cleanup(func() { close(over) })
	p1, err := net.Dial("tcp", chain.tcp)
	if err != nil {
		t.Fatal(err)
	}
	chunk := make([]byte, 64<<10)
	for err == nil {
		_ = p1.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		_, err = p1.Write(chunk)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	if sessions := chain.client.Snapshot().Sessions; len(sessions) != 1 {
		t.Fatalf("sessions: %+v", sessions)
	}
	_ = p1.(*net.TCPConn).SetLinger(0)
	_ = p1.Close()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for patience := time.After(5 * time.Second); ; {
		sessions := chain.client.Snapshot().Sessions
		if len(sessions) == 0 {
			return
		}
		select {
		case <-look.C:
		case <-patience:
			t.Fatalf("5 s after P1 has reset it: %+v", sessions)
		}
	}
}
