package policy_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ptthqd/pkg/policy"
)

func pattern(t rapid.TB, s string) policy.Pattern {
	t.Helper()
	p, err := policy.ParsePattern(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPatterns(t *testing.T) {
	for _, test := range []struct {
		pattern     string
		match, miss []string
	}{
		{"nas", []string{"nas"}, []string{"", "na", "nas2", "xnas"}},
		{"*", []string{"nas", "build-7.eu"}, nil},
		{"build-*", []string{"build-", "build-7", "build-7-8"}, []string{"build", "xbuild-7"}},
		{"*-eu", []string{"nas-eu", "a-eu-eu"}, []string{"eu", "nas-eu2"}},
		{"web?", []string{"web1", "webx"}, []string{"web", "web12"}},
		{"a*b*c", []string{"abc", "axxbxxc", "abbcc"}, []string{"ab", "acb", "abcd"}},
		{"??*", []string{"ab", "abc"}, []string{"a"}},
		{"**", []string{"a"}, nil},
	} {
		p := pattern(t, test.pattern)
		if p.String() != test.pattern {
			t.Errorf("%s prints as %s", test.pattern, p)
		}
		for _, id := range test.match {
			if !p.Match(id) {
				t.Errorf("%s does not match %q", p, id)
			}
		}
		for _, id := range test.miss {
			if p.Match(id) {
				t.Errorf("%s matches %q", p, id)
			}
		}
	}
	if (policy.Pattern{}).Match("") {
		t.Error("the zero pattern matches nothing, the empty ID")
	}
}

func TestTextsThatAreNoPattern(t *testing.T) {
	for _, text := range []string{"", "NAS", "NAS*", "-nas", "*.", "nas:22", "a b", "[ab]*", "nas\n", "näs*", strings.Repeat("a", 64), strings.Repeat("*", 127)} {
		if p, err := policy.ParsePattern(text); err == nil {
			t.Errorf("%q is taken for the pattern %q", text, p)
		}
	}
}

// A pattern written to make a matcher backtrack costs nothing.
func TestPatternsDoNotExplode(t *testing.T) {
	p := pattern(t, strings.Repeat("*a", 60)+"b")
	if p.Match(strings.Repeat("a", 63)) {
		t.Error("it matches")
	}
}

func TestMatchAgreesWithTheDefinition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[ab*?]{1,12}`).Draw(t, "pattern")
		id := rapid.StringMatching(`[ab]{0,12}`).Draw(t, "id")
		if got, want := pattern(t, text).Match(id), matches(text, id); got != want {
			t.Fatalf("%s matches %q: %v, want %v", text, id, got, want)
		}
	})
}

// matches is the definition: a star takes nothing, or one character and is a star again.
func matches(pattern, id string) bool {
	switch {
	case pattern == "":
		return id == ""
	case pattern[0] == '*':
		return matches(pattern[1:], id) || id != "" && matches(pattern, id[1:])
	case id == "":
		return false
	}
	return (pattern[0] == '?' || pattern[0] == id[0]) && matches(pattern[1:], id[1:])
}
