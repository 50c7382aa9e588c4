package sim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/test/testutil"
)

// A transfer sends bytes through an echo, a chunk at a time, and keeps what
// comes back and the longest time without.
type transfer struct {
	work      sync.WaitGroup
	sent, got bytes.Buffer
	err       error // of reading
	pause     time.Duration
}

// transfer sends for a while.
func startTransfer(conn *testutil.Conn, lasts time.Duration) *transfer {
	tr := new(transfer)
	until := time.Now().Add(lasts)
	tr.work.Go(func() {
		random := rand.NewChaCha8([32]byte{})
		chunk := make([]byte, 2048)
		for time.Now().Before(until) {
			_, _ = random.Read(chunk)
			tr.sent.Write(chunk)
			if _, err := conn.Write(chunk); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		_ = conn.CloseWrite()
	})
	tr.work.Go(func() {
		chunk := make([]byte, 16<<10)
		for last := time.Now(); ; last = time.Now() {
			n, err := conn.Read(chunk)
			tr.pause = max(tr.pause, time.Since(last))
			tr.got.Write(chunk[:n])
			if err != nil {
				tr.err = err
				return
			}
		}
	})
	return tr
}

// finish waits for the end of the transfer, and returns the longest pause.
func (tr *transfer) finish(t *testing.T) time.Duration {
	t.Helper()
	tr.work.Wait()
	if !errors.Is(tr.err, io.EOF) || !bytes.Equal(tr.sent.Bytes(), tr.got.Bytes()) {
		t.Errorf("%d bytes came back of %d, ended by %v", tr.got.Len(), tr.sent.Len(), tr.err)
	}
	t.Logf("%d bytes each way, longest pause %v", tr.got.Len(), tr.pause)
	return tr.pause
}

func TestOutages(t *testing.T) {
	const length = 3 * time.Second
	for _, test := range []struct {
		name   string
		outage func(w *world, r *relayNode, s *serverNode)
		most   time.Duration // the pause that is allowed, outage included
	}{
		{"the client's hop is cut", func(w *world, _ *relayNode, _ *serverNode) {
			w.network.Cut(laptopHost)
			time.Sleep(length)
			w.network.Heal(laptopHost)
		}, length + 1500*time.Millisecond},
		{"the server's hop is cut", func(w *world, _ *relayNode, _ *serverNode) {
			w.network.Cut(nasHost)
			time.Sleep(length)
			w.network.Heal(nasHost)
		}, length + 1500*time.Millisecond},
		{"the relay restarts", func(w *world, r *relayNode, _ *serverNode) {
			r.stop()
			time.Sleep(length)
			w.relay(relayHost, nas)
		}, length + 1500*time.Millisecond},
		{"the client's address changes", func(w *world, _ *relayNode, _ *serverNode) {
			w.network.Rebind(laptopHost)
		}, 1500 * time.Millisecond},
		{"the server's address changes", func(w *world, _ *relayNode, _ *serverNode) {
			w.network.Rebind(nasHost)
		}, 1500 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				r, s, _ := w.chain()
				tr := startTransfer(w.connect("echo"), 10*time.Second)
				time.Sleep(2 * time.Second)
				test.outage(w, r, s)
				if pause := tr.finish(t); pause > test.most {
					t.Errorf("a pause of %v, want at most %v", pause, test.most)
				}
			})
		})
	}
}

func TestServerRestartEndsItsSessions(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, s, _ := w.chain()
		conn := w.connect("echo")
		exchange(t, conn, "hello")
		start := time.Now()
		s.stop()
		wantReset(t, conn)
		if took, want := time.Since(start), config.DefaultDrainTimeout+time.Second; took > want {
			t.Errorf("P1 was reset after %v, want %v at most", took, want)
		}
		w.server(w.serverConfig(w.relays(relayHost), "7 laptop"))
		settle()
		exchange(t, w.connect("echo"), "again")
	})
}

func TestServerThatVanishesEndsItsSessions(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, s, _ := w.chain()
		conn := w.connect("echo")
		exchange(t, conn, "hello")
		w.network.Kill(nasHost, s.stop)
		w.server(w.serverConfig(w.relays(relayHost), "7 laptop"))
		start := time.Now()
		wantReset(t, conn)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("P1 was reset %v after the new server began, want 2 s at most", took)
		}
		if line := w.one(laptop, "connection failed"); line["end"] != "server restarted" {
			t.Errorf("the client logs end=%v", line["end"])
		}
	})
}

func TestClientStop(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		ends := make(chan error, 1)
		_, s, c := w.chain()
		w.target("127.0.0.1:7", func(conn *testutil.Conn) {
			_, err := io.Copy(conn, conn)
			ends <- err
		})
		conn := w.connect("echo")
		exchange(t, conn, "hello")
		c.stop()
		wantReset(t, conn)
		if err := <-ends; err == nil {
			t.Error("the client has stopped, and P5 sees an orderly end")
		}
		settle()
		if left := s.Snapshot().Sessions; len(left) != 0 {
			t.Errorf("the server keeps %+v", left)
		}
		if line := w.one(laptop, "connection ended"); line["end"] != "stopped" {
			t.Errorf("the client logs end=%v", line["end"])
		}
	})
}

// A stop waits for nobody where nothing moves: the sooner the next process accepts what has queued meanwhile.
func TestStopDoesNotWaitForIdleConnections(t *testing.T) {
	for _, node := range []string{"client", "server"} {
		inBubble(t, func(t *testing.T, w *world) {
			_, s, c := w.chain()
			conn := w.connect("echo")
			exchange(t, conn, "hello")
			time.Sleep(time.Minute)
			start := time.Now()
			if node == "client" {
				c.stop()
			} else {
				s.stop()
			}
			if took := time.Since(start); took > 500*time.Millisecond {
				t.Errorf("the %s took %v to stop with an idle connection", node, took)
			}
			wantReset(t, conn)
		})
	}
}

func TestClientDrains(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, _, c := w.chain()
		conn := w.connect("echo")
		tr := startTransfer(conn, 3*time.Second)
		time.Sleep(time.Second)
		c.stop() // returns when the transfer has ended, since that is before drain_timeout
		tr.finish(t)
		if _, err := w.inbox["systemd:echo"].Dial(context.Background()); err == nil {
			t.Error("a stopped client listens")
		}
	})
}

// twoRelays starts a chain with two relays; the client is nearer to the first.
func (w *world) twoRelays() (first, second *relayNode, s *serverNode, c *clientNode) {
	w.t.Helper()
	w.target("127.0.0.1:7", echo)
	w.network.Delay(w.farFromSecond)
	first, second = w.relay(relayHost, nas), w.relay(relay2Host, nas)
	s = w.server(w.serverConfig(w.relays(relayHost, relay2Host), "7 laptop"))
	c = w.client(w.clientConfig(w.relays(relayHost, relay2Host), "echo nas 7"))
	settle()
	return first, second, s, c
}

func TestNearestRelayIsUsed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, _, _, c := w.twoRelays()
		exchange(t, w.connect("echo"), "hello")
		if got := c.Snapshot().Sessions[0].Relay; got != relayHost+":30380" {
			t.Errorf("the session goes over %s, which is farther", got)
		}
	})
}

func TestFailover(t *testing.T) {
	for _, test := range []struct {
		name   string
		outage func(w *world, first *relayNode)
		most   time.Duration
	}{
		{"the relay in use stops", func(w *world, first *relayNode) { first.stop() }, 300 * time.Millisecond},
		{"the relay in use is cut off", func(w *world, _ *relayNode) { w.network.Cut(relayHost) }, 3 * time.Second},
		{"its path to the server is dead", func(w *world, _ *relayNode) { w.network.Drop(between(relayHost, nasHost)) }, 5 * time.Second},
		{"its path to the client is dead", func(w *world, _ *relayNode) { w.network.Drop(between(relayHost, laptopHost)) }, 5 * time.Second},
		{"the relay says that it is closing", func(w *world, first *relayNode) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if left := first.Drain(ctx); left != 0 {
				w.t.Errorf("%d connections have not left the closing relay", left)
			}
			first.stop()
		}, 300 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				first, _, _, c := w.twoRelays()
				tr := startTransfer(w.connect("echo"), 10*time.Second)
				time.Sleep(2 * time.Second)
				test.outage(w, first)
				time.Sleep(time.Second)
				if s := c.Snapshot().Sessions; test.most < time.Second && (len(s) != 1 || s[0].Relay != relay2Host+":30380") {
					t.Errorf("the session didn't move: %+v", s)
				}
				if pause := tr.finish(t); pause > test.most {
					t.Errorf("a pause of %v, want at most %v", pause, test.most)
				}
			})
		})
	}
}

func TestEveryRelayIsAsked(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.target("127.0.0.1:7", echo)
		w.network.Delay(w.farFromSecond)
		w.relay(relayHost, nas) // nearer, but the server isn't there
		w.relay(relay2Host, nas)
		w.server(w.serverConfig(w.relays(relay2Host), "7 laptop"))
		w.client(w.clientConfig(w.relays(relayHost, relay2Host), "echo nas 7"))
		settle()
		exchange(t, w.connect("echo"), "hello")
		synctest.Wait()
	})
}
