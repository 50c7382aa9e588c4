package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"ptthqd/pkg/config/tomlpos"
)

// document is the text of one file, decoded.
type document struct {
	file   string
	tree   map[string]any // nil if the text is not TOML
	root   *tomlpos.Node  // the positions, in the shape of tree
	faults Errors         // of the syntax
}

const byteOrderMark = "\ufeff"

// parseDocument decodes a file. It finds faults of the syntax alone, and never fails.
func parseDocument(f File) *document {
	text := strings.TrimPrefix(string(f.Data), byteOrderMark)
	d := &document{file: f.Path}
	refuse := func(e Error) *document {
		e.File, e.Key, e.Message = f.Path, shorten(e.Key), shorten(e.Message)
		d.faults = append(d.faults, e)
		return d
	}
	at := func(offset int, message, hint string) Error {
		p := tomlpos.At(text, offset)
		return Error{Line: p.Line, Column: p.Column, Message: message, Hint: hint}
	}
	if utf16 := bytes.HasPrefix(f.Data, []byte("\xff\xfe")) ||
		bytes.HasPrefix(f.Data, []byte("\xfe\xff")); utf16 {
		return refuse(at(0, "the file is UTF-16", "save it as UTF-8"))
	}
	if i := strings.IndexByte(text, 0); i >= 0 {
		return refuse(at(i, "there is a NUL byte", "is this a text file, saved as UTF-8?"))
	}
	if i := invalidUTF8(text); i >= 0 {
		return refuse(at(i, fmt.Sprintf("the byte 0x%02x is not UTF-8", text[i]),
			"save the file as UTF-8"))
	}
	positions, err := tomlpos.Scan(text)
	if deep, ok := errors.AsType[*tomlpos.TooDeepError](err); ok {
		return refuse(Error{Line: deep.At.Line, Column: deep.At.Column, Message: deep.Error()})
	}
	tree, err := decodeTOML(text)
	for _, r := range positions.Repeats {
		d.faults = append(d.faults, repeatFault(f.Path, r))
	}
	parseError, isParseError := errors.AsType[toml.ParseError](err)
	switch {
	case isParseError && len(positions.Repeats) > 0 &&
		strings.HasPrefix(parseError.Message, "Key '"):
		// The library has found one of the repeats.
	case isParseError:
		return refuse(explainSyntax(text, parseError))
	case err != nil:
		return refuse(at(0, err.Error(), ""))
	}
	if len(d.faults) > 0 {
		return d
	}
	d.tree, d.root = tree, positions.Root
	return d
}

// repeatFault says that a key is defined twice.
func repeatFault(file string, r tomlpos.Repeat) Error {
	e := Error{
		File: file, Line: r.At.Line, Column: r.At.Column, Key: shorten(r.Key),
		Message: "is there twice",
		Hint:    fmt.Sprintf("take it out here or in line %d", r.First.Line),
	}
	if r.List {
		e.Hint = fmt.Sprintf("a table is [name], one of a list is [[name]]; "+
			"line %d has it in the other way", r.First.Line)
	}
	return e
}

// decodeTOML decodes a text with the library. The library panics where it meets what its authors
// call a bug; such a text must not end a daemon, which has a configuration that works.
func decodeTOML(text string) (tree map[string]any, err error) {
	defer func() {
		if bug := recover(); bug != nil {
			err = fmt.Errorf("not valid TOML (%.100v)", bug)
		}
	}()
	tree = make(map[string]any)
	_, err = toml.Decode(text, &tree)
	return tree, err
}

// explainSyntax turns the library's error into a position and words of ours. It doesn't repeat the
// text: that may be a private key, pasted without its quotes.
func explainSyntax(text string, e toml.ParseError) Error {
	at := tomlpos.At(text, e.Position.Start)
	fault := Error{Line: at.Line, Column: at.Column}
	message := strings.TrimSuffix(e.Message, ".")
	switch {
	case strings.HasPrefix(message, "expected value but found"):
		fault.Message = "there is no value here"
		fault.Hint = `a string stands in quotes: key = "value"`
	case strings.Contains(message, "leading zeroes"):
		fault.Message = "a number may not begin with 0"
		fault.Hint = `permissions are strings: listen_mode = "0660"`
	case message == "strings cannot contain newlines":
		fault.Message = "the string does not end on its line"
		fault.Hint = "close it with the quote that opened it"
	case strings.Contains(message, "control characters"):
		fault.Message, fault.Hint = "there is a control character", "is this a text file?"
	default:
		fault.Message = "not TOML: " + message
		for _, h := range syntaxHints {
			if strings.Contains(message, h.words) {
				fault.Hint = h.hint
				break
			}
		}
	}
	return fault
}

var syntaxHints = []struct{ words, hint string }{
	{"array terminator", `elements are separated by commas: ["a", "b"]`},
	{"inline table terminator", `pairs are separated by commas: { a = 1, b = 2 }`},
	{"has already been defined", "take one of the two out"},
	{"table array name", "a table is [name], one of a list is [[name]]"},
	{"table name", "a table is [name], one of a list is [[name]]"},
	{"was already created", "a table is [name], one of a list is [[name]]"},
	{"'.' or '='", `a line is a key and its value: key = "value"`},
	{"key name appears blank", `a line is a key and its value: key = "value"`},
	{"top-level item to end", "one key and its value on a line; a string stands in quotes"},
	{"escape", `a string in '...' takes \ as it is`},
}

// invalidUTF8 returns the offset of the first byte that is not UTF-8, or -1.
func invalidUTF8(text string) int {
	if utf8.ValidString(text) {
		return -1
	}
	for i, r := range text {
		if r != utf8.RuneError {
			continue
		}
		if _, n := utf8.DecodeRuneInString(text[i:]); n == 1 {
			return i
		}
	}
	return -1
}
