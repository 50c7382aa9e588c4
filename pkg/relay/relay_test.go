package relay_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/wire"
)

var inTwoWays = []string{"laptop may nas", "nas"}

func TestJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		var seen *wire.Incoming
		w.server("nas", func(s *link.Stream, m *wire.Incoming) {
			seen = m
			echo(s, m)
		})
		laptop := w.client("laptop")

		start := time.Now()
		s := laptop.connect("nas", open(1, ":22"), "SSH-2.0")
		if got := w.reply(s); got.Status != wire.StatusOpen || got.Node != "nas" {
			t.Errorf("the reply is %+v", got)
		}
		if took := time.Since(start); took != 4*hop {
			t.Errorf("the reply took %v, want one end-to-end round trip, %v", took, 4*hop)
		}
		if got, err := read(s); got != "SSH-2.0" || err != nil {
			t.Errorf("the data behind the tip came back as %q, %v", got, err)
		}
		if took := time.Since(start); took != 4*hop {
			t.Errorf("the first byte took %v, want one end-to-end round trip, %v", took, 4*hop)
		}
		if seen.Client != "laptop" || string(seen.Inner) != string(open(1, ":22")) {
			t.Errorf("the server saw client %q and inner tip %x", seen.Client, seen.Inner)
		}

		snapshot := w.relay.Snapshot()
		if len(snapshot.Connections) != 1 {
			t.Fatalf("the table holds %d connections", len(snapshot.Connections))
		}
		want := relay.Connection{
			ID: session(1).ConnectionID(), Client: "laptop", Source: "127.0.0.1:50000", Server: "nas", Target: ":22",
			Attempt: 1, State: relay.StateOpen, Since: start.Add(hop), BytesUp: 7, BytesDown: uint64(len(granted)) + 7,
		}
		if got := snapshot.Connections[0]; got != want {
			t.Errorf("the table says %+v,\nwant %+v", got, want)
		}
		for _, p := range snapshot.Peers {
			if p.Link == nil || p.Link.Connections != 1 || p.Link.Stats.RTT == 0 {
				t.Errorf("the snapshot says of %s: %+v", p.ID, p.Link)
			}
		}

		if err := s.CloseWrite(); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
			t.Errorf("after the half-close came %q, %v", rest, err)
		}
		time.Sleep(time.Second)
		w.wantEmpty()
		counters := w.relay.Snapshot().Counters
		if counters.Replies[wire.StatusOpen] != 1 || counters.BytesUp != want.BytesUp || counters.BytesDown != want.BytesDown {
			t.Errorf("counters %+v", counters)
		}
		w.wantLine("connection ended", map[string]any{
			"connection": want.ID, "client": "laptop", "source": "127.0.0.1:50000", "server": "nas", "target": ":22",
			"code": 200.0, "end": "complete", "by": "both", "bytes_up": 7.0, "level": "INFO", "peer": "laptop",
		})
	})
}

// A refusedRequest is a request of laptop that the relay refuses, and how.
type refusedRequest struct {
	limits   relay.Limits
	request  serverRequest
	held     []serverRequest // connections that are there before
	status   wire.Status
	text     string
	reason   string // in the log
	level    string
	noServer bool
}

type serverRequest struct {
	server string
	inner  []byte
}

var refusedRequests = map[string]refusedRequest{
	"server not allowed": {
		request: serverRequest{"db", open(1, ":22")},
		status:  403, text: "the relay does not allow laptop to reach :22 at db", reason: "no allowed_servers of laptop name db", level: "WARN",
	},
	"server that does not exist": {
		request: serverRequest{"ghost", open(1, ":22")},
		status:  403, text: "the relay does not allow laptop to reach :22 at ghost", reason: "no allowed_servers of laptop name ghost", level: "WARN",
	},
	"server that does not exist, but would be allowed": {
		request: serverRequest{"build-7", open(1, ":22")},
		status:  403, text: "the relay does not allow laptop to reach :22 at build-7", reason: "no peer has the ID build-7", level: "WARN",
	},
	"target not allowed": {
		request: serverRequest{"mail", open(1, ":22")},
		status:  403, text: "the relay does not allow laptop to reach :22 at mail", reason: "laptop may reach mail, but not its target :22", level: "WARN",
	},
	"resume not allowed": {
		request: serverRequest{"db", resume(1, 2, ":22")},
		status:  403, text: "the relay does not allow laptop to reach :22 at db", level: "WARN",
	},
	"another client": {
		request: serverRequest{"phone", open(1, ":22")},
		status:  403, text: "the relay does not allow laptop to reach :22 at phone", level: "WARN",
	},
	"not connected": {
		request: serverRequest{"nas", open(1, ":22")}, noServer: true,
		status: 503, text: "server nas is not connected to the relay", level: "INFO",
	},
	"inner tip truncated": {
		request: serverRequest{"nas", open(1, ":22")[:20]},
		status:  400, text: "the inner tip is truncated", level: "WARN",
	},
	"bytes behind the inner tip": {
		request: serverRequest{"nas", append(open(1, ":22"), 0)},
		status:  400, text: "1 bytes follow the inner tip", level: "WARN",
	},
	"no inner tip": {
		request: serverRequest{"nas", wire.Append(nil, &wire.Control{})},
		status:  400, text: "the inner tip is neither open nor resume", level: "WARN",
	},
	"garbage": {
		request: serverRequest{"nas", []byte{9, 1, 1}},
		status:  400, text: "the inner tip: malformed message: message type 9 is unknown", level: "WARN",
	},
	"too many connections": {
		limits:  relay.Limits{Connections: 1},
		held:    []serverRequest{{"nas", open(2, ":22")}},
		request: serverRequest{"nas", open(1, ":22")},
		status:  429, text: "the relay has 1 connections, its limit", level: "WARN",
	},
	"too many connections of the client": {
		limits:  relay.Limits{ConnectionsPerClient: 2},
		held:    []serverRequest{{"nas", open(2, ":22")}, {"nas", open(3, ":22")}},
		request: serverRequest{"nas", open(1, ":22")},
		status:  429, text: "client laptop has 2 connections, its limit", level: "WARN",
	},
	"too fast": {
		limits:  relay.Limits{OpensPerSecond: 1},
		held:    []serverRequest{{"nas", open(2, ":22")}, {"nas", open(3, ":22")}},
		request: serverRequest{"nas", open(1, ":22")},
		status:  429, text: "more than 1 requests a second", level: "WARN",
	},
}

// Each refusal has its status and names the relay. The reply arrives, and then an orderly end. No
// server is asked.
func TestRefuses(t *testing.T) {
	for name, c := range refusedRequests {
		t.Run(name, func(t *testing.T) { synctest.Test(t, c.test) })
	}
}

func (c refusedRequest) test(t *testing.T) {
	w := newWorld(t, c.limits, "laptop may nas build-* mail:25", "phone may nas", "nas", "db", "mail")
	asked := 0
	ask := func(s *link.Stream, m *wire.Incoming) {
		asked++
		echo(s, m)
	}
	if !c.noServer {
		for _, id := range []string{"nas", "db", "mail"} {
			w.server(id, ask)
		}
	}
	laptop := w.client("laptop")
	for _, q := range c.held {
		laptop.joined(q.server, q.inner)
	}
	s := laptop.connect(c.request.server, c.request.inner, strings.Repeat("data", 1000))
	got := w.reply(s)
	if got.Status != c.status || got.Text != c.text || got.Node != "relay" {
		t.Errorf("the reply is %v %q from %q,\nwant %v %q", got.Status, got.Text, got.Node, c.status, c.text)
	}
	if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
		t.Errorf("behind the reply came %q, %v", rest, err)
	}
	if s.Context().Err() != nil {
		t.Error("the relay stopped reading before the client had the reply")
	}
	s.CancelWrite(wire.CodeLost)
	time.Sleep(time.Second)
	if asked != len(c.held) {
		t.Errorf("servers were asked %d times, want %d", asked, len(c.held))
	}
	if n := w.relay.Snapshot().Counters.Refused[c.status]; n != 1 {
		t.Errorf("%d refusals were counted with %v", n, c.status)
	}
	if c.reason == "" {
		c.reason = c.text
	}
	want := map[string]any{"code": float64(c.status), "end": "refused", "by": "relay", "client": "laptop", "server": c.request.server, "level": c.level}
	if c.status != 403 || c.reason != c.text {
		want["reason"] = c.reason
	}
	w.wantLine("connection refused", want)
	if n := len(w.relay.Snapshot().Connections); n != len(c.held) {
		t.Errorf("the table holds %d connections, want %d", n, len(c.held))
	}
}

// A client that is refused and goes on sending, or never reads, holds nothing for long.
func TestRefusedStreamIsFreed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		laptop := w.client("laptop")
		s := laptop.connect("nas", open(1, ":22"), "")
		start := time.Now()
		<-s.Context().Done()
		if took := time.Since(start); took > 6*time.Second {
			t.Errorf("the relay read for %v", took)
		}
		s.Reset(wire.CodeLost)
	})
}

func TestServersMayNotConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "laptop may nas", "nas", "db")
		w.server("nas", echo)
		db := w.server("db", echo)
		s := db.connect("nas", open(1, ":22"), "")
		if got := w.reply(s); got.Status != wire.StatusMalformed {
			t.Errorf("a server's connect was answered with %v", got.Status)
		}
		s.CancelWrite(wire.CodeLost)
	})
}

// A server bounds its streams; the client hears that there are too many, not that there is no
// server.
func TestServerTakesNoMoreStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		nas := w.node("nas", host("nas"), echo)
		nas.dialer.Limits.Streams = 2
		nas.dial()
		laptop := w.client("laptop")
		laptop.joined("nas", open(1, ":22"))
		laptop.joined("nas", open(2, ":22"))
		s := laptop.connect("nas", open(3, ":22"), "")
		if got := w.reply(s); got.Status != wire.StatusTooMany || !strings.Contains(got.Text, "server nas takes no more connections") {
			t.Errorf("the reply is %+v", got)
		}
		s.CancelWrite(wire.CodeLost)
	})
}

func TestServerRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		w.server("nas", refuse(wire.StatusRefused, "connection refused by 127.0.0.1:22"))
		laptop := w.client("laptop")
		s := laptop.connect("nas", open(1, ":22"), "early data")
		if got := w.reply(s); got.Status != wire.StatusRefused || got.Node != "nas" || got.Text != "connection refused by 127.0.0.1:22" {
			t.Errorf("the reply is %+v", got)
		}
		if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
			t.Errorf("behind the reply came %q, %v", rest, err)
		}
		if c := w.relay.Snapshot().Connections; len(c) != 1 || c[0].State != relay.StateRefused {
			t.Errorf("the table says %+v", c)
		}
		s.CancelWrite(wire.CodeLost)
		time.Sleep(time.Second)
		w.wantEmpty()
		w.wantLine("connection refused", map[string]any{
			"code": 502.0, "by": "nas", "reason": "connection refused by 127.0.0.1:22", "level": "INFO",
		})
		if lines := w.log.Lines(t, "connection ended"); len(lines) > 0 {
			t.Errorf("a refused connection was told twice: %v", lines)
		}
		if n := w.relay.Snapshot().Counters.Replies[wire.StatusRefused]; n != 1 {
			t.Errorf("counted %d replies 502", n)
		}
	})
}

func TestParksAResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		laptop := w.client("laptop")
		start := time.Now()
		s := laptop.connect("nas", resume(1, 2, ":22"), "")
		time.Sleep(3 * time.Second)
		if c := w.relay.Snapshot().Connections; len(c) != 1 || c[0].State != relay.StateParked {
			t.Errorf("the table says %+v, want one that is parked", c)
		}
		w.server("nas", echo)
		if got := w.reply(s); got.Status != wire.StatusOpen {
			t.Errorf("the reply is %v", got.Status)
		}
		if took := time.Since(start); took > 3*time.Second+10*hop {
			t.Errorf("the resume took %v", took)
		}
		if n := w.relay.Snapshot().Counters.Parked; n != 1 {
			t.Errorf("counted %d parked", n)
		}
		s.Reset(wire.CodeLost)
	})
}

func TestParksNotForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		laptop := w.client("laptop")
		start := time.Now()
		s := laptop.connect("nas", resume(1, 2, ":22"), "")
		gone := laptop.connect("nas", resume(2, 2, ":22"), "")
		time.Sleep(time.Second)
		gone.Reset(wire.CodeLost)
		time.Sleep(time.Second)
		if c := w.relay.Snapshot().Connections; len(c) != 1 {
			t.Errorf("a resume whose client has left is still parked: %+v", c)
		}
		if got := w.reply(s); got.Status != wire.StatusNotConnected {
			t.Errorf("the reply is %v", got.Status)
		}
		if took := time.Since(start); took != 5*time.Second+2*hop {
			t.Errorf("the resume was parked for %v", took)
		}
		s.Reset(wire.CodeLost)
	})
}

func TestParksAFew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{Parked: 1, ParkTime: 2 * time.Second}, inTwoWays...)
		laptop := w.client("laptop")
		for range 2 { // the second time, the first one's place is free again
			start := time.Now()
			first := laptop.connect("nas", resume(1, 2, ":22"), "")
			time.Sleep(time.Second)
			for n, s := range []*link.Stream{laptop.connect("nas", resume(2, 2, ":22"), ""), first} {
				if got := w.reply(s); got.Status != wire.StatusNotConnected {
					t.Errorf("the reply is %v", got.Status)
				}
				if took, want := time.Since(start), time.Duration(n+1)*time.Second+2*hop; took != want {
					t.Errorf("the reply took %v, want %v", took, want)
				}
				s.Reset(wire.CodeLost)
			}
		}
		if n := w.relay.Snapshot().Counters.LimitsHit["parked_resumes"]; n != 2 {
			t.Errorf("counted %d hits", n)
		}
		w.relay.Apply(w.policy(inTwoWays...), relay.Limits{ParkTime: -1})
		start := time.Now()
		s := laptop.connect("nas", resume(1, 2, ":22"), "")
		_ = w.reply(s)
		if took := time.Since(start); took != 2*hop {
			t.Errorf("the reply took %v", took)
		}
		s.Reset(wire.CodeLost)
	})
}

func TestNewerAttemptReplacesTheOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{ConnectionsPerClient: 1}, inTwoWays...)
		refusing := false
		w.server("nas", func(s *link.Stream, m *wire.Incoming) {
			if refusing {
				refuse(wire.StatusNotNewest, "old")(s, m)
				return
			}
			echo(s, m)
		})
		laptop := w.client("laptop")
		first := laptop.joined("nas", open(1, ":22"))

		// A refused attempt leaves the session where it is.
		refusing = true
		failed := laptop.connect("nas", resume(1, 2, ":22"), "")
		if got := w.reply(failed); got.Status != wire.StatusNotNewest {
			t.Errorf("the reply is %v", got.Status)
		}
		failed.Reset(wire.CodeLost)
		if _, err := first.Write([]byte("still here")); err != nil {
			t.Error(err)
		}
		if got, err := read(first); got != "still here" || err != nil {
			t.Errorf("the first stream says %q, %v", got, err)
		}

		refusing = false
		second := laptop.joined("nas", resume(1, 3, ":22"))
		_, err := read(first)
		w.wantReset("the first stream", err, wire.CodeLost)
		first.Reset(wire.CodeLost)
		time.Sleep(time.Second)
		if c := w.relay.Snapshot().Connections; len(c) != 1 || c[0].Attempt != 3 {
			t.Errorf("the table says %+v", c)
		}
		second.Reset(wire.CodeLost)
		time.Sleep(time.Second)
		w.wantEmpty()
	})
}

// Another client's streams are its own, even with the same token.
func TestTokensAreTheirClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "laptop may nas", "phone may nas", "nas")
		w.server("nas", echo)
		laptop, phone := w.client("laptop"), w.client("phone")
		s := laptop.joined("nas", open(1, ":22"))
		theirs := phone.joined("nas", resume(1, 9, ":22"))
		if _, err := s.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if got, err := read(s); got != "x" || err != nil {
			t.Errorf("laptop's stream says %q, %v", got, err)
		}
		s.Reset(wire.CodeLost)
		theirs.Reset(wire.CodeLost)
	})
}

func TestManyAttemptsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		w.server("nas", func(s *link.Stream, _ *wire.Incoming) { // answers never
			<-s.Context().Done()
			s.Reset(wire.CodeLost)
		})
		laptop := w.client("laptop")
		var streams []*link.Stream
		for attempt := range uint64(20) {
			streams = append(streams, laptop.connect("nas", resume(1, attempt+1, ":22"), ""))
			time.Sleep(time.Second)
		}
		if c := w.relay.Snapshot().Connections; len(c) > 3 {
			t.Errorf("one session holds %d streams", len(c))
		}
		for _, s := range streams {
			s.Reset(wire.CodeLost)
		}
	})
}

// The death of a link ends the joins over it, also their streams of the other link. The link is the
// server's, the client's, or one that a newer link supersedes.
func TestLinkLoss(t *testing.T) {
	setup := func(t *testing.T) (w *world, laptop, nas *node, s *link.Stream, serverEnd chan error) {
		t.Helper()
		w = newWorld(t, relay.Limits{}, inTwoWays...)
		serverEnd = make(chan error, 1)
		nas = w.server("nas", func(s *link.Stream, _ *wire.Incoming) {
			_, _ = s.Write(granted)
			_, err := io.Copy(io.Discard, s)
			s.Reset(wire.CodeLost)
			serverEnd <- err
		})
		laptop = w.client("laptop")
		return w, laptop, nas, laptop.joined("nas", open(1, ":22")), serverEnd
	}
	t.Run("the server is cut off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, _, s, _ := setup(t)
			start := time.Now()
			w.network.Cut(host("nas"))
			_, err := read(s)
			w.wantReset("the client", err, wire.CodeLost)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			w.wantLine("connection ended", map[string]any{"end": "lost", "by": "server", "reason": "its link was lost"})
			w.wantEmpty()
		})
	})
	t.Run("the client is cut off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, laptop, _, _, serverEnd := setup(t)
			start := time.Now()
			w.network.Cut("10.0.0." + hostNumber(laptop.id))
			w.wantReset("the server", <-serverEnd, wire.CodeLost)
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("it took %v", took)
			}
			w.wantEmpty()
		})
	})
	t.Run("the client comes with a newer link", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, _, s, serverEnd := setup(t)
			start := time.Now()
			again := w.node("laptop", "10.0.2.1", nil)
			again.dial()
			_, err := read(s)
			w.wantReset("the older link's stream", err, wire.CodeLost)
			w.wantReset("the server", <-serverEnd, wire.CodeLost)
			if took := time.Since(start); took > 10*hop {
				t.Errorf("it took %v", took)
			}
			again.joined("nas", open(2, ":22"))
		})
	})
	t.Run("the server stops", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, nas, s, serverEnd := setup(t)
			nas.stop()
			_, err := read(s)
			w.wantReset("the client", err, wire.CodeLost)
			w.wantReset("the server", <-serverEnd, wire.CodeLost)
			time.Sleep(time.Second)
			for _, p := range w.relay.Snapshot().Peers {
				if p.ID == "nas" && (p.Link != nil || time.Since(p.LastSeen) > 2*time.Second) {
					t.Errorf("the snapshot says of the server: %+v", p)
				}
			}
		})
	})
}

func TestRevokes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "laptop may nas:22 nas:80", "phone may nas", "nas")
		var mu sync.Mutex
		ends := map[string]error{}
		nas := w.server("nas", func(s *link.Stream, m *wire.Incoming) {
			_, _ = s.Write(granted)
			_, err := io.Copy(s, s)
			s.Reset(wire.CodeLost)
			inner, _, _ := wire.Parse(m.Inner)
			mu.Lock()
			defer mu.Unlock()
			ends[m.Client+inner.(*wire.Open).Target] = err
		})
		laptop, phone := w.client("laptop"), w.client("phone")
		ssh := laptop.joined("nas", open(1, ":22"))
		web := laptop.joined("nas", open(2, ":80"))
		other := phone.joined("nas", open(3, ":22"))

		got := w.relay.Apply(w.policy("laptop may nas:80", "phone may nas", "nas"), relay.Limits{})
		if got != (relay.Applied{Connections: 1}) {
			t.Errorf("Apply says %+v", got)
		}
		_, err := read(ssh)
		w.wantReset("the revoked connection", err, wire.CodeRevoked)
		time.Sleep(time.Second)
		mu.Lock()
		w.wantReset("the revoked connection at the server", ends["laptop:22"], wire.CodeRevoked)
		if len(ends) != 1 {
			t.Errorf("ended at the server: %v", ends)
		}
		mu.Unlock()
		if told := nas.told(); !reflect.DeepEqual(told, []wire.Revoked{{Client: "laptop", Target: ":22"}}) {
			t.Errorf("the server was told %+v", told)
		}
		for name, s := range map[string]*link.Stream{"web": web, "phone's": other} {
			if _, err := s.Write([]byte("undisturbed")); err != nil {
				t.Error(name, err)
			}
			if got, err := read(s); got != "undisturbed" || err != nil {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		w.wantLine("connection revoked", map[string]any{
			"connection": session(1).ConnectionID(), "allowed_before_by": "relay.toml:11", "level": "WARN",
			"reason": "laptop may reach nas, but not its target :22",
		})
		again := laptop.connect("nas", resume(1, 2, ":22"), "")
		if got := w.reply(again); got.Status != wire.StatusNotAllowed {
			t.Errorf("a resume of what was revoked is answered with %v", got.Status)
		}
		again.Reset(wire.CodeLost)
	})
}

// A withdrawn right ends detached sessions, which only the server knows. A server that is not
// connected hears of it when it comes back.
func TestRevokesDetachedSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "laptop may nas db", "nas", "db")
		nas, db := w.server("nas", echo), w.server("db", echo)
		laptop := w.client("laptop")
		laptop.joined("nas", open(1, ":22")).Reset(wire.CodeLost)
		laptop.joined("db", open(2, ":5432")).Reset(wire.CodeLost)
		laptop.stop()
		db.stop()
		time.Sleep(time.Second)
		w.wantEmpty()

		if got := w.relay.Apply(w.policy("nas", "db"), relay.Limits{}); got != (relay.Applied{}) {
			t.Errorf("Apply says %+v", got)
		}
		time.Sleep(time.Second)
		if told := nas.told(); !reflect.DeepEqual(told, []wire.Revoked{{Client: "laptop", Target: ":22"}}) {
			t.Errorf("nas was told %+v", told)
		}
		db = w.server("db", echo)
		time.Sleep(time.Second)
		if told := db.told(); !reflect.DeepEqual(told, []wire.Revoked{{Client: "laptop", Target: ":5432"}}) {
			t.Errorf("db was told %+v", told)
		}
		// It is said once.
		w.relay.Apply(w.policy("nas", "db"), relay.Limits{})
		time.Sleep(time.Second)
		if told := nas.told(); len(told) != 1 {
			t.Errorf("nas was told again: %+v", told)
		}
	})
}

func TestRevokesKeys(t *testing.T) {
	for _, who := range []string{"laptop", "nas"} {
		t.Run(who, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, relay.Limits{}, inTwoWays...)
				ended := make(chan error, 1)
				nas := w.server("nas", func(s *link.Stream, _ *wire.Incoming) {
					_, _ = s.Write(granted)
					_, err := io.Copy(io.Discard, s)
					s.Reset(wire.CodeLost)
					ended <- err
				})
				laptop := w.client("laptop")
				s := laptop.joined("nas", open(1, ":22"))
				w.keys[who] = linktest.Key(t) // a new key for the same ID, with the same rights
				if got := w.relay.Apply(w.policy(inTwoWays...), relay.Limits{}); got != (relay.Applied{Links: 1, Connections: 1}) {
					t.Errorf("Apply says %+v", got)
				}
				_, err := read(s)
				w.wantReset("the client", err, wire.CodeRevoked)
				w.wantReset("the server", <-ended, wire.CodeRevoked)
				time.Sleep(time.Second)
				gone := map[string]*node{"laptop": laptop, "nas": nas}[who]
				end, ok := errors.AsType[*link.ClosedError](gone.live().Err())
				if !ok || end.Code != wire.CloseRevoked || !end.Remote {
					t.Errorf("the link ended with %v", gone.live().Err())
				}
				if who == "laptop" {
					if told := nas.told(); !reflect.DeepEqual(told, []wire.Revoked{{Client: "laptop", Target: ":22"}}) {
						t.Errorf("the server was told %+v", told)
					}
				}
			})
		})
	}
}

func TestRevokesWhatIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		laptop := w.client("laptop")
		s := laptop.connect("nas", resume(1, 2, ":22"), "")
		time.Sleep(time.Second)
		w.relay.Apply(w.policy("laptop may", "nas"), relay.Limits{})
		if got := w.reply(s); got.Status != wire.StatusNotAllowed {
			t.Errorf("the reply is %v", got.Status)
		}
		s.Reset(wire.CodeLost)
	})
}

func TestNewLimitsHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{Connections: 1}, inTwoWays...)
		w.server("nas", echo)
		laptop := w.client("laptop")
		laptop.joined("nas", open(1, ":22"))
		w.relay.Apply(w.policy(inTwoWays...), relay.Limits{Connections: 2})
		laptop.joined("nas", open(2, ":22"))
	})
}

func TestDrain(t *testing.T) {
	t.Run("sessions move", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, relay.Limits{}, inTwoWays...)
			w.server("nas", echo)
			laptop := w.client("laptop")
			s, slow := laptop.joined("nas", open(1, ":22")), laptop.joined("nas", open(2, ":22"))
			var moving sync.WaitGroup
			moving.Go(func() {
				<-laptop.live().PeerClosing()
				time.Sleep(700 * time.Millisecond)
				s.Reset(wire.CodeLost)
				time.Sleep(700 * time.Millisecond)
				slow.Reset(wire.CodeLost)
			})
			start := time.Now()
			if left := w.relay.Drain(t.Context()); left != 0 {
				t.Errorf("%d connections were left", left)
			}
			if took := time.Since(start); took > 1500*time.Millisecond {
				t.Errorf("the drain took %v after everything had moved", took)
			}
			moving.Wait()
			refused := laptop.connect("nas", open(3, ":22"), "")
			_, err := read(refused)
			w.wantReset("while closing", err, wire.CodeClosing)
			refused.Reset(wire.CodeLost)
			if !w.relay.Snapshot().Closing {
				t.Error("the snapshot doesn't say that the relay is closing")
			}
		})
	})
	t.Run("nothing can move", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, relay.Limits{}, inTwoWays...)
			w.server("nas", echo)
			s := w.client("laptop").joined("nas", open(1, ":22"))
			start := time.Now()
			if left := w.relay.Drain(t.Context()); left != 1 {
				t.Errorf("%d connections were left", left)
			}
			if took := time.Since(start); took != time.Second {
				t.Errorf("the drain took %v", took)
			}
			_, err := read(s)
			w.wantReset("what was left", err, wire.CodeClosing)
			w.wantEmpty()
		})
	})
	t.Run("out of time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, relay.Limits{}, inTwoWays...)
			w.server("nas", echo)
			s := w.client("laptop").joined("nas", open(1, ":22"))
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			start := time.Now()
			w.relay.Drain(ctx)
			if took := time.Since(start); took != 300*time.Millisecond {
				t.Errorf("the drain took %v", took)
			}
			_, err := read(s)
			w.wantReset("what was left", err, wire.CodeClosing)
		})
	})
	t.Run("a link that comes meanwhile", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, relay.Limits{}, inTwoWays...)
			w.relay.Drain(t.Context())
			<-w.client("laptop").live().PeerClosing()
		})
	})
}

// A server that reads nothing stalls its stream. The relay resets a stalled stream while others
// wait, and leaves it alone while others move, or if there are none.
func TestStalledStream(t *testing.T) {
	t.Run("others wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, stalled, sending := stall(t, 2)
			start := time.Now()
			_, err := read(stalled)
			w.wantReset("the stalled stream", err, wire.CodeLost)
			if took := time.Since(start); took < 30*time.Second || took > 40*time.Second {
				t.Errorf("it was reset after %v", took)
			}
			sending.Wait()
			time.Sleep(time.Second)
			snapshot := w.relay.Snapshot()
			if snapshot.Counters.Stalled != 1 || len(snapshot.Connections) != 2 {
				t.Errorf("stalled %d, connections %d; want 1, 2", snapshot.Counters.Stalled, len(snapshot.Connections))
			}
		})
	})
	t.Run("others move", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, laptop, stalled, sending := stall(t, 0)
			other := laptop.joined("nas", open(2, ":22"))
			for range 100 {
				if _, err := other.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := read(other); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			if n := w.relay.Snapshot().Counters.Stalled; n != 0 {
				t.Errorf("%d streams were reset", n)
			}
			stalled.Reset(wire.CodeLost)
			sending.Wait()
		})
	})
	t.Run("alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w, _, stalled, sending := stall(t, 0)
			time.Sleep(2 * time.Minute)
			if n := w.relay.Snapshot().Counters.Stalled; n != 0 {
				t.Errorf("%d streams were reset", n)
			}
			stalled.Reset(wire.CodeLost)
			sending.Wait()
		})
	})
}

// Where many stalled streams have used up the window of the link, all of them are reset soon.
func TestStalledStreamsUseUpTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, laptop, stalled, sending := stall(t, 0)
		other := laptop.joined("nas", open(2, ":22"))
		all := []*link.Stream{stalled}
		for n := range 5 {
			all = append(all, laptop.joined("nas", open(byte(10+n), ":9")))
		}
		for _, s := range all[1:] {
			sending.Go(func() {
				for _, err := s.Write(make([]byte, 64<<10)); err == nil; _, err = s.Write(make([]byte, 64<<10)) {
				}
			})
		}
		time.Sleep(time.Second)
		start := time.Now()
		if _, err := other.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := read(other); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < time.Second || took > 8*time.Second {
			t.Errorf("the others waited for %v", took)
		}
		for _, s := range all {
			_, err := read(s)
			w.wantReset("a stalled stream", err, wire.CodeLost)
		}
		sending.Wait()
		time.Sleep(time.Second)
		snapshot := w.relay.Snapshot()
		if snapshot.Counters.Stalled != 6 || len(snapshot.Connections) != 1 {
			t.Errorf("stalled %d, connections %d; want 6, 1", snapshot.Counters.Stalled, len(snapshot.Connections))
		}
		laptop.joined("nas", open(9, ":22")) // once may be chance
	})
}

// stall has laptop send to a target that reads nothing, beside further streams.
func stall(t *testing.T, streams int) (w *world, laptop *node, stalled *link.Stream, sending *sync.WaitGroup) {
	t.Helper()
	w = newWorld(t, relay.Limits{}, inTwoWays...)
	w.server("nas", func(s *link.Stream, m *wire.Incoming) {
		if inner, _, _ := wire.Parse(m.Inner); inner.(*wire.Open).Target == ":9" {
			mute(s, m)
			return
		}
		echo(s, m)
	})
	laptop = w.client("laptop")
	for n := range streams {
		laptop.joined("nas", open(byte(10+n), ":22"))
	}
	stalled = laptop.joined("nas", open(1, ":9"))
	sending = new(sync.WaitGroup)
	sending.Go(func() {
		chunk := make([]byte, 64<<10)
		for {
			if _, err := stalled.Write(chunk); err != nil {
				return
			}
		}
	})
	return w, laptop, stalled, sending
}

// A script that tries all night makes a few lines of the log, and each try is in one of them.
func TestRefusalsAreSummedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		laptop := w.client("laptop")
		const tries = 8 * 60 * 2
		for range tries {
			s := laptop.connect("nas", open(1, ":22"), "")
			w.reply(s)
			s.Reset(wire.CodeLost)
			time.Sleep(30 * time.Second)
		}
		laptop.stop()
		time.Sleep(time.Second)
		w.wantLine("connection refused", map[string]any{"code": 503.0})
		lines := w.log.Lines(t, "connections refused again")
		if len(lines) > 15 {
			t.Errorf("the log has %d lines more", len(lines))
		}
		told := 1.0
		for _, line := range lines {
			told += line["times"].(float64)
		}
		if told != tries {
			t.Errorf("the log tells of %v refusals, want %d", told, tries)
		}
	})
}

// A client that asks for ever different things fills neither memory nor log.
func TestManyKindsOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		laptop := w.client("laptop")
		for i := range 300 {
			s := laptop.connect(fmt.Sprintf("host-%d", i), open(1, ":22"), "")
			w.reply(s)
			s.Reset(wire.CodeLost)
		}
		if n := len(w.log.Lines(t, "connection refused")); n > 70 {
			t.Errorf("the log has %d lines", n)
		}
	})
}

func TestUnknownKeyIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, inTwoWays...)
		key := linktest.Key(t)
		_, err := w.relay.Admit(key.Public())
		if err == nil || !strings.Contains(err.Error(), key.Public().String()) || !strings.Contains(err.Error(), "[[peers]]") {
			t.Errorf("an unknown key is refused with %q", err)
		}
		if id, err := w.relay.Admit(w.keys["nas"].Public()); id != "nas" || err != nil {
			t.Errorf("Admit says %q, %v", id, err)
		}
	})
}

// The relay tells two nodes with one key from one node that is restarted now and then.
func TestTwoNodesWithOneKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "nas")
		rivals := func() string { return fmt.Sprint(w.relay.Snapshot().Peers[0].Rivals) }
		first := w.server("nas", echo)
		for range 2 { // restarts, without a word
			w.network.Kill(host("nas"), first.stop)
			first = w.server("nas", echo)
		}
		time.Sleep(time.Second)
		if got := rivals(); got != "[]" {
			t.Errorf("after two restarts there are rivals: %s", got)
		}
		time.Sleep(time.Hour)

		second := w.node("nas", "10.0.3.3", echo)
		second.dial()
		want := fmt.Sprintf("[%s 10.0.3.3]", host("nas"))
		for range 12 {
			time.Sleep(10 * time.Minute)
			if got := rivals(); got != want {
				t.Errorf("the rivals are %s, want %s", got, want)
			}
		}
		w.wantLine("several nodes hold this peer's key. "+
			"Each needs one of its own, made with `ptthqd keygen`", map[string]any{"peer": "nas"})

		second.stop()
		time.Sleep(30 * time.Minute)
		if got := rivals(); got != "[]" {
			t.Errorf("half an hour after the second has gone there are rivals: %s", got)
		}
	})
}

func TestSnapshotNamesEveryPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, relay.Limits{}, "laptop may nas", "nas", "db")
		w.client("laptop")
		var got []string
		for _, p := range w.relay.Snapshot().Peers {
			state := "away"
			if p.Link != nil {
				state = "here"
			}
			got = append(got, fmt.Sprintf("%s %s %s %s", p.ID, p.Role, state, p.Source))
		}
		want := []string{"laptop client here relay.toml:10", "nas server away relay.toml:20", "db server away relay.toml:30"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}
