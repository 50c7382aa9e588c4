package quiet_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/quiet"
)

func TestWarnSumsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		var r quiet.Repeats
		for range 3 {
			r.Warn(logger, "down", "said", slog.String("what", "down"))
		}
		r.Warn(logger, "slow", "said", slog.String("what", "slow"))
		time.Sleep(90 * time.Second) // the windows of both have ended
		r.Warn(logger, "down", "said", slog.String("what", "down"))
		r.Close()
		r.Warn(logger, "down", "said", slog.String("what", "closed"))
		var got []string
		for line := range strings.Lines(log.String()) {
			_, said, _ := strings.Cut(strings.TrimSpace(line), "what=")
			got = append(got, said)
		}
		want := "[down slow down more=2 in=1m0s down more=1 in=30s closed]"
		if fmt.Sprint(got) != want {
			t.Errorf("logged %v, want %v", got, want)
		}
	})
}

// Beyond Max, new keys count as the one that Merge makes of them.
func TestMerge(t *testing.T) {
	type kind struct{ status, target int }
	r := quiet.Repeats{Max: 10, Merge: func(key any) any { return kind{status: key.(kind).status} }}
	defer r.Close()
	first := 0
	for target := range 100 {
		for status := range 3 {
			if r.Event(kind{status, 1 + target}, func(int, time.Duration) {}) {
				first++
			}
		}
	}
	if first != 13 {
		t.Errorf("%d first events, want 10 and one for each status", first)
	}
}
