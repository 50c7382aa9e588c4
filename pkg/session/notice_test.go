package session_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
)

// TestManyAtOnceAreOneLine has many sessions lose their link and come back. The log has one line
// for the loss and one for the return, each with the count, and at level debug a line of each
// session. A line about a single session has its ID.
func TestManyAtOnceAreOneLine(t *testing.T) {
	for _, sessions := range []int{1, 100} {
		t.Run(fmt.Sprint(sessions), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at, out [2]bytes.Buffer // client's, server's
				loggers := make([]*slog.Logger, 2)
				for i := range loggers {
					loggers[i] = slog.New(slog.NewMultiHandler(
						slog.NewTextHandler(&at[i], &slog.HandlerOptions{Level: slog.LevelInfo}),
						slog.NewTextHandler(&out[i], &slog.HandlerOptions{Level: slog.LevelDebug})))
				}
				n := startLogged(t, session.Limits{}, loggers[0], loggers[1])
				n.replaceLinks(&memLink{name: "relay", latency: time.Millisecond})
				for range sessions {
					n.established()
				}
				n.cut()
				time.Sleep(5 * time.Second)
				synctest.Wait()
				for i, who := range []string{"client", "server"} {
					for _, what := range []string{"detached", "resumed"} {
						each := 0
						for _, line := range lines(out[i].String(), "session "+what) {
							if strings.Contains(line, "level=DEBUG") {
								each++
							}
						}
						// A server may hear of the new stream first.
						if each != sessions && (i == 0 || what == "resumed") {
							t.Errorf("%s: %d sessions %s at level debug", who, each, what)
						}
						want := fmt.Sprintf(`"sessions %s" count=%d`, what, each)
						if each == 1 {
							want = fmt.Sprintf(`"session %s" connection=`, what)
						}
						if said := lines(at[i].String(), what); each > 0 && (len(said) != 1 || !strings.Contains(said[0], want)) {
							t.Errorf("%s: want one line with %s, got %q", who, want, said)
						}
					}
				}
			})
		})
	}
}

func lines(text, with string) (found []string) {
	for line := range strings.Lines(text) {
		if strings.Contains(line, with) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
