package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"ptthqd/pkg/config/tomlpos"
	"ptthqd/pkg/policy"
)

// maxErrors is how many faults one [Parse] lists. Further ones are only counted.
const maxErrors = 50

// Error is one fault in the text of a configuration: where it stands, which key it is about, what
// is wrong, and what to write instead. It never repeats a value that might be a pasted private key.
type Error struct {
	File    string `json:"file"`             // as it was named or found, not resolved
	Line    int    `json:"line"`             // from 1
	Column  int    `json:"column"`           // in characters, from 1
	Key     string `json:"key,omitempty"`    // "peers.public_key"; empty when no key is to blame
	Message string `json:"message"`          // what is wrong
	Hint    string `json:"hint,omitempty"`   // what would be right; may be empty
	Others  int    `json:"others,omitempty"` // on the last of a shortened list: how many more
}

// Error returns "file:line:column: key: message; hint".
func (e Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s:%d:%d: ", e.File, e.Line, e.Column)
	if e.Key != "" {
		b.WriteString(e.Key + ": ")
	}
	b.WriteString(e.Message)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	if e.Others > 0 {
		fmt.Fprintf(&b, " (and %d more)", e.Others)
	}
	return b.String()
}

// Errors are all faults in the text of a configuration, at most [maxErrors] of them, in the order
// of the text, the main file first. A program that ends because of them exits with 78 (EX_CONFIG),
// because a restart with the same text would fail again.
type Errors []Error

// Error returns one line for each fault.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, fault := range e {
		lines[i] = fault.Error()
	}
	return strings.Join(lines, "\n")
}

// faults collects the errors of one Parse.
type faults struct {
	files []string // gives the order of the files
	list  Errors
}

func (f *faults) add(at location, hint, format string, args ...any) {
	f.list = append(f.list, Error{
		File: at.file, Line: at.Line, Column: at.Column, Key: shorten(at.key),
		Message: shorten(fmt.Sprintf(format, args...)), Hint: shorten(hint),
	})
}

// shorten cuts text from a configuration to 300 bytes and quotes control characters, so that it can
// neither fill nor spoil a log: a quoted key may hold anything.
func shorten(text string) string {
	const most = 300
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		text = strconv.Quote(text)
	}
	return text
}

// errors returns the collected faults, sorted and cut to maxErrors, or nil.
func (f *faults) errors() error {
	if len(f.list) == 0 {
		return nil
	}
	order := make(map[string]int, len(f.files))
	for i, name := range f.files {
		order[name] = i
	}
	slices.SortStableFunc(f.list, func(a, b Error) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column))
	})
	if more := len(f.list) - maxErrors; more > 0 {
		f.list = f.list[:maxErrors:maxErrors]
		f.list[maxErrors-1].Others = more
	}
	return f.list
}

// location is where a value stands, with the name of its key.
type location struct {
	file string
	tomlpos.Position
	key string
}

func (l location) source() policy.Source { return policy.Source{File: l.file, Line: l.Line} }
