package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/quic-go/quic-go/quicvarint"
	"pgregory.net/rapid"

	"ptthqd/pkg/wire"
)

const maxVarint = 1<<62 - 1

// Generators of what the protocol can express.

func genOrigin(t *rapid.T) []byte {
	if o := rapid.SliceOfN(rapid.Byte(), 0, wire.MaxOrigin).Draw(t, "origin"); len(o) > 0 {
		return o
	}
	return nil
}

func genToken() *rapid.Generator[wire.Token] {
	return rapid.Custom(func(t *rapid.T) (token wire.Token) {
		copy(token[:], rapid.SliceOfN(rapid.Byte(), len(token), len(token)).Draw(t, "token"))
		token[0] |= 1 // never all zero
		return token
	})
}

func genMillis() *rapid.Generator[time.Duration] {
	return rapid.Custom(func(t *rapid.T) time.Duration {
		return time.Duration(rapid.Int64Range(0, 1<<40).Draw(t, "ms")) * time.Millisecond
	})
}

func genOffsets(t *rapid.T) (acked, received, limit uint64) {
	limit = rapid.Uint64Range(0, maxVarint).Draw(t, "limit")
	received = rapid.Uint64Range(0, limit).Draw(t, "received")
	return rapid.Uint64Range(0, received).Draw(t, "acked"), received, limit
}

func genMessage() *rapid.Generator[wire.Message] {
	id := rapid.StringMatching(`[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?`)
	integer := rapid.Uint64Range(0, maxVarint)
	text := rapid.StringMatching(`[ -~é-ÿ]{0,100}`)
	target := rapid.StringMatching(`[ -~]{1,512}`)
	inner := rapid.Custom(func(t *rapid.T) []byte {
		if b := rapid.SliceOfN(rapid.Byte(), 0, wire.MaxInner).Draw(t, "inner"); len(b) > 0 {
			return b
		}
		return nil
	})
	return rapid.Custom(func(t *rapid.T) wire.Message {
		switch rapid.IntRange(1, 11).Draw(t, "kind") {
		case 1:
			return &wire.Connect{
				Server: id.Draw(t, "server"), Inner: inner.Draw(t, "inner"),
				Hold: rapid.Bool().Draw(t, "hold"),
			}
		case 2:
			return &wire.Incoming{Client: id.Draw(t, "client"), Inner: inner.Draw(t, "inner")}
		case 3:
			return &wire.Open{
				Version: integer.Draw(t, "version"), Features: integer.Draw(t, "features"), Token: genToken().Draw(t, "token"),
				Attempt: rapid.Uint64Range(1, maxVarint).Draw(t, "attempt"), Age: genMillis().Draw(t, "age"),
				Source: text.Draw(t, "source"), Target: target.Draw(t, "target"), Limit: integer.Draw(t, "limit"),
				ResumeTimeout: genMillis().Draw(t, "timeout"), Origin: genOrigin(t),
			}
		case 4:
			m := &wire.Resume{
				Version: integer.Draw(t, "version"), Token: genToken().Draw(t, "token"),
				Attempt: rapid.Uint64Range(1, maxVarint).Draw(t, "attempt"), Source: text.Draw(t, "source"),
				Target: target.Draw(t, "target"), Unconfirmed: rapid.Bool().Draw(t, "unconfirmed"), Probe: rapid.Bool().Draw(t, "probe"),
			}
			m.Acked, m.Received, m.Limit = genOffsets(t)
			return m
		case 5:
			instance := rapid.SliceOfN(rapid.Byte(), 8, 8).Draw(t, "instance")
			return &wire.Control{Instance: wire.Instance(instance)}
		case 6:
			return &wire.Reply{
				Status: wire.Status(rapid.Uint64Range(100, 999).Draw(t, "status")), Text: text.Draw(t, "text"),
				Node: rapid.OneOf(id, rapid.Just("")).Draw(t, "node"), Inner: inner.Draw(t, "inner"),
			}
		case 7:
			m := &wire.Granted{
				Version: integer.Draw(t, "version"), Features: integer.Draw(t, "features"),
				ResumeTimeout: genMillis().Draw(t, "timeout"), Reset: rapid.Bool().Draw(t, "reset"),
			}
			m.Acked, m.Received, m.Limit = genOffsets(t)
			return m
		case 8:
			return &wire.Heartbeat{
				Seq: integer.Draw(t, "seq"), Echo: integer.Draw(t, "echo"),
				Parity: rapid.Bool().Draw(t, "parity"), Restored: integer.Draw(t, "restored"),
			}
		case 9:
			return &wire.Closing{}
		case 10:
			return &wire.Contested{From: text.Draw(t, "from")}
		default:
			return &wire.Revoked{
				Client: id.Draw(t, "client"), Target: rapid.OneOf(target, rapid.Just("")).Draw(t, "target"),
				Kept: genList(target, 5).Draw(t, "kept"),
			}
		}
	})
}

// genList makes no list or one that has something in it.
func genList(of *rapid.Generator[string], most int) *rapid.Generator[[]string] {
	return rapid.OneOf(rapid.Just([]string(nil)), rapid.SliceOfN(of, 1, most))
}

func TestMessageRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genMessage().Draw(t, "message")
		rest := rapid.SliceOf(rapid.Byte()).Draw(t, "rest")
		encoded := wire.Append([]byte{0xff}, want)[1:]
		stream := append(bytes.Clone(encoded), rest...)

		got, n, err := wire.Parse(stream)
		if err != nil || n != len(encoded) || !reflect.DeepEqual(got, want) {
			t.Fatalf("Parse: %+v, %d, %v; want %+v, %d", got, n, err, want, len(encoded))
		}

		r := bytes.NewReader(stream)
		if got, err = wire.Read(iotest.OneByteReader(r)); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("Read: %+v, %v; want %+v", got, err, want)
		}
		if r.Len() != len(rest) {
			t.Fatalf("Read has left %d bytes, not %d", r.Len(), len(rest))
		}

		cut := rapid.IntRange(0, len(encoded)-1).Draw(t, "cut")
		if _, _, err := wire.Parse(encoded[:cut]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("Parse of %d bytes of %d: %v", cut, len(encoded), err)
		}
	})
}

// What P3 forwards fits its own message, whatever the IDs: a client must not
// make the relay panic.
func TestForwardedInnerAlwaysFits(t *testing.T) {
	connect := wire.Append(nil, &wire.Connect{Server: "s", Inner: make([]byte, wire.MaxInner)})
	m, err := wire.Read(bytes.NewReader(connect))
	if err != nil {
		t.Fatal(err)
	}
	wire.Append(nil, &wire.Incoming{Client: strings.Repeat("c", 63), Inner: m.(*wire.Connect).Inner})
	wire.Append(nil, &wire.Reply{
		Status: 200, Text: strings.Repeat("x", 5000), Node: strings.Repeat("c", 63), Inner: make([]byte, wire.MaxInner),
	})

	tooLong := wire.Append(nil, &wire.Connect{Server: "s", Inner: make([]byte, wire.MaxInner+1)})
	if _, err := wire.Read(bytes.NewReader(tooLong)); !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("an inner message over the limit: %v", err)
	}
}

// The largest open fits an inner message.
func TestLargestOpenFits(t *testing.T) {
	open := wire.Append(nil, &wire.Open{
		Version: maxVarint, Features: maxVarint, Token: exampleToken, Attempt: maxVarint, Age: 1 << 62,
		Source: strings.Repeat("s", 5000), Target: strings.Repeat("t", wire.MaxTarget), Limit: maxVarint, ResumeTimeout: 1 << 62,
	})
	if len(open) > wire.MaxInner {
		t.Errorf("an open of %d bytes", len(open))
	}
}

// field encodes one field.
func field[T string | []byte](number uint64, value T) []byte {
	b := quicvarint.Append(nil, number)
	b = quicvarint.Append(b, uint64(len(value)))
	return append(b, value...)
}

// message encodes a message of any type and fields.
func message(kind uint64, fields ...[]byte) []byte {
	body := bytes.Join(fields, nil)
	b := quicvarint.Append(nil, kind)
	b = quicvarint.Append(b, uint64(len(body)))
	return append(b, body...)
}

func TestStrictness(t *testing.T) {
	token := field(3, exampleToken[:])
	attempt := field(4, "\x01")
	target := field(7, ":22")
	nas := field(1, "nas")
	for _, c := range []struct {
		name string
		in   []byte
		want string // in the error; "" for none
	}{
		{"least open", message(3, token, attempt, target), ""},
		{"fields in any order", message(3, target, attempt, token), ""},
		{"unknown field", message(1, nas, field(99, "\x01\x02\x03")), ""},
		{"unknown field with a huge number", message(1, nas, field(maxVarint, "")), ""},
		{"unknown field twice", message(1, nas, field(99, ""), field(99, "")), ""},
		{"integer longer than needed", message(3, token, field(4, "\x40\x01"), target), ""},
		{"type longer than needed", append([]byte{0x40}, message(1, nas)...), ""},
		{"unknown link message", message(31, field(1, "")), ""},

		{"unknown type", message(8), "message type 8 is unknown"},
		{"type 0", message(0), "message type 0 is unknown"},
		{"body over the limit", message(1, nas, field(99, make([]byte, wire.MaxBody))), "4096 is the most"},
		{"body of an unknown link message over the limit", message(31, make([]byte, wire.MaxBody+1)), "4096 is the most"},
		{"field twice", message(1, nas, nas), "field 1 is repeated"},
		{"field truncated", message(1, []byte{1, 4, 'n'}), "field 1 has 4 bytes, 1 are left"},
		{"field with a huge length", message(1, []byte{1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}), "are left"},
		{"field number truncated", message(1, nas, []byte{0x40}), "number is truncated"},
		{"field length truncated", message(1, nas, []byte{9, 0x40}), "length of field 9 is truncated"},
		{"no server", message(1), "the ID is empty"},
		{"bad server", message(1, field(1, "Nas")), "server"},
		{"no client", message(2), "client"},
		{"long server", message(1, field(1, bytes.Repeat([]byte("a"), 64))), "63 is the most"},
		{"no token", message(3, attempt, target), "no token"},
		{"zero token", message(3, field(3, make([]byte, 16)), attempt, target), "no token"},
		{"short token", message(3, field(3, make([]byte, 15)), attempt, target), "a token of 15 bytes"},
		{"no attempt", message(3, token, target), "no attempt"},
		{"no target", message(3, token, attempt), "no target"},
		{"long target", message(3, token, attempt, field(7, bytes.Repeat([]byte("a"), 513))), "512 is the most"},
		{"long source", message(3, token, attempt, target, field(6, bytes.Repeat([]byte("a"), 257))), "256 is the most"},
		{"source with a line feed", message(3, token, attempt, target, field(6, "a\nb")), "control character"},
		{"target with an escape", message(3, token, attempt, field(7, "\x1b[2J")), "control character"},
		{"target with a C1 control", message(3, token, attempt, field(7, "\u009b2J")), "control character"},
		{"target not UTF-8", message(3, token, attempt, field(7, "\xff")), "not UTF-8"},
		{"integer truncated", message(3, token, field(4, "\x40"), target), "field 4"},
		{"integer with more behind it", message(3, token, field(4, "\x01\x01"), target), "field 4"},
		{"integer empty", message(3, token, field(4, ""), target), "field 4"},
		{"flag of 2", message(4, token, attempt, target, field(12, "\x02")), "not 0 or 1"},
		{"acked beyond received", message(4, token, attempt, target, field(11, "\x01")), "out of order"},
		{"received beyond limit", message(7, field(10, "\x01")), "out of order"},
		{"no status", message(6), "status 0"},
		{"status of two digits", message(6, field(1, "\x40\x63")), "status 99"},
		{"status of four digits", message(6, field(1, "\x43\xe8")), "status 1000"},
		{"node that is no ID", message(6, field(1, "\x40\xc8"), field(3, "a b")), "node"},
		{"long text", message(6, field(1, "\x40\xc8"), field(2, bytes.Repeat([]byte("a"), 513))), "512 is the most"},
		{"revoked without a client", message(18), "client"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, n, err := wire.Parse(c.in)
			if c.want == "" {
				if err != nil || n != len(c.in) {
					t.Fatalf("refused: %d, %v", n, err)
				}
				return
			}
			if !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
			if m != nil || n != 0 {
				t.Errorf("%+v and %d beside an error", m, n)
			}
		})
	}
}

// The version of an inner message is looked at before the rest, and its session is named where it can be.
func TestInner(t *testing.T) {
	token, attempt, target := field(3, exampleToken[:]), field(4, "\x01"), field(7, ":22")
	this, later := field(1, "\x01"), field(1, "\x02")
	id := exampleToken.ConnectionID()
	const words = "version 2 of the session protocol is asked for, and version 1 spoken here: upgrade the older node"
	for _, c := range []struct {
		name string
		in   []byte
		want wire.Status // 0: it is understood
		id   string
		says string
	}{
		{"open", message(3, this, token, attempt, target), 0, "", ""},
		{"resume", message(4, this, token, attempt, target), 0, "", ""},
		{"open of no version", message(3, token, attempt, target), 0, "", ""},
		{"open of a later version, with all that this one has", message(3, later, token, attempt, target), 0, "", ""},

		{"no target", message(3, this, token, attempt), 400, id, "the inner tip: malformed message: no target"},
		{"no version and no target", message(3, token, attempt), 400, id, "no target"},
		{"no token", message(3, this, attempt, target), 400, "", "no token"},
		{"truncated", message(3, this, token, attempt, target)[:30], 400, id, "the inner tip is truncated"},
		{"truncated in the length", []byte{3, 0x40}, 400, "", "truncated"},
		{"empty", nil, 400, "", "truncated"},
		{"bytes behind it", append(message(3, this, token, attempt, target), 1, 2), 400, id, "2 bytes follow the inner tip"},
		{"a version that is none", message(3, field(1, "\x02\x02"), token, attempt, target), 400, id, "field 1"},
		{"another message", message(1, later, token), 400, "", "malformed"},
		{"a link message", message(17), 400, "", "the inner tip is neither open nor resume"},
		{"an unknown link message", message(40, later), 400, "", "neither open nor resume"},
		{"an unknown message", message(8, later, token), 400, "", "message type 8 is unknown"},

		{"later, without a target", message(3, later, token, attempt), 505, id, words},
		{"later, without anything", message(3, later), 505, "", words},
		{"later, its version at the end", message(4, token, target, later), 505, id, words},
		{"later, with a field of another kind", message(3, field(4, "not a number"), later, token, target), 505, id, words},
		{"later, with a field twice", message(3, later, token, attempt, target, target), 505, id, words},
		{"later, with a longer token", message(3, later, field(3, make([]byte, 32)), attempt, target), 505, "", words},
		{"later, and truncated", message(3, later, token, attempt, target)[:26], 505, id, words},
	} {
		m, err := wire.ParseInner(c.in)
		bad, _ := errors.AsType[*wire.InnerError](err)
		switch {
		case c.want == 0:
			if m == nil || err != nil {
				t.Errorf("%s: %v, %v", c.name, m, err)
			}
		case m != nil || bad == nil || !errors.Is(err, wire.ErrMalformed) || bad.Status() != c.want || bad.ConnectionID() != c.id || !strings.Contains(bad.Error(), c.says):
			t.Errorf("%s: %v, %v, %+v", c.name, m, err, bad)
		}
	}
}

// What an encoder is given for people never makes the message unreadable.
func TestTextIsMadeClean(t *testing.T) {
	for in, want := range map[string]string{
		"fine":                               "fine",
		"two\nlines\x1b[2J":                  "two lines [2J",
		"broken \xff":                        "broken \uFFFD",
		strings.Repeat("é", wire.MaxText):    strings.Repeat("é", wire.MaxText/2),
		"x" + strings.Repeat("é", 300):       "x" + strings.Repeat("é", 255),
		strings.Repeat("\xff", wire.MaxText): "\uFFFD",
	} {
		m, _, err := wire.Parse(wire.Append(nil, &wire.Reply{Status: 502, Text: in}))
		if err != nil {
			t.Errorf("%q: %v", in, err)
			continue
		}
		if got := m.(*wire.Reply).Text; got != want {
			t.Errorf("%q became %q; want %q", in, got, want)
		}
	}
}

func TestAppendPanicsOnOurOwnMistake(t *testing.T) {
	defer func() {
		if r := recover(); r == nil || !strings.HasPrefix(fmt.Sprint(r), "internal error") {
			t.Errorf("recovered %v", r)
		}
	}()
	wire.Append(nil, &wire.Connect{Server: "s", Inner: make([]byte, wire.MaxBody)})
}

func TestReadTellsEmptyFromCutStream(t *testing.T) {
	whole := wire.Append(nil, &wire.Connect{Server: "nas"})
	for n := range whole {
		want := io.ErrUnexpectedEOF
		if n == 0 {
			want = io.EOF
		}
		if m, err := wire.Read(bytes.NewReader(whole[:n])); err != want || m != nil { //nolint:errorlint // io.EOF must come bare
			t.Errorf("%d bytes: %v, %v; want %v", n, m, err, want)
		}
	}
	broken := errors.New("broken")
	if _, err := wire.Read(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("the reader's error became %v", err)
	}
}

func TestHeartbeatDrawsAStatelessReset(t *testing.T) {
	for _, h := range []wire.Heartbeat{{}, {Seq: 1}, {Seq: maxVarint, Echo: maxVarint}} {
		if n := len(wire.Append(nil, &h)); n < 32 {
			t.Errorf("%+v has %d bytes", h, n)
		}
	}
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		offset := rapid.OneOf(rapid.Just(uint64(0)), rapid.Uint64Range(1, 1<<24), rapid.Uint64Range(0, maxVarint))
		want := wire.Frame{
			Kind:  wire.FrameKind(rapid.IntRange(0, int(wire.FrameYield)).Draw(t, "kind")),
			Acked: offset.Draw(t, "acked"),
			Limit: offset.Draw(t, "limit"),
		}
		switch want.Kind {
		case wire.FrameData:
			want.Value = rapid.Uint64Range(1, wire.MaxFrameData).Draw(t, "value")
		case wire.FrameReset, wire.FrameYield:
			want.Value = offset.Draw(t, "value")
		}
		encoded := want.Append([]byte{0xff})[1:]
		if len(encoded) != want.Len() || len(encoded) > wire.MaxFrameHeader {
			t.Fatalf("%d bytes; Len says %d", len(encoded), want.Len())
		}
		got, n, err := wire.ParseFrame(append(bytes.Clone(encoded), rapid.SliceOf(rapid.Byte()).Draw(t, "rest")...))
		if err != nil || n != len(encoded) || got != want {
			t.Fatalf("%+v, %d, %v; want %+v", got, n, err, want)
		}
		for cut := range encoded {
			if _, _, err := wire.ParseFrame(encoded[:cut]); err != io.ErrUnexpectedEOF { //nolint:errorlint // never wrapped
				t.Fatalf("%d bytes of %d: %v", cut, len(encoded), err)
			}
		}
	})
}

func TestFrameStrictness(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"unknown kind", []byte{7}, "frame kind 7 is unknown"},
		{"unknown kind with flags", []byte{0xff}, "frame kind 63 is unknown"},
		{"empty data", []byte{1, 0}, "a data frame of 0 bytes"},
		{"data over the limit", quicvarint.Append([]byte{1}, wire.MaxFrameData+1), "a data frame of 1048577 bytes"},
	} {
		if _, _, err := wire.ParseFrame(c.in); !errors.Is(err, wire.ErrMalformed) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

func TestTokenIsNeverPrinted(t *testing.T) {
	open := wire.Open{Token: wire.Token(bytes.Repeat([]byte{0xab}, 16))}
	asJSON, err := json.Marshal(open)
	if err != nil {
		t.Fatal(err)
	}
	for _, printed := range []string{
		fmt.Sprint(open), fmt.Sprintf("%+v", open), fmt.Sprintf("%#v", open), fmt.Sprintf("%x", open.Token), open.Token.String(), string(asJSON),
	} {
		if strings.Contains(strings.ToLower(printed), "abab") || strings.Contains(printed, "171") || strings.Contains(printed, "0xab") {
			t.Errorf("the token is in %s", printed)
		}
		if !strings.Contains(printed, open.Token.ConnectionID()) && !strings.Contains(printed, fmt.Sprintf("%x", open.Token.String())) {
			t.Errorf("no connection ID in %s", printed)
		}
	}
}

func TestCheckID(t *testing.T) {
	for _, id := range []string{"a", "0", "nas", "build-1.ci_x", "a..b", strings.Repeat("a", 63)} {
		if err := wire.CheckID(id); err != nil {
			t.Errorf("%q: %v", id, err)
		}
	}
	for id, want := range map[string]string{
		"":                      "empty",
		strings.Repeat("a", 64): "63 is the most",
		"-a":                    "begins or ends",
		"a.":                    "begins or ends",
		"_":                     "begins or ends",
		"Nas":                   "'N'",
		"a b":                   "' '",
		"naïve":                 "only a-z 0-9 . _ - may be used",
		"a/b":                   "'/'",
		"a*":                    "'*'",
	} {
		if err := wire.CheckID(id); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want %q", id, err, want)
		}
	}
}

func TestWords(t *testing.T) {
	for got, want := range map[string]string{
		wire.StatusNotAllowed.String():                                "403 not allowed",
		wire.Status(299).String():                                     "299",
		wire.CodeRevoked.String():                                     "revoked",
		wire.CodeProtocol.String():                                    "protocol error",
		wire.StreamCode(9).String():                                   "stream code 9",
		wire.CloseSuperseded.String():                                 "superseded",
		wire.CloseCode(9).String():                                    "close code 9",
		(&wire.ResetError{Code: wire.CodeLost}).Error():               "stream reset: lost",
		(&wire.ResetError{Code: wire.CodeLost, Remote: true}).Error(): "stream reset by the peer: lost",
	} {
		if got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	f := wire.Frame{Kind: wire.FrameData, Acked: 70000, Limit: 70000, Value: 32 << 10}
	buf := make([]byte, 0, wire.MaxFrameHeader)
	b.ReportAllocs()
	for b.Loop() {
		buf = f.Append(buf[:0])
		if _, _, err := wire.ParseFrame(buf); err != nil {
			b.Fatal(err)
		}
	}
}
