package sim

import (
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/client"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
)

func TestTrace(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		r, s, c := w.chain()
		m := w.mapping("echo nas 7")
		seen := c.Trace(t.Context(), &m)
		want := []client.Hop{
			{From: laptop, To: relayHost + ":30380", Took: 2 * hop, Status: wire.StatusOpen},
			{From: relayHost + ":30380", To: nas, Took: 2 * hop, Status: wire.StatusOpen},
			{From: nas, To: ":7", Status: wire.StatusOpen},
		}
		if len(seen.Hops) != len(want) {
			t.Fatalf("hops %+v", seen.Hops)
		}
		for i, hop := range seen.Hops {
			if hop != want[i] {
				t.Errorf("hop %d: %+v, want %+v", i, hop, want[i])
			}
		}
		time.Sleep(time.Second)
		// The question that goes to the server is answered with 410, which is no refusal.
		if counters := r.Snapshot().Counters; counters.Replies[wire.StatusNoSession] != 0 {
			t.Errorf("the relay counts %v", counters.Replies)
		}
		if lines := w.books["relay "+relayHost].Lines(w.t, "connection refused"); len(lines) > 0 {
			t.Errorf("the relay logs %v", lines)
		}
		if n := len(s.Snapshot().Sessions) + len(c.Snapshot().Sessions); n > 0 {
			t.Errorf("%d sessions are left", n)
		}
		for _, node := range []string{laptop, nas} {
			if line := w.one(node, "connection ended"); line["connection"] != seen.Connection || line["source"] != "doctor" || line["end"] != "closed" {
				t.Errorf("%s logs %v", node, line)
			}
		}
	})
}

// Each way in which a trace can stop, and who says so.
func TestTraceStops(t *testing.T) {
	for _, c := range []struct {
		name, mapping string
		prepare       func(w *world)
		hops          int
		status        wire.Status
		by, says      string
	}{
		{"no relay", "m nas 7", func(w *world) { w.network.Cut(relayHost) }, 1, 503, "", "no relay is connected: "},
		{"the relay forbids it", "m other 7", nil, 2, 403, "relay", "the relay does not allow"},
		{"the server is away", "m nas 7", func(w *world) { w.network.Cut(nasHost) }, 2, 503, "relay", "server nas is not connected"},
		{"the server forbids it", "m nas 8", nil, 2, 403, nas, "the services of this server do not let"},
		{"the target refuses", "m nas 9", nil, 3, 502, nas, "connection refused"},
		{"the target is silent", "m nas 10.9.9.9:1", nil, 3, 504, nas, "no answer within"},
	} {
		t.Run(c.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.target("127.0.0.1:7", echo)
				w.relay(relayHost, nas)
				if c.prepare != nil {
					c.prepare(w)
				}
				w.server(w.serverConfig(w.relays(relayHost), "7 laptop", "9 laptop", "10.9.9.9:1 laptop"))
				node := w.client(w.clientConfig(w.relays(relayHost), "echo nas 7"))
				settle()
				m := w.mapping(c.mapping)
				seen := node.Trace(t.Context(), &m)
				last := seen.Hops[len(seen.Hops)-1]
				if len(seen.Hops) != c.hops || last.Status != c.status || last.By != c.by || !strings.Contains(last.Text, c.says) {
					t.Errorf("%+v, want %d hops, the last with %d by %s: %s", seen, c.hops, c.status, c.by, c.says)
				}
			})
		})
	}
}

func TestTraceOverTwoRelays(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		_, _, _, c := w.twoRelays()
		w.target("127.0.0.1:7", func(conn *testutil.Conn) { _ = conn.Close() })
		m := w.mapping("echo nas 7")
		seen := c.Trace(t.Context(), &m)
		var way []string
		for _, hop := range seen.Hops {
			way = append(way, hop.From+">"+hop.To)
			if !hop.OK() {
				t.Errorf("%+v", hop)
			}
		}
		if got, want := strings.Join(way, " "), "laptop>192.0.2.1:30380 192.0.2.1:30380>nas laptop>192.0.2.2:30380 192.0.2.2:30380>nas nas>:7"; got != want {
			t.Errorf("the way is %s, want %s", got, want)
		}
	})
}
