package wire_test

import (
	"testing"
	"unicode"
	"unicode/utf8"

	"ptthqd/pkg/wire"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                               "",
		"a reason: 42 %":                 "a reason: 42 %",
		"größer, 大きい":                    "größer, 大きい",
		"\x1b[2J\x1b]0;title\a":          " [2J ]0;title ",
		"one\ntwo\r\tthree\x7f\u009b31m": "one two  three  31m",
		"\u202egnp.exe\u202c":            " gnp.exe ",
		"\u2066a\u2069 b\u200bc":         " a  b c",
		"a\u2028b\u2029c\ufeffd\u00a0e":  "a b c d e",
		"\U000e0041 \ue000":              "   ",
		"\xff\xfe\x00":                   "\ufffd ",
	} {
		if got := wire.Clean(in); got != want {
			t.Errorf("%q becomes %q, not %q", in, got, want)
		}
	}
}

// FuzzClean: what comes out is printable, and stays as it is.
func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "plain", "\x1b[31m", "\u202ea\u2066b\u200bc\u2028d", "\xff\xc0", "ü\u0085"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := wire.Clean(s)
		if !utf8.ValidString(got) || wire.Clean(got) != got {
			t.Fatalf("%q becomes %q", s, got)
		}
		for _, r := range got {
			if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Co, unicode.Cs) {
				t.Fatalf("%q becomes %q, with %U", s, got, r)
			}
		}
	})
}

// What an old or hostile peer sends besides control characters is cleaned where it comes in.
func TestReceivedTextIsClean(t *testing.T) {
	// A reply as no encoder of this package makes it.
	raw := wire.Append(nil, &wire.Reply{Status: 502, Text: "aXXXb"})
	for i := range raw {
		if string(raw[i:min(i+3, len(raw))]) == "XXX" {
			copy(raw[i:], "\u202e")
		}
	}
	m, _, err := wire.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := m.(*wire.Reply).Text; got != "a b" {
		t.Errorf("the text is %q", got)
	}
}
