package wire_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/wire"
)

var exampleToken = wire.Token{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

// A framed is a frame header with its data.
type framed struct {
	header wire.Frame
	data   string
}

// examples has the values of section 8 of PROTOCOL.md by heading: a message, or a row of frames.
var examples = map[string]any{
	"connect with open": &wire.Connect{Server: "nas", Inner: wire.Append(nil, &wire.Open{
		Version: 1, Token: exampleToken, Attempt: 2, Age: 1500 * time.Millisecond,
		Source: "127.0.0.1:50012", Target: ":22", Limit: 65536, ResumeTimeout: 10 * time.Minute,
	})},
	"incoming with resume": &wire.Incoming{Client: "laptop", Inner: wire.Append(nil, &wire.Resume{
		Version: 1, Token: exampleToken, Attempt: 3, Source: "127.0.0.1:50012", Target: ":22",
		Received: 1000, Acked: 900, Limit: 66436, Unconfirmed: true,
	})},
	"incoming under two names": &wire.Incoming{
		Client: "notebook", Others: []string{"laptop"},
		Inner: wire.Append(nil, &wire.Resume{
			Version: 1, Token: exampleToken, Attempt: 3, Source: "127.0.0.1:50012", Target: ":22",
			Received: 1000, Acked: 900, Limit: 66436, Unconfirmed: true,
		}),
	},
	"reply: open": &wire.Reply{Status: wire.StatusOpen, Node: "nas", Inner: wire.Append(nil, &wire.Granted{
		Version: 1, Limit: 65536, ResumeTimeout: 10 * time.Minute,
	})},
	"reply: ended by a reset": &wire.Reply{
		Status: wire.StatusComplete, Node: "nas",
		Inner: wire.Append(nil, &wire.Granted{
			Version: 1, Limit: 65543, Received: 7, Acked: 7, Reset: true,
		}),
	},
	"reply: refused": &wire.Reply{
		Status: wire.StatusNotAllowed, Text: "laptop may not reach db", Node: "relay",
	},
	"connect: another attempt to resume": &wire.Connect{
		Server: "nas", Hold: true,
		Inner: wire.Append(nil, &wire.Resume{
			Version: 1, Token: exampleToken, Attempt: 3, Source: "127.0.0.1:50012", Target: ":22",
			Received: 1000, Acked: 900, Limit: 66436,
		}),
	},
	"control":                 &wire.Control{},
	"control of an instance":  &wire.Control{Instance: wire.Instance{1, 2, 3, 4, 5, 6, 7, 8}},
	"contested":               &wire.Contested{From: "192.0.2.9:40000"},
	"revoked: all but two":    &wire.Revoked{Client: "laptop", Kept: []string{":80", "ssh"}},
	"heartbeat":               &wire.Heartbeat{Seq: 7, Echo: 6},
	"heartbeat with parity":   &wire.Heartbeat{Seq: 7, Echo: 6, Parity: true, Restored: 300},
	"closing":                 &wire.Closing{},
	"welcome":                 &wire.Welcome{Name: "storage"},
	"revoked":                 &wire.Revoked{Client: "laptop", Target: ":22"},
	"frame: data with an ack": []framed{{wire.Frame{Kind: wire.FrameData, Acked: 100, Limit: 100, Value: 5}, "hello"}},
	"frame: a bare ack":       []framed{{wire.Frame{Kind: wire.FrameNone, Acked: 16384}, ""}},
	"frame: fin":              []framed{{wire.Frame{Kind: wire.FrameFin}, ""}},
	"frame: reset":            []framed{{wire.Frame{Kind: wire.FrameReset}, ""}},
	"frame: ping, pong": []framed{
		{wire.Frame{Kind: wire.FramePing}, ""}, {wire.Frame{Kind: wire.FramePong}, ""},
	},
	"frame: yield": []framed{{wire.Frame{Kind: wire.FrameYield, Value: 65536}, ""}},
}

// documented returns the bytes of the examples in PROTOCOL.md by heading.
func documented(t *testing.T) map[string][]byte {
	t.Helper()
	document, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(document), "\n## 8. Examples\n")
	if !found {
		t.Fatal("PROTOCOL.md has no section 8")
	}
	all := make(map[string][]byte)
	for _, part := range strings.Split(section, "\n### ")[1:] {
		name, rest, _ := strings.Cut(part, "\n")
		_, rest, _ = strings.Cut(rest, "```\n")
		block, _, found := strings.Cut(rest, "\n```")
		if !found {
			t.Fatalf("example %q has no block", name)
		}
		var digits strings.Builder
		for line := range strings.Lines(block) {
			code, _, _ := strings.Cut(line, ";")
			digits.WriteString(strings.Join(strings.Fields(code), ""))
		}
		if all[name], err = hex.DecodeString(digits.String()); err != nil {
			t.Fatalf("example %q: %v", name, err)
		}
	}
	return all
}

func TestDocumentedExamples(t *testing.T) {
	all := documented(t)
	for name := range all {
		if examples[name] == nil {
			t.Errorf("the test has no value for example %q", name)
		}
	}
	for name, value := range examples {
		want, found := all[name]
		if !found {
			t.Errorf("PROTOCOL.md has no example %q", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			switch value := value.(type) {
			case wire.Message:
				if got := wire.Append(nil, value); !bytes.Equal(got, want) {
					t.Errorf("encoded\n%x, documented\n%x", got, want)
				}
				got, n, err := wire.Parse(want)
				if err != nil || n != len(want) || !reflect.DeepEqual(got, value) {
					t.Errorf("decoded %+v, %d, %v; want %+v, %d", got, n, err, value, len(want))
				}
			case []framed:
				checkFrames(t, value, want)
			}
		})
	}
}

func checkFrames(t *testing.T, frames []framed, want []byte) {
	t.Helper()
	var got []byte
	for _, f := range frames {
		got = append(f.header.Append(got), f.data...)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("encoded\n%x, documented\n%x", got, want)
	}
	for _, f := range frames {
		header, n, err := wire.ParseFrame(want)
		if err != nil || header != f.header {
			t.Fatalf("decoded %+v, %v; want %+v", header, err, f.header)
		}
		want = want[n:]
		if header.Kind == wire.FrameData {
			if string(want[:header.Value]) != f.data {
				t.Errorf("data %q; want %q", want[:header.Value], f.data)
			}
			want = want[header.Value:]
		}
	}
	if len(want) > 0 {
		t.Errorf("%x is left", want)
	}
}

func TestDocumentedConnectionID(t *testing.T) {
	document, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	want := "is `" + exampleToken.ConnectionID() + "`"
	if !strings.Contains(string(document), want) {
		t.Errorf("PROTOCOL.md doesn't say that the connection ID %s", want)
	}
}

// subsection returns the text of PROTOCOL.md between a heading and the next one.
func subsection(t *testing.T, heading string) string {
	t.Helper()
	document, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(document), "\n"+heading+"\n")
	if !found {
		t.Fatalf("PROTOCOL.md has no heading %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n#")
	return text
}

// The table of statuses has each of the code's, in the code's words.
func TestDocumentedStatuses(t *testing.T) {
	rows := regexp.MustCompile(`(?m)^\| (\d{3}) \| ([^|]+) \|`).
		FindAllStringSubmatch(subsection(t, "### 4.2 Status codes"), -1)
	if len(rows) != 12 {
		t.Fatalf("section 4.2 has %d statuses", len(rows))
	}
	for _, row := range rows {
		var status wire.Status
		if _, err := fmt.Sscan(row[1], (*uint64)(&status)); err != nil {
			t.Fatal(err)
		}
		if want := row[1] + " " + row[2]; status.String() != want {
			t.Errorf("documented %q, in the code %q", want, status)
		}
	}
}

// The codes of streams and of links are in their tables with their names.
func TestDocumentedCodes(t *testing.T) {
	streams := subsection(t, "### 5.10 Stream codes and revocation")
	for code := wire.CodeLost; code <= wire.CodeProtocol; code++ {
		if !strings.Contains(streams, fmt.Sprintf("\n| %d `%v` | ", code, code)) {
			t.Errorf("stream code %d is not there as `%v`", code, code)
		}
	}
	links := subsection(t, "### 2.12 Close codes")
	for code := wire.CloseClosing; code <= wire.CloseContested; code++ {
		if !strings.Contains(links, fmt.Sprintf("\n| %d `%v` | ", code, code)) {
			t.Errorf("close code %d is not there as `%v`", code, code)
		}
	}
}

// TestDocumentedFields compares the tables of section 3 with the code. A message that has a field
// twice is refused if the code knows the field, and accepted if it does not.
func TestDocumentedFields(t *testing.T) {
	document, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| (\\d+) \\| `([a-z]+)` \\| (.*)\\|$").
		FindAllStringSubmatch(string(document), -1)
	if len(rows) != 12 {
		t.Fatalf("section 3 has %d messages", len(rows))
	}
	for _, row := range rows {
		var kind byte
		if _, err := fmt.Sscan(row[1], &kind); err != nil {
			t.Fatal(err)
		}
		known := make(map[byte]bool)
		for f := range strings.SplitSeq(row[3], ",") {
			var number byte
			if n, _ := fmt.Sscan(f, &number); n == 1 {
				known[number] = true
			}
		}
		for number := byte(1); number < 20; number++ {
			// The empty value twice: a known field is malformed or repeated.
			_, _, err := wire.Parse([]byte{kind, 4, number, 0, number, 0})
			refused := err != nil && strings.Contains(err.Error(), fmt.Sprintf("field %d", number))
			if refused != known[number] {
				t.Errorf("%s, field %d: documented %v, known to the code %v (%v)",
					row[2], number, known[number], refused, err)
			}
		}
	}
}
