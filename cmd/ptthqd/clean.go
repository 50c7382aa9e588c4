package main

import (
	"io"
	"strings"

	"ptthqd/pkg/wire"
)

// cleanWriter cleans what it writes, because it may hold texts of other nodes. Lines stay lines.
// See [wire.Clean].
type cleanWriter struct{ w io.Writer }

func (c cleanWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(c.w, cleanLines(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// cleanLines cleans each line of a text.
func cleanLines(text string) string {
	if !strings.Contains(text, "\n") {
		return wire.Clean(text)
	}
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = wire.Clean(l)
	}
	return strings.Join(lines, "\n")
}
