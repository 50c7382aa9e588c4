//go:build !linux

package daemon

import (
	"io"
	"log/slog"
)

func toJournal() bool { return false }

func newJournalSink(io.Writer) lineSink { panic("internal error: no journal") }

func newJournalHandler(func(line) error, slog.Leveler) slog.Handler {
	panic("internal error: no journal")
}
