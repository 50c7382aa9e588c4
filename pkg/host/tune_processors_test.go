package host_test

import (
	"log/slog"
	"runtime"
	"testing"
	"time"

	"ptthqd/pkg/host"
)

func TestProcessors(t *testing.T) {
	const most, in = 8, 200 * time.Millisecond
	p := host.NewProcessors(most)
	// busy looks for a while at a process that uses so many processors, or all that it has if these
	// are fewer.
	busy := func(processors float64, while time.Duration) {
		for range while / in {
			p.Use(time.Duration(min(processors, float64(p.Now()))*float64(in)), in)
		}
	}
	for _, step := range []struct {
		what       string
		processors float64
		while      time.Duration
		want       int
	}{
		{"begins with all, and keeps them at first", 0.1, time.Second, most},
		{"needs one", 0.1, 2 * time.Second, 1},
		{"one is enough", 0.85, time.Minute, 1},
		{"keeps one busy", 1, in, 2},
		{"keeps two busy", 5, in, 4},
		{"needs more than four", 5, in, 8},
		{"there are no more", 20, time.Minute, most},
		{"a pause is no reason to let go", 0.2, time.Second, most},
		{"work again", 7, in, most},
		{"a pause is none again", 0.2, time.Second, most},
		{"less work", 1.4, 3 * time.Second, 3},
		{"what costs less on one does not go back and forth", 0.8, time.Second, 3},
		{"two are enough", 0.8, 2 * time.Second, 2},
		{"and one is not", 0.8, time.Minute, 2},
		{"nothing to do", 0, 3 * time.Second, 1},
	} {
		busy(step.processors, step.while)
		if p.Now() != step.want {
			t.Errorf("%s: it has %d, want %d", step.what, p.Now(), step.want)
		}
	}
}

// GOMAXPROCS in the environment stays as it is.
func TestProcessorsAsSet(t *testing.T) {
	t.Setenv("GOMAXPROCS", "3")
	before := runtime.GOMAXPROCS(0)
	host.AdaptProcessors(t.Context(), slog.New(slog.DiscardHandler)) // returns at once
	if now := runtime.GOMAXPROCS(0); now != before {
		t.Errorf("%d processors, %d before", now, before)
	}
}
