package sim

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/test/testutil"
)

func TestFirstByteTakesOneRoundTrip(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.chain()
		for range 3 { // the first connection of a link, and later ones
			start := time.Now()
			conn := w.connect("echo")
			exchange(t, conn, "hello")
			if took, want := time.Since(start), 4*hop; took != want {
				t.Errorf("the first byte is back after %v, want one round trip end to end: %v", took, want)
			}
			conn.Reset()
			time.Sleep(time.Minute)
		}
	})
}

func TestServerThatSpeaksFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.target("127.0.0.1:22", func(conn *testutil.Conn) {
			_, _ = conn.Write([]byte("SSH-2.0-test\r\n"))
			echo(conn)
		})
		w.relay(relayHost, nas)
		w.server(w.serverConfig(w.relays(relayHost), "22 laptop"))
		w.client(w.clientConfig(w.relays(relayHost), "ssh nas 22"))
		settle()
		start := time.Now()
		conn := w.connect("ssh")
		banner := make([]byte, 14)
		if _, err := io.ReadFull(conn, banner); err != nil {
			t.Fatal(err)
		}
		if took, want := time.Since(start), 4*hop; took != want {
			t.Errorf("the banner is there after %v, want one round trip end to end: %v", took, want)
		}
	})
}

func TestAnHourIdle(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, _, c := w.chain()
		conn := w.connect("echo")
		exchange(t, conn, "before")
		time.Sleep(time.Hour)
		exchange(t, conn, "after")
		if s := c.Snapshot().Sessions; len(s) != 1 || s[0].Resumes != 0 {
			t.Errorf("sessions after an hour: %+v; want one that was never resumed", s)
		}
	})
}

func TestHalfClose(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, _, c := w.chain()
		conn := w.connect("echo")
		if _, err := conn.Write([]byte("all")); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); string(got) != "all" || err != nil {
			t.Errorf("P1 reads %q, %v; want %q to the end", got, err, "all")
		}
		time.Sleep(time.Second)
		if s := c.Snapshot().Sessions; len(s) != 0 {
			t.Errorf("sessions are left: %+v", s)
		}
		for _, node := range []string{laptop, nas} {
			line := w.one(node, "connection ended")
			for key, want := range map[string]any{
				"end": "closed", "code": 200.0, "bytes_up": 3.0, "bytes_down": 3.0, "resumes": 0.0,
				"server": nas, "target": ":7", "source": conn.LocalAddr().String(), "relay": relayHost + ":30380",
			} {
				if line[key] != want {
					t.Errorf("%s logs %s=%v, want %v", node, key, line[key], want)
				}
			}
		}
		if p2, p4 := w.one(laptop, "connection ended"), w.one(nas, "connection ended"); p2["connection"] != p4["connection"] {
			t.Errorf("connection IDs differ: %v and %v", p2["connection"], p4["connection"])
		}
		if p4 := w.one(nas, "connection ended"); p4["client"] != laptop || p4["peer"] != "127.0.0.1:7" {
			t.Errorf("the server logs client=%v peer=%v", p4["client"], p4["peer"])
		}
	})
}

func TestResetsPass(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.chain()
		ends := make(chan error, 1)
		w.target("127.0.0.1:7", func(conn *testutil.Conn) {
			_, err := io.Copy(io.Discard, conn)
			ends <- err
		})
		conn := w.connect("echo")
		time.Sleep(time.Second)
		conn.Reset()
		if err := <-ends; err == nil {
			t.Error("P1 has reset its connection, and P5 sees an orderly end")
		}

		w.target("127.0.0.1:7", func(conn *testutil.Conn) {
			_, _ = conn.Read(make([]byte, 1))
			conn.Reset()
		})
		conn = w.connect("echo")
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		wantReset(t, conn)
	})
}

func TestClientBeforeServer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.target("127.0.0.1:7", echo)
		w.relay(relayHost, nas)
		w.client(w.clientConfig(w.relays(relayHost), "echo nas 7"))
		settle()
		wantReset(t, w.connect("echo"))
		if line := w.one(laptop, "connection refused"); line["code"] != 503.0 || line["by"] != "relay" {
			t.Errorf("the client logs code=%v by=%v, want 503 by the relay", line["code"], line["by"])
		}
		w.server(w.serverConfig(w.relays(relayHost), "7 laptop"))
		settle()
		exchange(t, w.connect("echo"), "now")
	})
}

func TestClientWithoutRelay(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.target("127.0.0.1:7", echo)
		w.relay(relayHost, nas)
		w.server(w.serverConfig(w.relays(relayHost), "7 laptop"))
		w.network.Cut(laptopHost)
		c := w.client(w.clientConfig(w.relays(relayHost), "echo nas 7"))
		settle()

		start := time.Now()
		wantReset(t, w.connect("echo"))
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("held for %v, want 5 s", took)
		}
		if line := w.one(laptop, "connection refused"); line["end"] != "no link to a relay" || !contains(line["reason"], "no answer over UDP") {
			t.Errorf("the client logs %v", line)
		}

		conn := w.connect("echo")
		synctest.Wait()
		if held := c.Snapshot().Held; held != 1 {
			t.Errorf("%d connections are held, want 1", held)
		}
		w.network.Heal(laptopHost)
		exchange(t, conn, "at last") // it is held until there is a link
	})
}

func TestHeldConnectionsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		settings := w.clientConfig(w.relays(relayHost), "echo nas 7")
		settings.Limits.HeldConnections = 2
		w.client(settings)
		settle()
		start := time.Now()
		held := []*testutil.Conn{w.connect("echo"), w.connect("echo")}
		wantReset(t, w.connect("echo"))
		if took := time.Since(start); took != 0 {
			t.Errorf("one too many was reset after %v, want at once", took)
		}
		for _, conn := range held {
			wantReset(t, conn)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("the others were reset after %v, want 5 s", took)
		}
	})
}

func TestRefusals(t *testing.T) {
	for _, test := range []struct {
		name, server, target string
		code                 float64
		by                   string
		reason               string // part of the server's own log; empty if it doesn't hear of it
	}{
		{"server that does not exist", "nowhere", "7", 403, "relay", ""},
		{"target that no service covers", nas, "8", 403, nas, "no service covers :8"},
		{"service of others", nas, "9", 403, nas, "the clients of :9 do not include laptop (server.toml:20)"},
		{"nothing listens", nas, "7", 502, nas, "connection refused"},
		{"no answer", nas, "10.9.9.9:7", 504, nas, "no answer within 10s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.relay(relayHost, nas)
				w.server(w.serverConfig(w.relays(relayHost), "7 laptop", "9 others", "10.9.9.9:7 laptop"))
				w.client(w.clientConfig(w.relays(relayHost), "m "+test.server+" "+test.target))
				settle()
				conn := w.connect("m")
				if _, err := conn.Write([]byte("hello")); err != nil {
					t.Fatal(err)
				}
				wantReset(t, conn)
				line := w.one(laptop, "connection refused")
				if line["code"] != test.code || line["by"] != test.by || line["level"] != "WARN" {
					t.Errorf("the client logs code=%v by=%v level=%v, want %v %v WARN", line["code"], line["by"], line["level"], test.code, test.by)
				}
				if test.reason == "" {
					return
				}
				settle()
				there := w.one(nas, "connection refused")
				if !contains(there["reason"], test.reason) || there["code"] != test.code || there["connection"] != line["connection"] {
					t.Errorf("the server logs %v, want %v because %q", there, line["connection"], test.reason)
				}
			})
		})
	}
}
