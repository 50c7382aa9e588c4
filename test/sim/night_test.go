package sim

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/relay"
	"ptthqd/test/testutil"
)

// said returns the lines of a node's log that its administrator sees: those above debug.
func (w *world) said(node string) (lines []string) {
	w.t.Helper()
	for line := range strings.Lines(w.books[node].String()) {
		if !strings.Contains(line, `"level":"DEBUG"`) {
			lines = append(lines, line)
		}
	}
	return lines
}

// TestNight has something fail for a whole night, while programs try again and again. Each node logs
// a handful of lines about it.
func TestNight(t *testing.T) {
	const most = 20 // lines
	night := 8 * time.Hour
	if testutil.Raced { // make test has the whole night without the race detector
		night = time.Hour
	}
	theRelay := "relay " + relayHost
	for _, c := range []struct {
		name  string
		fails func(w *world, r *relayNode, s *serverNode) (mend func())
		nodes []string // the nodes that stay
	}{
		{"the relay is away", func(w *world, r *relayNode, _ *serverNode) func() {
			r.stop()
			return func() { w.relay(relayHost, nas) }
		}, []string{laptop, nas}},
		{"the relay is unreachable", func(w *world, _ *relayNode, _ *serverNode) func() {
			w.network.Cut(relayHost)
			return func() { w.network.Heal(relayHost) }
		}, []string{laptop, nas, theRelay}},
		{"the server is away", func(w *world, _ *relayNode, s *serverNode) func() {
			s.stop()
			return func() { w.server(w.serverConfig(w.relays(relayHost), "7 laptop")) }
		}, []string{laptop, theRelay}},
		{"the target is down", func(w *world, _ *relayNode, _ *serverNode) func() {
			l := w.targets["127.0.0.1:7"]
			delete(w.targets, "127.0.0.1:7")
			return func() { w.targets["127.0.0.1:7"] = l }
		}, []string{laptop, nas, theRelay}},
		{"the right is withdrawn", func(w *world, r *relayNode, _ *serverNode) func() {
			r.Apply(w.policy(), relay.Limits{})
			return func() { r.Apply(w.policy(nas), relay.Limits{}) }
		}, []string{laptop, nas, theRelay}},
	} {
		for _, every := range []time.Duration{40 * time.Second, 65 * time.Second, 20 * time.Minute} { // between two tries of P1
			t.Run(fmt.Sprintf("%s, every %v", c.name, every), func(t *testing.T) {
				t.Parallel()
				inBubble(t, func(t *testing.T, w *world) {
					r, s, _ := w.chain()
					running := w.connect("echo")
					exchange(t, running, "before")
					before := make(map[string]int)
					for _, node := range c.nodes {
						before[node] = len(w.said(node))
					}
					mend := c.fails(w, r, s)
					for end := time.Now().Add(night); time.Now().Before(end); time.Sleep(every) {
						p1 := w.connect("echo")
						_, _ = io.Copy(io.Discard, p1)
						_ = p1.Close()
					}
					mend()
					time.Sleep(2 * time.Minute)
					for _, node := range c.nodes {
						lines := w.said(node)[before[node]:]
						t.Logf("%s: %d lines", node, len(lines))
						if len(lines) > most {
							t.Errorf("%s has said %d lines, want %d at most:\n%s", node, len(lines), most, strings.Join(lines, ""))
						}
					}
					exchange(t, w.connect("echo"), "after")
				})
			})
		}
	}
}
