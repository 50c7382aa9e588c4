package sim

import (
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link/linktest"
)

// The relay's key is changed without a flag day: its peers list the new one beside the old one, each at its own time, then the
// relay takes it, then the old one goes. A connection lasts over all of it, and moves only when the relay restarts.
func TestRelayKeyIsChanged(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		was, next := w.key(relayHost), linktest.Key(t)
		r, s, c := w.chain()
		conn := w.connect("echo")
		keys := func(keys ...ident.PrivateKey) []config.Relay {
			relays := w.relays(relayHost)
			relays[0].Keys = nil
			for _, key := range keys {
				relays[0].Keys = append(relays[0].Keys, key.Public())
			}
			return relays
		}
		apply := func(relays []config.Relay) {
			t.Helper()
			if err := s.Apply(t.Context(), w.serverConfig(relays, "7 laptop")); err != nil {
				t.Fatal(err)
			}
			settle()
			exchange(t, conn, "the server's")
			if err := c.Apply(t.Context(), w.clientConfig(relays, "echo nas 7")); err != nil {
				t.Fatal(err)
			}
			settle()
			exchange(t, conn, "the client's")
		}
		stays := func(what string, resumes int) {
			t.Helper()
			if info := c.Snapshot().Sessions[0]; info.Resumes != resumes {
				t.Errorf("%s: resumed %d times, want %d", what, info.Resumes, resumes)
			}
		}
		apply(keys(was, next))
		stays("both keys are listed", 0)

		r.stop()
		w.keys[relayHost] = next
		w.relay(relayHost, nas)
		time.Sleep(5 * time.Second)
		exchange(t, conn, "the new key")
		stays("the relay has the new key", 1)
		if got := c.Snapshot().Relays[0].Key; got != next.Public() {
			t.Errorf("the client's link has the key %v, want %v", got, next.Public())
		}
		apply(keys(next))
		stays("the old key is gone", 1)

		// A key that is taken out while the relay has it ends the link.
		if err := c.Apply(t.Context(), w.clientConfig(keys(was), "echo nas 7")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if now := c.Snapshot().Relays[0]; now.Up || !strings.Contains(now.LastError, next.Public().String()) {
			t.Errorf("without the relay's key: %+v", now)
		}
	})
}
