package sim

import (
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/server"
)

const twinHost = "10.0.1.9"

// twin starts another process with the server's key, on another host.
func (w *world) twin() *serverNode {
	w.t.Helper()
	s, err := server.New(server.Config{
		Settings: w.serverConfig(w.relays(relayHost), "7 laptop"), Identity: w.key(nasHost), Logger: w.logger("twin"),
		Dial: w.dial, AdjustDialer: w.on(twinHost),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return &serverNode{s, w.start(s.Run)}
}

// A second process with the server's key comes for three seconds: the connections of the first live on, and both say
// what is wrong.
func TestTwinServerEndsNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		relay, s, _ := w.chain()
		idle := w.connect("echo")
		exchange(t, idle, "hello")
		time.Sleep(time.Minute)
		tr := startTransfer(w.connect("echo"), 10*time.Second)
		time.Sleep(2 * time.Second)

		twin := w.twin()
		time.Sleep(3 * time.Second)
		exchange(t, w.connect("echo"), "new, meanwhile")
		twin.stop()

		if pause := tr.finish(t); pause > 500*time.Millisecond {
			t.Errorf("a pause of %v", pause)
		}
		exchange(t, idle, "again")
		if link := s.Snapshot().Relays[0]; !link.Up || time.Since(link.Contested) > time.Minute {
			t.Errorf("the server's link: up %v, contested at %v", link.Up, link.Contested)
		}
		for _, node := range []string{nas, "twin"} {
			text := w.books[node].String()
			if strings.Count(text, `"level":"ERROR","msg":"another node holds this node's key`) != 1 {
				t.Errorf("%s does not say once that another node holds its key", node)
			}
		}
		if rivals := relay.Snapshot().Peers[1].Rivals; len(rivals) != 2 {
			t.Errorf("the relay names %v", rivals)
		}
	})
}

// The relay restarts while two processes contest the server's key, and the one that has no sessions is back first. It
// ends none of the other's, which go on when it has gone.
func TestTwinServerThatIsBackFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		relay, _, _ := w.chain()
		conn := w.connect("echo")
		exchange(t, conn, "hello")
		twin := w.twin()
		time.Sleep(time.Minute)

		w.network.Cut(nasHost)
		relay.stop()
		w.relay(relayHost, nas)
		time.Sleep(6 * time.Second)
		w.network.Heal(nasHost)
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if up := twin.Snapshot().Relays[0].Up; !up {
			t.Error("the twin has no link: the test tests nothing")
		}
		twin.stop()
		gone := time.Now()
		buf := make([]byte, 1)
		if _, err := conn.Read(buf); err != nil || buf[0] != 'x' {
			t.Fatalf("P1 reads %q, %v", buf, err)
		}
		if took := time.Since(gone); took > 8*time.Second {
			t.Errorf("the server was back %v after the other had gone", took)
		}
		exchange(t, conn, "again")
	})
}
