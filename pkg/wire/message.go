package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quic-go/quic-go/quicvarint"
)

// A Message is a tip, a reply or a link message: type, length, body; the body
// is made of numbered fields.
type Message interface {
	messageType() uint64
	appendBody(dst []byte) []byte
	// field takes one field. Unknown numbers return false and are skipped.
	field(number uint64, value []byte) (known bool, err error)
	// complete tells what is missing or impossible once all fields are in.
	complete() error
}

// The message types. Those up to 15 are tips and replies, those from 16 on are
// link messages: of the latter an unknown one is skipped.
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

// Connect is P2's request to P3: connect me to Server, and forward Inner, which
// is an encoded Open or Resume.
type Connect struct {
	Server string
	Inner  []byte
	Hold   bool // P2 has no other relay to ask: an open may wait for its server's link
}

// Incoming is P3's request to P4: Client wants to connect, and sends Inner.
type Incoming struct {
	Client string
	Inner  []byte
	Others []string // other names of Client, while it is being renamed: what it has under them is its own
}

// Open asks P4 for a new session. It is idempotent by client and token.
type Open struct {
	Version       uint64
	Features      uint64 // bits of optional features that P2 can speak; none are defined yet
	Token         Token
	Attempt       uint64        // 1 for the first stream of the session; rises strictly
	Age           time.Duration // since the first attempt whose outcome P2 doesn't know; milliseconds on the wire
	Source        string        // P1's address, for logs
	Target        string        // canonical text, at most MaxTarget bytes
	Limit         uint64        // P2 takes bytes up to this offset
	ResumeTimeout time.Duration // how long P4 is asked to keep a detached session; milliseconds on the wire
	Origin        []byte        // the mark of a P1 on P2's host (pkg/origin), MaxOrigin bytes at most; nil for none
}

// Resume asks P4 to go on with a session over a new stream.
type Resume struct {
	Version     uint64
	Token       Token
	Attempt     uint64
	Source      string
	Target      string
	Received    uint64 // P2 has read everything before this offset: retransmit from here
	Acked       uint64 // P2 has delivered everything before this offset to P1
	Limit       uint64 // P2 takes bytes up to this offset
	Unconfirmed bool   // P2 has reset the session and doesn't know whether P4 has heard of it
	Probe       bool   // P2 asks only whether the way to P4 works; the token names no session
}

// Control says that a stream carries link messages.
type Control struct {
	Instance Instance // of the process that dials
}

// Reply answers Connect and Incoming. It is the first message on the way back.
type Reply struct {
	Status Status
	Text   string // for people
	Node   string // who says it: "relay" or a server's ID
	Inner  []byte // an encoded Granted, with statuses 200 and 208
}

// Granted is the inner part of a Reply: what P4 grants, and where it stands.
type Granted struct {
	Version       uint64
	Features      uint64
	Received      uint64 // P4 has read everything before this offset
	Acked         uint64 // P4 has delivered everything before this offset to P5
	Limit         uint64 // P4 takes bytes up to this offset
	ResumeTimeout time.Duration
	Reset         bool // with 208: the session ended by a reset, not by its orderly end
}

// Append appends the encoding of m to dst. A body over MaxBody is a bug of the
// caller, who has checked the parts: Append panics.
func Append(dst []byte, m Message) []byte {
	body := m.appendBody(make([]byte, 0, 256))
	if len(body) > MaxBody {
		panic(fmt.Sprintf("internal error: message type %d has a body of %d bytes", m.messageType(), len(body)))
	}
	dst = quicvarint.Append(dst, m.messageType())
	dst = quicvarint.Append(dst, uint64(len(body)))
	return append(dst, body...)
}

// Parse decodes the message at the beginning of b and tells how many bytes it
// took. io.ErrUnexpectedEOF means that more bytes are needed; every other error
// wraps ErrMalformed. Byte slices of the message share memory with b.
//
// Of the link messages an unknown type is not an error: the message is nil.
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

// Read reads one message from r, and not a byte more: what follows on the
// stream is for somebody else. An end of r in the middle of a message is
// io.ErrUnexpectedEOF, one before it io.EOF. An unknown link message is nil.
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

// ParseInner decodes the whole of b as the inner message of a Connect or an Incoming: an *Open or a *Resume. Its error is an
// *InnerError. The message shares no memory with b.
func ParseInner(b []byte) (Message, error) {
	m, n, err := Parse(b)
	var bad InnerError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		bad.words = "the inner tip is truncated"
	case err != nil:
		bad.words = "the inner tip: " + err.Error()
	case n != len(b):
		bad.words = fmt.Sprintf("%d bytes follow the inner tip", len(b)-n)
	default:
		switch m.(type) {
		case *Open, *Resume:
			return m, nil
		}
		bad.words = "the inner tip is neither open nor resume"
	}
	bad.glance(b)
	return nil, &bad
}

// An InnerError says why an inner message can't be understood. It wraps ErrMalformed.
type InnerError struct {
	Version uint64 // of the message; 0 if it says none
	token   Token  // zero if there is none to be seen
	words   string
}

// ConnectionID names the session, so that logs can; it is empty where the message does not tell.
func (e *InnerError) ConnectionID() string {
	if e.token == (Token{}) {
		return ""
	}
	return e.token.ConnectionID()
}

// Status is the answer to such a message. The version is looked at before the rest.
func (e *InnerError) Status() Status {
	if e.Version > Version {
		return StatusVersion
	}
	return StatusMalformed
}

func (e *InnerError) Error() string {
	if e.Version > Version {
		return OtherVersion(e.Version)
	}
	return e.words
}

// Unwrap is ErrMalformed.
func (e *InnerError) Unwrap() error { return ErrMalformed }

// OtherVersion says, for people, that a session version is not spoken here.
func OtherVersion(version uint64) string {
	return fmt.Sprintf("version %d of the session protocol is asked for, and version %d spoken here: upgrade the older node", version, Version)
}

// glance finds what every version of an Open or Resume has in the same place: its version and its token.
func (e *InnerError) glance(b []byte) {
	kind, n, err := quicvarint.Parse(b)
	if err != nil || kind != typeOpen && kind != typeResume {
		return
	}
	_, m, err := quicvarint.Parse(b[n:])
	if err != nil {
		return
	}
	for b = b[n+m:]; ; {
		number, value, rest, err := cutField(b)
		if err != nil {
			return
		}
		b = rest
		switch number {
		case 1:
			_, _ = takeUint(&e.Version, value)
		case 3:
			_, _ = takeToken(&e.token, value)
		}
	}
}

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

// Fields: number, length, value.

// cutField cuts the first field off a body.
func cutField(body []byte) (number uint64, value, rest []byte, err error) {
	number, n, err := quicvarint.Parse(body)
	if err != nil {
		return 0, nil, nil, malformed("a field's number is truncated")
	}
	body = body[n:]
	length, n, err := quicvarint.Parse(body)
	if err != nil {
		return 0, nil, nil, malformed("the length of field %d is truncated", number)
	}
	body = body[n:]
	if length > uint64(len(body)) {
		return 0, nil, nil, malformed("field %d has %d bytes, %d are left", number, length, len(body))
	}
	return number, body[:length], body[length:], nil
}

func appendUint(dst []byte, number, value uint64) []byte {
	if value == 0 {
		return dst // an absent number is zero
	}
	dst = quicvarint.Append(dst, number)
	dst = quicvarint.Append(dst, uint64(quicvarint.Len(value)))
	return quicvarint.Append(dst, value)
}

func appendFlag(dst []byte, number uint64, flag bool) []byte {
	if !flag {
		return dst
	}
	return appendUint(dst, number, 1)
}

func appendString[T string | []byte](dst []byte, number uint64, value T) []byte {
	if len(value) == 0 {
		return dst
	}
	dst = quicvarint.Append(dst, number)
	dst = quicvarint.Append(dst, uint64(len(value)))
	return append(dst, value...)
}

func takeUint(into *uint64, value []byte) (bool, error) {
	v, n, err := quicvarint.Parse(value)
	if err != nil || n != len(value) {
		return true, malformed("not an integer")
	}
	*into = v
	return true, nil
}

func takeFlag(into *bool, value []byte) (bool, error) {
	var v uint64
	if _, err := takeUint(&v, value); err != nil || v > 1 {
		return true, malformed("not 0 or 1")
	}
	*into = v == 1
	return true, nil
}

func takeDuration(into *time.Duration, value []byte) (bool, error) {
	var v uint64
	_, err := takeUint(&v, value)
	*into = duration(v)
	return true, err
}

// takeString refuses control characters: strings of a peer go to terminals and
// logs.
func takeString(into *string, value []byte, most int) (bool, error) {
	if len(value) > most {
		return true, malformed("%d bytes; %d is the most", len(value), most)
	}
	if !utf8.Valid(value) {
		return true, malformed("not UTF-8")
	}
	if bytes.ContainsFunc(value, unicode.IsControl) {
		return true, malformed("a control character")
	}
	*into = Clean(string(value))
	return true, nil
}

func takeInner(into *[]byte, value []byte) (bool, error) {
	if len(value) > MaxInner {
		return true, malformed("an inner message of %d bytes; %d is the most", len(value), MaxInner)
	}
	if len(value) > 0 { // an empty one is none
		*into = value
	}
	return true, nil
}

func takeOrigin(into *[]byte, value []byte) (bool, error) {
	if len(value) > MaxOrigin {
		return true, malformed("an origin of %d bytes; %d is the most", len(value), MaxOrigin)
	}
	if len(value) > 0 { // an empty one is none
		*into = bytes.Clone(value)
	}
	return true, nil
}

func takeToken(into *Token, value []byte) (bool, error) {
	if len(value) != len(into) {
		return true, malformed("a token of %d bytes", len(value))
	}
	copy(into[:], value)
	return true, nil
}

// appendList appends strings, each behind its length; none is an absent field.
func appendList(dst []byte, number uint64, list []string) []byte {
	if len(list) == 0 {
		return dst
	}
	dst = quicvarint.Append(dst, number)
	dst = quicvarint.Append(dst, uint64(listSize(list)))
	for _, text := range list {
		dst = quicvarint.Append(dst, uint64(len(text)))
		dst = append(dst, text...)
	}
	return dst
}

func listSize(list []string) (n int) {
	for _, text := range list {
		n += quicvarint.Len(uint64(len(text))) + len(text)
	}
	return n
}

// takeList takes at most so many strings of at most so many bytes each.
func takeList(into *[]string, value []byte, most, longest int) (bool, error) {
	if len(value) == 0 {
		return true, malformed("an empty list")
	}
	var list []string
	for len(value) > 0 {
		length, n, err := quicvarint.Parse(value)
		if err != nil || length > uint64(len(value)-n) {
			return true, malformed("a list is truncated")
		}
		if len(list) >= most {
			return true, malformed("more than %d in a list", most)
		}
		var text string
		if _, err := takeString(&text, value[n:n+int(length)], longest); err != nil {
			return true, err
		}
		list = append(list, text)
		value = value[n+int(length):]
	}
	*into = list
	return true, nil
}

func (*Connect) messageType() uint64 { return typeConnect }

func (m *Connect) appendBody(dst []byte) []byte {
	dst = appendString(dst, 1, m.Server)
	dst = appendString(dst, 2, m.Inner)
	return appendFlag(dst, 3, m.Hold)
}

func (m *Connect) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeString(&m.Server, value, maxID)
	case 2:
		return takeInner(&m.Inner, value)
	case 3:
		return takeFlag(&m.Hold, value)
	}
	return false, nil
}

func (m *Connect) complete() error {
	if err := CheckID(m.Server); err != nil {
		return malformed("server: %v", err)
	}
	return nil
}

func (*Incoming) messageType() uint64 { return typeIncoming }

func (m *Incoming) appendBody(dst []byte) []byte {
	dst = appendString(dst, 1, m.Client)
	dst = appendString(dst, 2, m.Inner)
	return appendList(dst, 3, m.Others)
}

func (m *Incoming) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeString(&m.Client, value, maxID)
	case 2:
		return takeInner(&m.Inner, value)
	case 3:
		return takeList(&m.Others, value, MaxNames-1, maxID)
	}
	return false, nil
}

func (m *Incoming) complete() error {
	for _, id := range m.Names() {
		if err := CheckID(id); err != nil {
			return malformed("client: %v", err)
		}
	}
	return nil
}

// Names are all by which the client is understood, the one that it goes by first.
func (m *Incoming) Names() []string { return append([]string{m.Client}, m.Others...) }

func (*Open) messageType() uint64 { return typeOpen }

func (m *Open) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Version)
	dst = appendUint(dst, 2, m.Features)
	dst = appendString(dst, 3, m.Token[:])
	dst = appendUint(dst, 4, m.Attempt)
	dst = appendUint(dst, 5, millis(m.Age))
	dst = appendString(dst, 6, clean(m.Source, MaxSource))
	dst = appendString(dst, 7, m.Target)
	dst = appendUint(dst, 8, m.Limit)
	dst = appendUint(dst, 9, millis(m.ResumeTimeout))
	if len(m.Origin) == 0 {
		return dst
	}
	return appendString(dst, 14, m.Origin)
}

func (m *Open) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint(&m.Version, value)
	case 2:
		return takeUint(&m.Features, value)
	case 3:
		return takeToken(&m.Token, value)
	case 4:
		return takeUint(&m.Attempt, value)
	case 5:
		return takeDuration(&m.Age, value)
	case 6:
		return takeString(&m.Source, value, MaxSource)
	case 7:
		return takeString(&m.Target, value, MaxTarget)
	case 8:
		return takeUint(&m.Limit, value)
	case 9:
		return takeDuration(&m.ResumeTimeout, value)
	case 14:
		return takeOrigin(&m.Origin, value)
	}
	return false, nil
}

func (m *Open) complete() error { return checkSession(m.Token, m.Attempt, m.Target) }

func checkSession(token Token, attempt uint64, target string) error {
	switch {
	case token == Token{}:
		return malformed("no token")
	case attempt == 0:
		return malformed("no attempt")
	case target == "":
		return malformed("no target")
	}
	return nil
}

func (*Resume) messageType() uint64 { return typeResume }

func (m *Resume) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Version)
	dst = appendString(dst, 3, m.Token[:])
	dst = appendUint(dst, 4, m.Attempt)
	dst = appendString(dst, 6, clean(m.Source, MaxSource))
	dst = appendString(dst, 7, m.Target)
	dst = appendUint(dst, 8, m.Limit)
	dst = appendUint(dst, 10, m.Received)
	dst = appendUint(dst, 11, m.Acked)
	dst = appendFlag(dst, 12, m.Unconfirmed)
	return appendFlag(dst, 13, m.Probe)
}

func (m *Resume) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint(&m.Version, value)
	case 3:
		return takeToken(&m.Token, value)
	case 4:
		return takeUint(&m.Attempt, value)
	case 6:
		return takeString(&m.Source, value, MaxSource)
	case 7:
		return takeString(&m.Target, value, MaxTarget)
	case 8:
		return takeUint(&m.Limit, value)
	case 10:
		return takeUint(&m.Received, value)
	case 11:
		return takeUint(&m.Acked, value)
	case 12:
		return takeFlag(&m.Unconfirmed, value)
	case 13:
		return takeFlag(&m.Probe, value)
	}
	return false, nil
}

func (m *Resume) complete() error {
	if m.Acked > m.Received || m.Received > m.Limit {
		return malformed("acked %d, received %d and limit %d are out of order", m.Acked, m.Received, m.Limit)
	}
	return checkSession(m.Token, m.Attempt, m.Target)
}

func (*Control) messageType() uint64 { return typeControl }

func (m *Control) appendBody(dst []byte) []byte {
	if m.Instance == (Instance{}) {
		return dst
	}
	return appendString(dst, 1, m.Instance[:])
}

func (m *Control) field(number uint64, value []byte) (bool, error) {
	if number != 1 {
		return false, nil
	}
	if len(value) != len(m.Instance) {
		return true, malformed("an instance of %d bytes", len(value))
	}
	copy(m.Instance[:], value)
	return true, nil
}

func (*Control) complete() error { return nil }

func (*Reply) messageType() uint64 { return typeReply }

func (m *Reply) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, uint64(m.Status))
	dst = appendString(dst, 2, clean(m.Text, MaxText))
	dst = appendString(dst, 3, m.Node)
	return appendString(dst, 4, m.Inner)
}

func (m *Reply) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint((*uint64)(&m.Status), value)
	case 2:
		return takeString(&m.Text, value, MaxText)
	case 3:
		return takeString(&m.Node, value, maxID)
	case 4:
		return takeInner(&m.Inner, value)
	}
	return false, nil
}

func (m *Reply) complete() error {
	if m.Status < 100 || m.Status > 999 {
		return malformed("status %d", uint64(m.Status))
	}
	if m.Node == "" {
		return nil
	}
	if err := CheckID(m.Node); err != nil {
		return malformed("node: %v", err)
	}
	return nil
}

func (*Granted) messageType() uint64 { return typeGranted }

func (m *Granted) appendBody(dst []byte) []byte {
	dst = appendUint(dst, 1, m.Version)
	dst = appendUint(dst, 2, m.Features)
	dst = appendUint(dst, 8, m.Limit)
	dst = appendUint(dst, 9, millis(m.ResumeTimeout))
	dst = appendUint(dst, 10, m.Received)
	dst = appendUint(dst, 11, m.Acked)
	return appendFlag(dst, 12, m.Reset)
}

func (m *Granted) field(number uint64, value []byte) (bool, error) {
	switch number {
	case 1:
		return takeUint(&m.Version, value)
	case 2:
		return takeUint(&m.Features, value)
	case 8:
		return takeUint(&m.Limit, value)
	case 9:
		return takeDuration(&m.ResumeTimeout, value)
	case 10:
		return takeUint(&m.Received, value)
	case 11:
		return takeUint(&m.Acked, value)
	case 12:
		return takeFlag(&m.Reset, value)
	}
	return false, nil
}

func (m *Granted) complete() error {
	if m.Acked > m.Received || m.Received > m.Limit {
		return malformed("acked %d, received %d and limit %d are out of order", m.Acked, m.Received, m.Limit)
	}
	return nil
}
