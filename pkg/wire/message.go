package wire

import (
	"errors"
	"fmt"
	"io"

	"github.com/quic-go/quic-go/quicvarint"
)

// A Message is a tip, a reply or a link message. On the wire it is a type, a length and a body of
// numbered fields.
type Message interface {
	messageType() uint64
	appendBody(dst []byte) []byte
	// field decodes one field. It reports whether the message has a field of that number; the
	// caller skips unknown ones.
	field(number uint64, value []byte) (known bool, err error)
	// complete returns an error if a field is missing or fields contradict each other. The caller
	// has decoded all fields.
	complete() error
}

// The message types. Types below firstLinkMessage are tips and replies; an unknown one is an error.
// Those from firstLinkMessage on are link messages; an unknown one is skipped.
const (
	typeConnect   = 1
	typeIncoming  = 2
	typeOpen      = 3
	typeResume    = 4
	typeControl   = 5
	typeReply     = 6
	typeGranted   = 7
	typeHeartbeat = 16
	typeClosing   = 17
	typeRevoked   = 18
	typeWelcome   = 19
	typeContested = 20

	firstLinkMessage = 16
)

// Append appends the encoding of m to dst. It panics on a body over MaxBody: the caller checks the
// parts that it takes from others.
func Append(dst []byte, m Message) []byte {
	body := m.appendBody(make([]byte, 0, 256))
	if len(body) > MaxBody {
		panic(fmt.Sprintf("internal error: message type %d has a body of %d bytes",
			m.messageType(), len(body)))
	}
	dst = quicvarint.Append(dst, m.messageType())
	dst = quicvarint.Append(dst, uint64(len(body)))
	return append(dst, body...)
}

// Parse decodes the message at the beginning of b and returns the number of bytes it has read. The
// error is io.ErrUnexpectedEOF if b ends too early; any other error wraps ErrMalformed. For a link
// message of unknown type m is nil and err is nil. Byte slices of the message share memory with b.
func Parse(b []byte) (m Message, n int, err error) {
	kind, n1, err := quicvarint.Parse(b)
	if err != nil {
		return nil, 0, io.ErrUnexpectedEOF
	}
	if m, err = newMessage(kind); err != nil {
		return nil, 0, err
	}
	length, n2, err := quicvarint.Parse(b[n1:])
	if err != nil {
		return nil, 0, io.ErrUnexpectedEOF
	}
	if length > MaxBody {
		return nil, 0, malformed("a body of %d bytes; %d is the most", length, MaxBody)
	}
	n = n1 + n2
	if uint64(len(b)-n) < length {
		return nil, 0, io.ErrUnexpectedEOF
	}
	body := b[n : n+int(length)]
	n += int(length)
	if m == nil {
		return nil, n, nil
	}
	if err := parseBody(m, body); err != nil {
		return nil, 0, err
	}
	return m, n, nil
}

// Read reads one message from r, and no byte of what follows. The error is io.EOF if r ends before
// the message and io.ErrUnexpectedEOF if r ends within it; an error about bytes wraps ErrMalformed.
// A link message of unknown type is nil, without an error.
func Read(r io.Reader) (Message, error) {
	kind, err := readVarint(r)
	if err != nil {
		return nil, err
	}
	m, err := newMessage(kind)
	if err != nil {
		return nil, err
	}
	length, err := readVarint(r)
	if err != nil {
		return nil, unexpected(err)
	}
	if length > MaxBody {
		return nil, malformed("a body of %d bytes; %d is the most", length, MaxBody)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, unexpected(err)
	}
	if m == nil {
		return nil, nil //nolint:nilnil // documented: an unknown link message
	}
	if err := parseBody(m, body); err != nil {
		return nil, err
	}
	return m, nil
}

// newMessage returns an empty message of the type, or nil for an unknown link message.
func newMessage(kind uint64) (Message, error) {
	switch kind {
	case typeConnect:
		return new(Connect), nil
	case typeIncoming:
		return new(Incoming), nil
	case typeOpen:
		return new(Open), nil
	case typeResume:
		return new(Resume), nil
	case typeControl:
		return new(Control), nil
	case typeReply:
		return new(Reply), nil
	case typeGranted:
		return new(Granted), nil
	case typeHeartbeat:
		return new(Heartbeat), nil
	case typeClosing:
		return new(Closing), nil
	case typeRevoked:
		return new(Revoked), nil
	case typeWelcome:
		return new(Welcome), nil
	case typeContested:
		return new(Contested), nil
	}
	if kind >= firstLinkMessage {
		return nil, nil //nolint:nilnil // skipped by Parse and Read
	}
	return nil, malformed("message type %d is unknown", kind)
}

func parseBody(m Message, body []byte) error {
	var seen uint64 // field numbers 0 to 63, a bit each
	for len(body) > 0 {
		number, value, rest, err := cutField(body)
		if err != nil {
			return err
		}
		body = rest
		known, err := m.field(number, value)
		if err != nil {
			return fmt.Errorf("field %d: %w", number, err)
		}
		if !known {
			continue
		}
		if seen&(1<<number) != 0 {
			return malformed("field %d is repeated", number)
		}
		seen |= 1 << number
	}
	return m.complete()
}

// unexpected turns the end of input within a message into io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func readVarint(r io.Reader) (uint64, error) {
	var b [8]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return 0, err
	}
	n := 1 << (b[0] >> 6)
	if _, err := io.ReadFull(r, b[1:n]); err != nil {
		return 0, unexpected(err)
	}
	v, _, err := quicvarint.Parse(b[:n])
	return v, err
}
