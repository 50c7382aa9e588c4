package testutil

import (
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A Log keeps the lines of a logger. The zero value is empty. It may be read while it is written.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write adds to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// String returns the whole log.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Count returns how often the log has a text.
func (l *Log) Count(text string) int { return strings.Count(l.String(), text) }

// Lines decodes the lines of a log in JSON: those with one of the messages, or all where no message
// is given.
func (l *Log) Lines(t testing.TB, messages ...string) (found []map[string]any) {
	t.Helper()
	for line := range strings.Lines(l.String()) {
		var entry map[string]any
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		message, _ := entry[slog.MessageKey].(string)
		if len(messages) == 0 || slices.Contains(messages, message) {
			found = append(found, entry)
		}
	}
	return found
}
