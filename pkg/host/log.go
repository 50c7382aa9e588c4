package host

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

	"ptthqd/pkg/wire"
)

// The formats of the log.
const (
	LogAuto = "auto" // the journal with native fields if stderr is connected to it, else text
	LogText = "text"
	LogJSON = "json"
)

// Log is the log of this process. Logging never waits for a reader of the log, see logQueue.
type Log struct {
	*slog.Logger
	queue   *logQueue
	journal bool
}

// Journal reports whether the log goes to the journal.
func (l *Log) Journal() bool { return l.journal }

// Dropped returns how many lines are missing in the log.
func (l *Log) Dropped() uint64 { return l.queue.dropped.Load() }

// Trouble says why no lines are written at the moment; "" if they are.
func (l *Log) Trouble() string { return l.queue.trouble() }

// Close writes the lines that are left, for a second at most. Lines logged later are dropped. It
// may be called again.
func (l *Log) Close() { l.queue.close(lastLines) }

// OpenLog opens the log in a format. The level is read at each record, so it may change. ids are
// the MESSAGE_IDs in the journal, by message. The caller closes the Log.
func OpenLog(
	format string, stderr io.Writer, level slog.Leveler, ids map[string]string,
) (*Log, error) {
	var sink lineSink = &writerSink{w: stderr}
	handler := func(put func(line) error) slog.Handler { return newTextHandler(put, level) }
	journal := false
	switch format {
	case LogAuto, "":
		if toJournal() {
			journal = true
			sink = newJournalSink(stderr)
			handler = func(put func(line) error) slog.Handler {
				return newJournalHandler(put, level,
					ids)
			}
		}
	case LogText:
	case LogJSON:
		handler = func(put func(line) error) slog.Handler {
			return slog.NewJSONHandler(lineWriter(put),
				&slog.HandlerOptions{Level: level, ReplaceAttr: plainJSON})
		}
	default:
		return nil, fmt.Errorf("there is no log format %q: use %s, %s or %s", format, LogAuto,
			LogText, LogJSON)
	}
	queue := newLogQueue(sink, handler)
	return &Log{slog.New(handler(queue.put)), queue, journal}, nil
}

// lineWriter is an io.Writer that takes one line with each Write.
type lineWriter func(line) error

func (put lineWriter) Write(p []byte) (int, error) {
	text := newText()
	text.Write(p)
	return len(p), put(line{text: text, at: time.Now()})
}

// plainJSON writes durations and errors as text, like the other formats. JSON itself escapes
// nothing but control characters.
func plainJSON(_ []string, a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case time.Duration:
		return slog.String(a.Key, v.String())
	case error:
		return slog.String(a.Key, wire.Clean(v.Error()))
	case string:
		return slog.String(a.Key, wire.Clean(v))
	}
	return a
}

func newTextHandler(put func(line) error, level slog.Leveler) slog.Handler {
	return &lines{level: level, emit: func(r slog.Record, fields []field) error {
		text := newText()
		text.Write(r.Time.AppendFormat(text.AvailableBuffer(), "2006-01-02 15:04:05.000 "))
		text.WriteString(paddedLevel(r.Level))
		appendText(text, r.Message, fields)
		text.WriteByte('\n')
		return put(line{text: text, at: r.Time})
	}}
}

// Buffers are used again: there is a line for each connection.
var (
	texts      = sync.Pool{New: func() any { return new(bytes.Buffer) }}
	fieldLists = sync.Pool{New: func() any { return new([]field) }}
)

// newText returns an empty buffer for a line.
func newText() *bytes.Buffer {
	text := texts.Get().(*bytes.Buffer)
	text.Reset()
	return text
}

// paddedLevel returns the name of a level, padded to six characters.
func paddedLevel(l slog.Level) string {
	switch l {
	case slog.LevelDebug:
		return "DEBUG "
	case slog.LevelInfo:
		return "INFO  "
	case slog.LevelWarn:
		return "WARN  "
	case slog.LevelError:
		return "ERROR "
	}
	return fmt.Sprintf("%-5s ", l)
}

// field is an attribute. Its key begins with the names of its groups.
type field struct{ key, value string }

// lines is a slog.Handler that flattens the attributes of a record to text.
type lines struct {
	level  slog.Leveler
	emit   func(slog.Record, []field) error // writes a line; must not keep the fields
	prefix string                           // the open groups, each with its dot
	fields []field
}

func (h *lines) Enabled(_ context.Context, level slog.Level) bool { return level >= h.level.Level() }

func (h *lines) Handle(_ context.Context, r slog.Record) error {
	list := fieldLists.Get().(*[]field)
	fields := append((*list)[:0], h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		fields = flatten(fields, h.prefix, a)
		return true
	})
	err := h.emit(r, fields)
	clear(fields)
	*list = fields
	fieldLists.Put(list)
	return err
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
	if v.Kind() == slog.KindString && a.Key != "" && prefix == "" { // most are
		return append(fields, field{a.Key, v.String()})
	}
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

// appendText appends a message and its fields: link up peer=nas remote=203.0.113.7:4711.
func appendText(b *bytes.Buffer, message string, fields []field) {
	b.WriteString(wire.Clean(message))
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
	for i := 0; ; i++ {
		switch {
		case i == len(s) && i > 0:
			return false // most texts
		case i == len(s), s[i] <= ' ', s[i] == '"', s[i] == '=', s[i] >= 0x7f:
			return mayNeedQuotes(s)
		}
	}
}

func mayNeedQuotes(s string) bool {
	return s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r)
	})
}
