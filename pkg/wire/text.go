package wire

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes a text of another node fit for logs and terminals: each character that is not
// printable becomes a space, and bytes that are not UTF-8 become U+FFFD. So the text forges no line
// of a log, colours no terminal, and hides or reverses nothing by format characters (U+202E,
// U+2066, U+200B) or separators (U+2028). A text is cleaned where it comes in and again where it is
// printed.
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
