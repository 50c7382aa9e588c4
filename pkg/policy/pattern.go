package policy

import (
	"strings"

	"ptthqd/pkg/wire"
)

// maxPattern is the most characters of a pattern: the longest ID with a star after each character.
const maxPattern = 2 * 63

// Pattern matches peer IDs: * stands for any number of characters, and ? for exactly one. The zero
// Pattern matches no ID. Patterns are comparable.
type Pattern struct{ text string }

// ParsePattern parses a pattern. It refuses a pattern that no ID can match, such as one with a
// capital letter.
func ParsePattern(s string) (Pattern, error) {
	if s == "" {
		return Pattern{}, fault("* matches all IDs", "it is empty")
	}
	if len(s) > maxPattern {
		return Pattern{}, fault("", "a pattern has at most %d characters, this one %d",
			maxPattern, len(s))
	}
	if !strings.ContainsAny(s, "*?") {
		if err := wire.CheckID(s); err != nil {
			return Pattern{}, &Error{Message: err.Error()}
		}
		return Pattern{s}, nil
	}
	for i, c := range []byte(s) {
		edge := i == 0 || i == len(s)-1
		switch {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '*', c == '?':
		case strings.IndexByte("._-", c) >= 0 && !edge:
		default:
			return Pattern{}, fault("IDs are made of a-z 0-9 . _ -, and begin and end in a letter or digit",
				"no ID can match %q", s)
		}
	}
	return Pattern{s}, nil
}

// String returns the pattern as it was written.
func (p Pattern) String() string { return p.text }

// Match reports whether the pattern matches the whole of id. It takes at most len(pattern) ×
// len(id) steps, since it never backtracks beyond the last star.
func (p Pattern) Match(id string) bool {
	pattern := p.text
	if pattern == "" {
		return false
	}
	i, j := 0, 0          // positions in pattern and id
	star, resume := -1, 0 // the last star, and the position in id behind what the star has taken
	for j < len(id) {
		switch {
		case i < len(pattern) && pattern[i] == '*':
			star, resume = i, j
			i++
		case i < len(pattern) && (pattern[i] == '?' || pattern[i] == id[j]):
			i++
			j++
		case star >= 0:
			resume++
			i, j = star+1, resume
		default:
			return false
		}
	}
	return strings.Trim(pattern[i:], "*") == ""
}
