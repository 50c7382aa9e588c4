package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// The formats of the log.
const (
	LogAuto = "auto" // the journal with native fields where stderr is connected to it, else text
	LogText = "text"
	LogJSON = "json"
)

// newLogHandler makes the handler for a format, and tells whether it writes to the journal. Levels are read from level at each record, so
// that they change while the daemon runs.
func newLogHandler(format string, stderr io.Writer, level slog.Leveler) (h slog.Handler, journal bool, err error) {
	switch format {
	case LogAuto, "":
		if toJournal() {
			return &lines{level: level, emit: emitToJournal(stderr)}, true, nil
		}
		return newTextHandler(stderr, level), false, nil
	case LogText:
		return newTextHandler(stderr, level), false, nil
	case LogJSON:
		return slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level, ReplaceAttr: plainJSON}), false, nil
	}
	return nil, false, fmt.Errorf("there is no log format %q: use %s, %s or %s", format, LogAuto, LogText, LogJSON)
}

// plainJSON writes durations as text, like the other formats, and errors as what they say.
func plainJSON(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case time.Duration:
		return slog.String(a.Key, v.String())
	case error:
		return slog.String(a.Key, v.Error())
	}
	return a
}

func newTextHandler(w io.Writer, level slog.Leveler) slog.Handler {
	var mu sync.Mutex
	return &lines{level: level, emit: func(r slog.Record, fields []field) error {
		var line bytes.Buffer
		line.WriteString(r.Time.Format("2006-01-02 15:04:05.000 "))
		fmt.Fprintf(&line, "%-5s ", r.Level)
		appendText(&line, r.Message, fields)
		line.WriteByte('\n')
		mu.Lock()
		defer mu.Unlock()
		_, err := w.Write(line.Bytes())
		return err
	}}
}

// A field is one attribute, with the names of its groups in its key.
type field struct{ key, value string }

// lines is a slog.Handler that flattens a record's attributes to text and has them written.
type lines struct {
	level  slog.Leveler
	emit   func(slog.Record, []field) error
	prefix string // the open groups, each with its dot
	fields []field
}

func (h *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

func (h *lines) Handle(_ context.Context, r slog.Record) error {
	fields := append(make([]field, 0, len(h.fields)+r.NumAttrs()), h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		fields = flatten(fields, h.prefix, a)
		return true
	})
	return h.emit(r, fields)
}

func (h *lines) WithAttrs(attrs []slog.Attr) slog.Handler {
	clone := *h
	clone.fields = append(make([]field, 0, len(h.fields)+len(attrs)), h.fields...)
	for _, a := range attrs {
		clone.fields = flatten(clone.fields, h.prefix, a)
	}
	return &clone
}

func (h *lines) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	clone := *h
	clone.prefix += name + "."
	return &clone
}

func flatten(fields []field, prefix string, a slog.Attr) []field {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			fields = flatten(fields, prefix, inner)
		}
		return fields
	}
	if a.Key == "" {
		return fields
	}
	text := v.String()
	if v.Kind() == slog.KindTime {
		text = v.Time().Format(time.RFC3339Nano)
	}
	return append(fields, field{prefix + a.Key, text})
}

// appendText writes a message and its fields for people: link up peer=nas remote=203.0.113.7:4711.
func appendText(b *bytes.Buffer, message string, fields []field) {
	b.WriteString(oneLine(message))
	for _, f := range fields {
		b.WriteByte(' ')
		b.WriteString(f.key)
		b.WriteByte('=')
		if needsQuotes(f.value) {
			b.WriteString(strconv.Quote(f.value))
		} else {
			b.WriteString(f.value)
		}
	}
}

func needsQuotes(s string) bool {
	return s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r)
	})
}

// oneLine keeps what a peer or a file may have put into a message from forging lines.
func oneLine(s string) string {
	if !strings.ContainsFunc(s, unicode.IsControl) {
		return s
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}
