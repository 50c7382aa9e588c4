package main

import (
	"io"
	"strings"

	"ptthqd/pkg/wire"
)

// A cleanWriter prints what may hold texts of others: lines stay lines, and all else that is no text goes. See [wire.Clean].
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
