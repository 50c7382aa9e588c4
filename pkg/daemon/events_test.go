package daemon

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// The MESSAGE_IDs are for ever: docs/journal.md has them all, and each message is still said somewhere.
func TestMessageIDs(t *testing.T) {
	text, err := os.ReadFile("../../docs/journal.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([0-9a-f]{32})` \\| ([^|]+) \\|").FindAllStringSubmatch(string(text), -1)
	documented := make(map[string]string)
	for _, row := range rows {
		documented[strings.TrimSpace(row[2])] = row[1]
	}
	for message, id := range messageIDs {
		if documented[message] != id {
			t.Errorf("docs/journal.md has %q for %q, the code %q", documented[message], message, id)
		}
	}
	if len(documented) != len(messageIDs) {
		t.Errorf("docs/journal.md has %d messages, the code %d", len(documented), len(messageIDs))
	}
	var source strings.Builder
	for _, dir := range []string{"events.go", "../host/log_queue.go", "../link/dial.go", "../link/listen.go", "../account/account.go", "../relay/refusal.go", "../relay/change.go"} {
		code, err := os.ReadFile(dir)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(code)
	}
	for message := range messageIDs {
		if strings.Count(source.String(), `"`+message+`"`) < 1 {
			t.Errorf("nobody says %q any more", message)
		}
	}
}
