package daemon

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// toJournal tells whether stderr is connected to the journal: then its native protocol takes the fields too.
func toJournal() bool {
	connected, err := journal.StderrIsJournalStream()
	return err == nil && connected && journal.Enabled()
}

// emitToJournal writes records with their fields; where the journal can't take one, to w with its priority in front, as
// systemd reads it from there.
func emitToJournal(w io.Writer) func(slog.Record, []field) error {
	return func(r slog.Record, fields []field) error {
		var text bytes.Buffer
		appendText(&text, r.Message, fields)
		vars := map[string]string{"SYSLOG_IDENTIFIER": "ptthqd"}
		for _, f := range fields {
			vars["PTTHQ_"+fieldName(f.key)] = f.value
		}
		if id := messageIDs[r.Message]; id != "" {
			vars["MESSAGE_ID"] = id
		}
		if err := journal.Send(text.String(), priority(r.Level), vars); err == nil {
			return nil
		}
		_, err := fmt.Fprintf(w, "<%d>%s\n", priority(r.Level), text.Bytes())
		return err
	}
}

func priority(l slog.Level) journal.Priority {
	switch {
	case l >= slog.LevelError:
		return journal.PriErr
	case l >= slog.LevelWarn:
		return journal.PriWarning
	case l >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}

// fieldName makes what the journal takes as a name: A-Z, 0-9 and the underscore.
func fieldName(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
}
