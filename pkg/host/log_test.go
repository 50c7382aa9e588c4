package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"testing"
	"time"
)

func TestTextLog(t *testing.T) {
	var out bytes.Buffer
	level := new(slog.LevelVar)
	log, err := OpenLog(LogText, &out, level, nil)
	if err != nil || log.journal {
		t.Fatal(log, err)
	}
	log.Debug("not yet")
	level.Set(slog.LevelDebug)
	log.Debug("now")
	derived := log.With("peer", "nas", "a",
		slog.GroupValue(slog.Int("b", 1), slog.String("c", "x y"))).WithGroup("g").WithGroup("")
	derived.Warn("link down", "reason", errors.New("no answer"), "took", 1500*time.Millisecond,
		"empty", "",
		"when", time.Date(2026, 3, 8, 1, 2, 3, 0, time.UTC))
	log.LogAttrs(t.Context(), slog.LevelInfo, "attributes",
		slog.Group("", slog.Bool("inline", true)), slog.Attr{})
	// What comes from outside forges no line and colours no terminal.
	log.Error("first\nERROR second", "source", "a\nb\x1b[2J", "bad", "\xff", "equals", "a=b")
	log.queue.close(time.Minute)
	want := regexp.MustCompile(`^[-0-9]{10} [:0-9]{8}\.[0-9]{3} DEBUG now
.{24}WARN  link down peer=nas a\.b=1 a\.c="x y" g\.reason="no answer" g\.took=1\.5s g\.empty="" g\.when=2026-03-08T01:02:03Z
.{24}INFO  attributes inline=true
.{24}ERROR first ERROR second source="a\\nb\\x1b\[2J" bad="\\xff" equals="a=b"
$`)
	if !want.Match(out.Bytes()) {
		t.Errorf("the log is\n%s", out.String())
	}
}

func TestJSONLog(t *testing.T) {
	var out bytes.Buffer
	log, err := OpenLog(LogJSON, &out, slog.LevelInfo, nil)
	if err != nil {
		t.Fatal(err)
	}
	log.Info("link up", "peer", "nas", "took", time.Second, "reason", errors.New("why"))
	log.queue.close(time.Minute)
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if line["msg"] != "link up" || line["took"] != "1s" || line["reason"] != "why" {
		t.Errorf("the line is %v", line)
	}
	if _, err := OpenLog("xml", &out, slog.LevelInfo, nil); err == nil {
		t.Error("xml is a log format")
	}
}
