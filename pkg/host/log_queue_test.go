package host

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A gatedWriter blocks while its gate is shut, as a pipe does that nobody reads.
type gatedWriter struct {
	gate chan struct{} // of capacity 1; empty while it is open
	text bytes.Buffer
	fail error
	part int // of what a failing write takes
}

func newGatedWriter() *gatedWriter { return &gatedWriter{gate: make(chan struct{}, 1)} }

func (w *gatedWriter) shut() { w.gate <- struct{}{} }
func (w *gatedWriter) open() { <-w.gate }

func (w *gatedWriter) Write(p []byte) (int, error) {
	w.shut()
	defer w.open()
	if w.fail != nil {
		n := min(w.part, len(p))
		w.text.Write(p[:n])
		return n, w.fail
	}
	return w.text.Write(p)
}

// Who logs doesn't wait for who reads: what finds no room is dropped, and a line in its place says
// how many are missing.
func TestLogThatNobodyReads(t *testing.T) {
	for _, format := range []string{LogText, LogJSON} {
		t.Run(format, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { logThatNobodyReads(t, format) })
		})
	}
}

func logThatNobodyReads(t *testing.T, format string) {
	w := newGatedWriter()
	log, err := OpenLog(format, w, slog.LevelInfo, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.shut()
	const all = 100_000
	for i := range all {
		log.Info("a line", "i", i, "padding", strings.Repeat("x", 100))
	}
	time.Sleep(logStuck + time.Second)
	if trouble := log.Trouble(); trouble != "nobody has read the log for 6s" {
		t.Errorf("trouble: %q", trouble)
	}
	dropped := int(log.Dropped())
	if held := all - dropped; dropped == 0 || held*100 > 2*QueueBytes+2*chunkBytes {
		t.Fatalf("%d lines are held, %d dropped", held, dropped)
	}
	w.open()
	synctest.Wait()
	log.Info("the end")
	log.queue.close(time.Minute)
	if trouble := log.Trouble(); trouble != "" {
		t.Errorf("trouble: %q", trouble)
	}

	text := w.text.String()
	got := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, l := range got[:len(got)-2] {
		if want := fmt.Sprintf("i=%d ", i); format == LogText && !strings.Contains(l, want) {
			t.Fatalf("line %d is %q", i, l)
		}
		if format == LogJSON && !json.Valid([]byte(l)) {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if len(got)-2 != all-dropped {
		t.Errorf("%d lines have arrived and %d were dropped, of %d", len(got)-2, dropped, all)
	}
	told, end := got[len(got)-2], got[len(got)-1]
	if !strings.Contains(told, LinesMissing) ||
		!strings.Contains(strings.ReplaceAll(told, `"lines":`, "lines="),
			fmt.Sprintf("lines=%d", dropped)) {
		t.Errorf("%d lines are missing, and it says %q", dropped, told)
	}
	if !strings.Contains(end, "the end") {
		t.Errorf("the last line is %q", end)
	}
}

// Lines that can't be written are missing too, and a line that was torn forges none.
func TestLogOnAFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGatedWriter()
		w.fail, w.part = errors.New("no space left on device"), 20
		log, err := OpenLog(LogText, w, slog.LevelInfo, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range []string{"one", "two"} {
			log.Info(l)
			synctest.Wait()
		}
		if trouble := log.Trouble(); trouble != "the log can't be written: no space left on device" {
			t.Errorf("trouble: %q", trouble)
		}
		w.shut()
		w.fail = nil
		w.open()
		log.Info("three")
		log.queue.close(time.Minute)
		got := strings.Split(w.text.String(), "\n")
		last := got[len(got)-3:]
		if !strings.Contains(last[0], "WARN  "+LinesMissing+" lines=2 ") ||
			!strings.Contains(last[0], "no space left") ||
			!strings.HasSuffix(last[1], "INFO  three") {
			t.Errorf("the log is\n%s", w.text.String())
		}
		if trouble := log.Trouble(); trouble != "" || log.Dropped() != 2 {
			t.Errorf("trouble: %q, %d dropped", trouble, log.Dropped())
		}
	})
}

// The end of the process waits for the last lines, but not for ever.
func TestLogsLastLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newGatedWriter()
		log, err := OpenLog(LogText, w, slog.LevelInfo, nil)
		if err != nil {
			t.Fatal(err)
		}
		w.shut()
		log.Info("the last line")
		time.AfterFunc(lastLines/2, w.open)
		log.queue.close(lastLines)
		if !strings.Contains(w.text.String(), "the last line") {
			t.Errorf("the log is %q", w.text.String())
		}

		if log, err = OpenLog(LogText, w, slog.LevelInfo, nil); err != nil {
			t.Fatal(err)
		}
		w.shut()
		log.Info("a line too many")
		begun := time.Now()
		log.queue.close(lastLines)
		if took := time.Since(begun); took != lastLines {
			t.Errorf("it has waited for %v", took)
		}
		w.open()
	})
}
