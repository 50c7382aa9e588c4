package quiet_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/quiet"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		p := &quiet.Pace{Every: time.Second, AtOnce: 3}
		say := func(name string) {
			level, leftOut := p.Level(name, slog.LevelInfo)
			logger.LogAttrs(context.Background(), level, "said", slog.String("by", name), quiet.LeftOut(leftOut))
		}
		for range 10 {
			say("mallory")
		}
		say("alice")
		time.Sleep(time.Second)
		say("mallory")
		say("mallory")
		time.Sleep(time.Hour)
		say("mallory")
		say("mallory")
		var got []string
		for line := range strings.Lines(log.String()) {
			_, said, _ := strings.Cut(strings.TrimSpace(line), "by=")
			got = append(got, said)
		}
		want := "[mallory mallory mallory alice mallory left_out=7 mallory left_out=1 mallory]"
		if fmt.Sprint(got) != want {
			t.Errorf("logged %v, want %v", got, want)
		}
	})
}

// Made-up names take a bounded amount of memory.
func TestManyCausers(t *testing.T) {
	var p quiet.Pace
	through := 0
	for i := range 100_000 {
		if level, _ := p.Level(fmt.Sprint(i), slog.LevelInfo); level == slog.LevelInfo {
			through++
		}
	}
	if through != 100_000 {
		t.Errorf("%d first lines", through)
	}
}
