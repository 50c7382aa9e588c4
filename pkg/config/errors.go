package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// maxErrors bounds the list that one [Parse] reports; what is beyond it is counted only.
const maxErrors = 50

// Error is one fault in the text of a configuration: where it stands, which key it is about, what is wrong with
// it, and what to write instead. It never repeats the value of a key of which a private one might have been pasted.
type Error struct {
	File    string `json:"file"`             // as it was named or found, not resolved
	Line    int    `json:"line"`             // from 1
	Column  int    `json:"column"`           // in characters, from 1
	Key     string `json:"key,omitempty"`    // "log_level", "peers.public_key"; empty when no key is to blame
	Message string `json:"message"`          // what is wrong
	Hint    string `json:"hint,omitempty"`   // what would be right; may be empty
	Others  int    `json:"others,omitempty"` // on the last of a list that was cut short: how many more there are
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

// Errors are all faults in the text of a configuration, in the order in which they stand there (the main file first),
// at most [maxErrors] of them. A program that ends because of them exits with 78 (EX_CONFIG): to start it again on the
// same text would be pointless.
type Errors []Error

// Error returns one line for each fault.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, fault := range e {
		lines[i] = fault.Error()
	}
	return strings.Join(lines, "\n")
}

// HostError is a fault of the host, not of the text: a file that is missing or must not be read. A program that ends
// because of one exits with 1, and may well succeed when it is started again.
type HostError struct {
	Op   string // "read", "list"
	Path string
	Err  error
	Hint string // the command that mends it; may be empty
}

// Error returns "op path: reason; hint".
func (e *HostError) Error() string {
	text := e.Op + " " + e.Path + ": " + e.Err.Error()
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Unwrap gives the operating system's error, so that a caller can tell [fs.ErrNotExist], a file that may come back.
func (e *HostError) Unwrap() error { return e.Err }

// faults collects the errors of one Parse.
type faults struct {
	files []string // gives the order of the files
	list  Errors
}

func (f *faults) add(at spot, hint, format string, args ...any) {
	f.list = append(f.list, Error{
		File: at.file, Line: at.line, Column: at.column, Key: shorten(at.key),
		Message: shorten(fmt.Sprintf(format, args...)), Hint: shorten(hint),
	})
}

// shorten keeps what was taken from the text from filling a log, or spoiling one: a quoted key may hold anything.
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

// errors returns what was collected, sorted and cut to maxErrors, or nil.
func (f *faults) errors() error {
	if len(f.list) == 0 {
		return nil
	}
	order := make(map[string]int, len(f.files))
	for i, name := range f.files {
		order[name] = i
	}
	slices.SortStableFunc(f.list, func(a, b Error) int {
		return cmp.Or(cmp.Compare(order[a.File], order[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if more := len(f.list) - maxErrors; more > 0 {
		f.list = f.list[:maxErrors:maxErrors]
		f.list[maxErrors-1].Others = more
	}
	return f.list
}

// spot is where a value stands, and the name of its key.
type spot struct {
	file string
	position
	key string
}

// didYouMean returns a hint that names the candidate nearest to word, or "" when none is near: at most a third of
// the letters differ (a swap of two neighbours counts as one).
func didYouMean(word string, candidates []string) string {
	best, distance := "", len(word)/3+1
	for _, c := range candidates {
		if d := editDistance(strings.ToLower(word), c); d < distance || d == distance && best == "" {
			best, distance = c, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("did you mean %q?", best)
}

// editDistance is the optimal string alignment distance, in bytes. Words that are longer than any of ours are far from all.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}

// oneOf lists the allowed values for a hint: `one of "debug", "info"`.
func oneOf(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	return "one of " + strings.Join(quoted, ", ")
}
