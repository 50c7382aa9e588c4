package host

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// JournalSocket is the socket of the journal's native protocol. It is a variable for tests alone.
var JournalSocket = "/run/systemd/journal/socket"

// toJournal reports whether stderr is connected to the journal, and the journal's native protocol,
// which takes fields, can be used.
func toJournal() bool {
	connected, err := journal.StderrIsJournalStream()
	if err != nil || !connected {
		return false
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: JournalSocket, Net: "unixgram"})
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// newJournalHandler turns each record into a datagram of the journal's native protocol, which
// https://systemd.io/JOURNAL_NATIVE_PROTOCOL describes. ids are the MESSAGE_IDs by message.
func newJournalHandler(put func(line) error, level slog.Leveler, ids map[string]string) slog.Handler {
	return &lines{level: level, emit: func(r slog.Record, fields []field) error {
		l := line{text: newText(), at: r.Time, priority: '0' + byte(priority(r.Level))}
		l.text.WriteString("MESSAGE=")
		l.message[0] = l.text.Len()
		appendText(l.text, r.Message, fields) // without a newline
		l.message[1] = l.text.Len()
		l.text.WriteString("\nPRIORITY=")
		l.text.WriteByte(l.priority)
		l.text.WriteString("\nSYSLOG_IDENTIFIER=ptthqd\n")
		for _, f := range fields {
			appendJournalField(l.text, f)
		}
		if id := ids[r.Message]; id != "" {
			l.text.WriteString("MESSAGE_ID=" + id + "\n")
		}
		return put(l)
	}}
}

func appendJournalField(b *bytes.Buffer, f field) {
	b.WriteString("PTTHQ_")
	b.WriteString(fieldName(f.key))
	if strings.Contains(f.value, "\n") {
		b.WriteByte('\n')
		b.Write(binary.LittleEndian.AppendUint64(b.AvailableBuffer(), uint64(len(f.value))))
	} else {
		b.WriteByte('=')
	}
	b.WriteString(f.value)
	b.WriteByte('\n')
}

// journalSink sends datagrams to the journal. A line that the journal can't take goes to stderr,
// with its priority in front, as systemd reads it from there.
type journalSink struct {
	stderr io.Writer
	conn   *net.UnixConn // nil if it is not connected
}

func newJournalSink(stderr io.Writer) lineSink { return &journalSink{stderr: stderr} }

func (s *journalSink) write(lines []line) (lost int, err error) {
	for _, l := range lines {
		if time.Since(l.at) > lateLine { // the journal's own time is when it takes the line
			l.text.WriteString("PTTHQ_SAID_AT=" + l.at.Format(time.RFC3339Nano) + "\n")
		}
		if s.send(l.text.Bytes()) == nil {
			continue
		}
		if _, lineErr := fmt.Fprintf(s.stderr, "<%c>%s\n", l.priority,
			l.text.Bytes()[l.message[0]:l.message[1]]); lineErr != nil {
			lost, err = lost+1, lineErr
		}
	}
	return lost, err
}

// lateLine is how long a line may wait without a field of its own for when it was logged.
const lateLine = time.Second

// send sends a datagram and waits while the journal reads none. It needs a connected socket: only
// then does poll wait for room in the queue of the other end.
func (s *journalSink) send(datagram []byte) (err error) {
	for range 2 {
		if s.conn == nil {
			if s.conn, err = net.DialUnix("unixgram", nil,
				&net.UnixAddr{Name: JournalSocket, Net: "unixgram"}); err != nil {
				s.conn = nil
				return err
			}
		}
		if _, err = s.conn.Write(datagram); err == nil || errors.Is(err, syscall.EMSGSIZE) ||
			errors.Is(err, syscall.ENOBUFS) {
			return err
		}
		_ = s.conn.Close() // the journal was restarted
		s.conn = nil
	}
	return err
}

func (s *journalSink) close() {
	if s.conn != nil {
		_ = s.conn.Close()
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

// fieldName turns a key into a name that the journal takes: A-Z, 0-9 and the underscore.
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
