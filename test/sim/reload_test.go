package sim

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/pkg/relay"
	"ptthqd/test/testutil"
)

// apply puts a config in force at the client.
func (c *clientNode) apply(t *testing.T, next *config.Config) {
	t.Helper()
	if err := c.Apply(t.Context(), next); err != nil {
		t.Fatalf("apply at the client: %v", err)
	}
}

func (s *serverNode) apply(t *testing.T, next *config.Config) {
	t.Helper()
	if err := s.Apply(t.Context(), next); err != nil {
		t.Fatalf("apply at the server: %v", err)
	}
}

// answer makes a P5 that says who it is.
func (w *world) answer(address, name string) {
	w.target(address, func(conn *testutil.Conn) {
		_, _ = conn.Write([]byte(name))
		echo(conn)
	})
}

func wantAnswer(t *testing.T, conn *testutil.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := conn.Read(got); string(got[:n]) != want {
		t.Errorf("P1 reads %q, %v; want %q", got[:n], err, want)
	}
}

func TestMappingChangesItsTarget(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.answer("127.0.0.1:1", "one")
		w.answer("127.0.0.1:2", "two")
		w.relay(relayHost, nas)
		w.server(w.serverConfig(w.relays(relayHost), "1-2 laptop"))
		c := w.client(w.clientConfig(w.relays(relayHost), "m nas 1"))
		settle()
		old := w.connect("m")
		wantAnswer(t, old, "one")
		listener := w.inbox["systemd:m"]
		c.apply(t, w.clientConfig(w.relays(relayHost), "m nas 2"))
		if w.inbox["systemd:m"] != listener {
			t.Error("the listener was bound anew")
		}
		wantAnswer(t, w.connect("m"), "two")
		exchange(t, old, "still here")
	})
}

func TestMappingGoes(t *testing.T) {
	for _, test := range []struct {
		name     string
		onRemove string
		disabled bool
	}{
		{"removed, its connections are kept", config.OnRemoveKeep, false},
		{"removed, its connections end", config.OnRemoveClose, false},
		{"disabled, its connections are kept", config.OnRemoveKeep, true},
		{"disabled, its connections end", config.OnRemoveClose, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.target("127.0.0.1:7", echo)
				w.relay(relayHost, nas)
				w.server(w.serverConfig(w.relays(relayHost), "7 laptop"))
				settings := w.clientConfig(w.relays(relayHost), "going nas 7", "staying nas 7")
				settings.Mappings[0].OnRemove = test.onRemove
				c := w.client(settings)
				settle()
				going, staying := w.connect("going"), w.connect("staying")
				exchange(t, going, "hello")
				exchange(t, staying, "hello")

				next := w.clientConfig(w.relays(relayHost), "going nas 7", "staying nas 7")
				next.Mappings[0].OnRemove = test.onRemove
				next.Mappings[0].Enabled = false
				if !test.disabled {
					next.Mappings = next.Mappings[1:]
				}
				c.apply(t, next)
				if _, err := w.inbox["systemd:going"].Dial(t.Context()); err == nil {
					t.Error("it still listens")
				}
				exchange(t, staying, "not disturbed")
				if test.onRemove == config.OnRemoveKeep {
					exchange(t, going, "still here")
					return
				}
				wantReset(t, going)
				time.Sleep(hop) // what ends a stream need not hurry
				if line := w.one(laptop, "connection ended"); line["end"] != "mapping removed" {
					t.Errorf("the client logs end=%v", line["end"])
				}
			})
		})
	}
}

func TestRightWithdrawnAtTheServer(t *testing.T) {
	for _, detached := range []bool{false, true} {
		inBubble(t, func(t *testing.T, w *world) {
			w.target("127.0.0.1:7", echo)
			w.target("127.0.0.1:8", echo)
			w.relay(relayHost, nas)
			s := w.server(w.serverConfig(w.relays(relayHost), "7 laptop", "8 laptop"))
			w.client(w.clientConfig(w.relays(relayHost), "seven nas 7", "eight nas 8"))
			settle()
			seven, eight := w.connect("seven"), w.connect("eight")
			exchange(t, seven, "hello")
			exchange(t, eight, "hello")
			if detached {
				w.network.Cut(laptopHost)
				time.Sleep(5 * time.Second)
			}
			s.apply(t, w.serverConfig(w.relays(relayHost), "7 others", "8 laptop"))
			synctest.Wait()
			if left := s.Snapshot().Sessions; len(left) != 1 || left[0].Target != ":8" {
				t.Errorf("detached %v: the server keeps %+v", detached, left)
			}
			w.network.Heal(laptopHost)
			wantReset(t, seven)
			exchange(t, eight, "not disturbed")
			if line := w.one(nas, "connection failed"); line["end"] != "revoked" || line["reason"] != "the clients of :7 do not include laptop (server.toml:10)" {
				t.Errorf("the server logs end=%v reason=%v", line["end"], line["reason"])
			}
			if line := w.one(laptop, "connection failed"); line["end"] != "revoked" {
				t.Errorf("detached %v: the client logs end=%v", detached, line["end"])
			}
		})
	}
}

func TestRightWithdrawnAtTheRelay(t *testing.T) {
	for _, detached := range []bool{false, true} {
		inBubble(t, func(t *testing.T, w *world) {
			w.target("127.0.0.1:7", echo)
			w.target("127.0.0.1:8", echo)
			r := w.relay(relayHost, nas)
			s := w.server(w.serverConfig(w.relays(relayHost), "7 laptop", "8 laptop"))
			w.client(w.clientConfig(w.relays(relayHost), "seven nas 7", "eight nas 8"))
			settle()
			seven, eight := w.connect("seven"), w.connect("eight")
			exchange(t, seven, "hello")
			exchange(t, eight, "hello")
			if detached {
				w.network.Cut(laptopHost)
				time.Sleep(5 * time.Second)
			}
			r.Apply(w.policy("nas:8"), relay.Limits{})
			settle()
			if left := s.Snapshot().Sessions; len(left) != 1 || left[0].Target != ":8" {
				t.Errorf("detached %v: the server keeps %+v", detached, left)
			}
			w.network.Heal(laptopHost)
			wantReset(t, seven)
			exchange(t, eight, "not disturbed")
			if line := w.one(laptop, "connection failed"); line["end"] != "revoked" {
				t.Errorf("detached %v: the client logs end=%v", detached, line["end"])
			}
			if line := w.one(nas, "connection failed"); line["end"] != "revoked" || line["reason"] != "withdrawn at the relay" {
				t.Errorf("detached %v: the server logs end=%v reason=%v", detached, line["end"], line["reason"])
			}
		})
	}
}

// A client whose server is away, and who waits longer and longer before it asks again, hears of it when there is nothing left to
// wait for.
func TestRightWithdrawnWhileTheServerIsAway(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.target("127.0.0.1:7", echo)
		w.target("127.0.0.1:8", echo)
		r := w.relay(relayHost, nas)
		s := w.server(w.serverConfig(w.relays(relayHost), "7 laptop", "8 laptop"))
		w.client(w.clientConfig(w.relays(relayHost), "seven nas 7", "eight nas 8"))
		settle()
		seven, eight := w.connect("seven"), w.connect("eight")
		exchange(t, seven, "hello")
		exchange(t, eight, "hello")
		atOnce := relay.Limits{ParkTime: -1} // no resume is held: all wait at the client
		r.Apply(w.policy(nas), atOnce)
		w.network.Cut(nasHost)
		time.Sleep(time.Minute)

		begun := time.Now()
		r.Apply(w.policy("nas:8"), atOnce)
		wantReset(t, seven)
		if took := time.Since(begun); took > 10*hop {
			t.Errorf("P1 was reset after %v", took)
		}
		if line := w.one(laptop, "connection failed"); line["end"] != "revoked" {
			t.Errorf("the client logs end=%v", line["end"])
		}
		w.network.Heal(nasHost)
		exchange(t, eight, "not disturbed")
		settle()
		if left := s.Snapshot().Sessions; len(left) != 1 || left[0].Target != ":8" {
			t.Errorf("the server keeps %+v", left)
		}
	})
}

// The windows of links grow with what goes over them, by link_memory at most, also where a reload changes that.
func TestLinkMemory(t *testing.T) {
	const mib = 1 << 20
	for _, limit := range []config.Size{2 * mib, 64 * mib} {
		inBubble(t, func(t *testing.T, w *world) {
			w.target("127.0.0.1:7", echo)
			w.relay(relayHost, nas)
			atServer := w.serverConfig(w.relays(relayHost), "7 laptop")
			atClient := w.clientConfig(w.relays(relayHost), "echo nas 7")
			atServer.Limits.LinkMemory, atClient.Limits.LinkMemory = limit, limit
			s, c := w.server(atServer), w.client(atClient)
			settle()
			conn := w.connect("echo")
			sent := make(chan error, 1)
			const amount = 12 * mib
			go func() {
				_, err := conn.Write(make([]byte, amount))
				sent <- errors.Join(err, conn.CloseWrite())
			}()
			if n, err := io.Copy(io.Discard, conn); n != amount || err != nil {
				t.Errorf("%d bytes came back, %v", n, err)
			}
			if err := <-sent; err != nil {
				t.Error(err)
			}
			atC, atS := c.Snapshot(), s.Snapshot()
			for node, used := range map[string]int64{laptop: atC.LinkMemory, nas: atS.LinkMemory} {
				if used > int64(limit) || limit > 32*mib && used < 4*mib {
					t.Errorf("with a link_memory of %v the windows of %s have grown by %d", limit, node, used)
				}
			}
			if atC.LinkMemoryLimit != int64(limit) || atS.LinkMemoryLimit != int64(limit) {
				t.Errorf("the limits are %d and %d, not %v", atC.LinkMemoryLimit, atS.LinkMemoryLimit, limit)
			}
			less := *atClient
			less.Limits.LinkMemory = mib
			c.apply(t, &less)
			if is := c.Snapshot().LinkMemoryLimit; is != mib {
				t.Errorf("after a reload the limit is %d", is)
			}
		})
	}
}

func TestRelayListChanges(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.target("127.0.0.1:7", echo)
		first := w.relay(relayHost, nas)
		w.relay(relay2Host, nas)
		w.server(w.serverConfig(w.relays(relayHost, relay2Host), "7 laptop"))
		c := w.client(w.clientConfig(w.relays(relayHost), "echo nas 7"))
		settle()
		tr := startTransfer(w.connect("echo"), 10*time.Second)
		time.Sleep(time.Second)
		c.apply(t, w.clientConfig(w.relays(relay2Host), "echo nas 7"))
		time.Sleep(2 * time.Second)
		if s := c.Snapshot(); len(s.Relays) != 1 || !s.Relays[0].Up || s.Sessions[0].Relay != relay2Host+":30380" {
			t.Errorf("after the change: %+v", s)
		}
		for _, peer := range first.Snapshot().Peers {
			if peer.ID == laptop && peer.Link != nil {
				t.Error("the link to the removed relay is still there")
			}
		}
		if pause := tr.finish(t); pause > 300*time.Millisecond {
			t.Errorf("a pause of %v, want at most 300 ms: the new link is there before the old one goes", pause)
		}
	})
}

func TestRelayComesBackBeforeItIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, _, c := w.chain()
		tr := startTransfer(w.connect("echo"), 10*time.Second)
		time.Sleep(time.Second)
		c.apply(t, w.clientConfig(w.relays(relay2Host), "echo nas 7")) // nobody is there
		time.Sleep(2 * time.Second)
		c.apply(t, w.clientConfig(w.relays(relayHost), "echo nas 7"))
		if pause := tr.finish(t); pause > 100*time.Millisecond {
			t.Errorf("a pause of %v: the link that carried the session was closed", pause)
		}
		if n := len(w.books[laptop].Lines(t, "link up")); n != 1 {
			t.Errorf("%d links were made, want one", n)
		}
	})
}

func TestServerRelayListChanges(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, _, s, _ := w.twoRelays()
		tr := startTransfer(w.connect("echo"), 5*time.Second)
		time.Sleep(time.Second)
		s.apply(t, w.serverConfig(w.relays(relay2Host), "7 laptop"))
		if pause := tr.finish(t); pause > time.Second {
			t.Errorf("a pause of %v, want at most 1 s", pause)
		}
	})
}

func TestThousandReloads(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, s, c := w.chain()
		tr := startTransfer(w.connect("echo"), 10*time.Second)
		for i := range 1000 {
			time.Sleep(5 * time.Millisecond)
			mappings, services := []string{"echo nas 7"}, []string{"7 laptop"}
			if i%2 == 0 {
				mappings, services = append(mappings, "other nas 8"), append(services, "8 others")
			}
			c.apply(t, w.clientConfig(w.relays(relayHost), mappings...))
			s.apply(t, w.serverConfig(w.relays(relayHost), services...))
		}
		if pause := tr.finish(t); pause > 100*time.Millisecond {
			t.Errorf("a pause of %v", pause)
		}
		if n := len(c.Snapshot().Mappings); n != 1 {
			t.Errorf("%d mappings after the last reload, want 1", n)
		}
	})
}
