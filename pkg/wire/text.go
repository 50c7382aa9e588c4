package wire

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean returns a text from elsewhere as it may be shown to people: each character that is not printable becomes a space, and what is
// not UTF-8 becomes U+FFFD. So a text forges no line, colours no terminal, and hides or turns round nothing: control characters
// go, and so do format characters (U+202E, U+2066, U+200B) and separators (U+2028). Whatever others say is cleaned where it comes in, and
// once more where it is printed.
func Clean(s string) string {
	for i := range len(s) {
		if s[i] < ' ' || s[i] >= 0x7f {
			return cleanAll(s)
		}
	}
	return s
}

func cleanAll(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// clean cleans s and cuts it between characters to at most n bytes.
func clean(s string, n int) string {
	s = Clean(s)
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
