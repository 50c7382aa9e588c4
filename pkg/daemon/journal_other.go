//go:build !linux

package daemon

import (
	"io"
	"log/slog"
)

func toJournal() bool { return false }

func emitToJournal(io.Writer) func(slog.Record, []field) error { panic("internal error: no journal") }
