package daemon

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// MESSAGE_IDs never change. docs/journal.md has all of them, and the program still logs each
// message.
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
	files, err := filepath.Glob("../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || name == "../daemon/events.go" {
			continue
		}
		code, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(code)
	}
	constants, err := os.ReadFile("events.go")
	if err != nil {
		t.Fatal(err)
	}
	source.WriteString(regexp.MustCompile(`(?s)const \(.*?\n\)`).FindString(string(constants)))
	for message := range messageIDs {
		if !strings.Contains(source.String(), `"`+message+`"`) {
			t.Errorf("nobody says %q any more", message)
		}
	}
}
