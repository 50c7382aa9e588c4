package sim

import (
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/relay"
	"ptthqd/test/testutil"
)

// A client and a server get other names, first at the relay, then at each other, and nothing ends that goes on under the old
// ones: not by the reloads, not when the relay restarts. What is left under an old name ends when that is taken out.
func TestPeersAreRenamed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		r, s, c := w.chain()
		old := w.connect("echo")
		exchange(t, old, "before")
		apply := func(client, server []string, rule string) {
			t.Helper()
			w.names = map[string][]string{laptop: client, nas: server}
			if applied := r.Apply(w.policy(rule), relay.Limits{}); applied != (relay.Applied{}) {
				t.Errorf("the reload ends %+v", applied)
			}
			settle()
			exchange(t, old, "after a reload")
		}
		apply([]string{laptop, "notebook"}, []string{nas, "storage"}, nas)
		apply([]string{"notebook", laptop}, []string{"storage", nas}, nas)
		exchange(t, w.connect("echo"), "by the old names")

		c.apply(t, w.clientConfig(w.relays(relayHost), "echo storage 7", "refused storage 8"))
		s.apply(t, w.serverConfig(w.relays(relayHost), "7 notebook laptop"))
		young := w.connect("echo")
		exchange(t, young, "by the new names")
		// The nas, which has not heard of its new name, refuses: that is its word, not the relay's.
		wantReset(t, w.connect("refused"))
		if line := w.one(laptop, "connection refused"); line["by"] != nas || line["code"] != 403.0 {
			t.Errorf("the client logs by=%v code=%v", line["by"], line["code"])
		}
		names := make(map[string]int)
		for _, info := range s.Snapshot().Sessions {
			names[info.Client]++
		}
		if names[laptop] != 2 || names["notebook"] != 1 {
			t.Errorf("the server's sessions are of %v", names)
		}
		for _, info := range c.Snapshot().Sessions {
			if info.Resumes != 0 {
				t.Errorf("resumed: %+v", info)
			}
		}

		w.restartsAndForgets(r, s, old, young)
	})
}

// restartsAndForgets restarts the relay of a test in which its peers are renamed, and takes out the old names.
func (w *world) restartsAndForgets(r *relayNode, s *serverNode, old, young *testutil.Conn) {
	t := w.t
	r.stop()
	r = w.relay(relayHost, "storage")
	time.Sleep(15 * time.Second)
	exchange(t, old, "resumed")
	exchange(t, young, "resumed")
	for _, info := range s.Snapshot().Sessions {
		if info.Resumes != 1 {
			t.Errorf("not resumed: %+v", info)
		}
	}
	w.names = map[string][]string{laptop: {"notebook"}, nas: {"storage"}}
	applied := r.Apply(w.policy("storage"), relay.Limits{})
	if applied.Links != 0 || applied.Connections != 2 {
		t.Errorf("without the old names the reload ends %+v", applied)
	}
	wantReset(t, old)
	settle()
	exchange(t, young, "not disturbed")
	if left := s.Snapshot().Sessions; len(left) != 1 || left[0].Client != "notebook" {
		t.Errorf("the server keeps %+v", left)
	}
}

// A name that gives way to another without a time for both cuts what goes on under it.
func TestPeersAreRenamedAtOnce(t *testing.T) {
	for _, names := range []map[string][]string{{laptop: {"notebook"}}, {nas: {"storage"}}} {
		inBubble(t, func(t *testing.T, w *world) {
			r, _, _ := w.chain()
			conn := w.connect("echo")
			exchange(t, conn, "before")
			w.names = names
			r.Apply(w.policy("*"), relay.Limits{})
			wantReset(t, conn)
		})
	}
}

// A right that is withdrawn ends what goes on under each of the client's names, also if the relay has heard of one only.
func TestRightOfRenamedClientWithdrawn(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		r, s, _ := w.chain()
		conn := w.connect("echo")
		exchange(t, conn, "hello")
		r.stop()
		w.names = map[string][]string{laptop: {"notebook", laptop}, nas: {"storage", nas}}
		r = w.relay(relayHost, nas)
		time.Sleep(15 * time.Second)
		exchange(t, conn, "resumed")
		w.network.Cut(laptopHost)
		time.Sleep(10 * time.Second)
		r.Apply(w.policy(), relay.Limits{})
		time.Sleep(time.Second)
		synctest.Wait()
		if left := s.Snapshot().Sessions; len(left) != 0 {
			t.Errorf("the server keeps %+v", left)
		}
	})
}

// Each peer learns what the relay calls it, and one that calls itself otherwise is warned, once.
func TestPeersLearnTheirNames(t *testing.T) {
	const warning = "the relay calls this node otherwise than its own config does"
	inBubble(t, func(t *testing.T, w *world) {
		r, s, c := w.chain()
		names := func(client, server string, warnings int) {
			t.Helper()
			settle()
			if a, b := c.Snapshot().Relays[0].Called, s.Snapshot().Relays[0].Called; a != client || b != server {
				t.Errorf("they are called %s and %s, want %s and %s", a, b, client, server)
			}
			for _, node := range []string{laptop, nas} {
				if lines := w.books[node].Lines(t, warning); len(lines) != warnings {
					t.Errorf("%s warns %d times, want %d", node, len(lines), warnings)
				}
			}
		}
		names(laptop, nas, 0)
		w.names = map[string][]string{laptop: {"notebook", laptop}, nas: {"storage", nas}}
		r.Apply(w.policy(nas), relay.Limits{})
		names("notebook", "storage", 1)
		r.stop()
		w.relay(relayHost, nas)
		time.Sleep(15 * time.Second)
		names("notebook", "storage", 1)
	})
}

// A refusal is the server's also where that calls itself otherwise than it was asked for: no other relay is tried.
func TestRefusalOfRenamedServer(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.names = map[string][]string{nas: {"storage"}}
		both := w.relays(relayHost, relay2Host)
		w.relay(relayHost, "storage")
		w.relay(relay2Host, "storage")
		w.server(w.serverConfig(both, "7 laptop"))
		w.client(w.clientConfig(both, "refused storage 8"))
		settle()
		wantReset(t, w.connect("refused"))
		settle() // the server reads on for a while
		if n := len(w.books[nas].Lines(t, "connection refused")); n != 1 {
			t.Errorf("the server was asked %d times", n)
		}
	})
}
