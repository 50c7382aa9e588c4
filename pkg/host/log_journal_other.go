//go:build !linux

package host

import (
	"io"
	"log/slog"
)

func toJournal() bool { return false }

func newJournalSink(io.Writer) lineSink { panic("internal error: no journal") }

func newJournalHandler(func(line) error, slog.Leveler, map[string]string) slog.Handler {
	panic("internal error: no journal")
}
