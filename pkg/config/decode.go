package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// document is the text of one file, decoded, with the places of all that is in it.
type document struct {
	file   string
	tree   map[string]any
	index  *entry
	faults Errors // of syntax: then there is no tree
}

const byteOrderMark = "\ufeff"

func parseDocument(f File) *document {
	text := strings.TrimPrefix(string(f.Data), byteOrderMark)
	d := &document{file: f.Path}
	refuse := func(e Error) *document {
		e.File, e.Key, e.Message = f.Path, shorten(e.Key), shorten(e.Message)
		d.faults = append(d.faults, e)
		return d
	}
	at := func(offset int, message, hint string) Error {
		p := place(text, offset)
		return Error{Line: p.line, Column: p.column, Message: message, Hint: hint}
	}
	if utf16 := bytes.HasPrefix(f.Data, []byte("\xff\xfe")) || bytes.HasPrefix(f.Data, []byte("\xfe\xff")); utf16 {
		return refuse(at(0, "the file is UTF-16", "save it as UTF-8"))
	}
	if i := strings.IndexByte(text, 0); i >= 0 {
		return refuse(at(i, "there is a NUL byte", "is this a text file, saved as UTF-8?"))
	}
	if i := invalidUTF8(text); i >= 0 {
		return refuse(at(i, fmt.Sprintf("the byte 0x%02x is not UTF-8", text[i]), "save the file as UTF-8"))
	}
	index, deep, err := buildIndex(text)
	if err != nil {
		return refuse(at(deep, fmt.Sprintf("nested more than %d deep", maxDepth), ""))
	}
	tree, err := decodeTOML(text)
	for _, r := range index.repeats {
		d.faults = append(d.faults, r.fault(f.Path))
	}
	parseError, isParseError := errors.AsType[toml.ParseError](err)
	switch {
	case isParseError && len(index.repeats) > 0 && strings.HasPrefix(parseError.Message, "Key '"): // it is one of them
	case isParseError:
		return refuse(explainSyntax(text, parseError))
	case err != nil:
		return refuse(at(0, err.Error(), ""))
	}
	if len(d.faults) > 0 {
		return d
	}
	d.tree, d.index = tree, index.root
	return d
}

// fault says that a key is defined twice.
func (r repeat) fault(file string) Error {
	e := Error{File: file, Line: r.at.line, Column: r.at.column, Key: shorten(r.key), Message: "is there twice"}
	e.Hint = fmt.Sprintf("take it out here or in line %d", r.first.line)
	if r.list {
		e.Hint = fmt.Sprintf("a table is [name], one of a list is [[name]]; line %d has it in the other way", r.first.line)
	}
	return e
}

// decodeTOML asks the library. Where it meets what its authors call a bug it panics instead of returning an error; a
// text that makes it do so must not end the daemon, which has a configuration that works.
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

// explainSyntax turns the library's error into a place and words of ours. What stands in the text is not repeated: it
// may be a key that was pasted without its quotes.
func explainSyntax(text string, e toml.ParseError) Error {
	at := place(text, e.Position.Start)
	fault := Error{Line: at.line, Column: at.column}
	message := strings.TrimSuffix(e.Message, ".")
	switch {
	case strings.HasPrefix(message, "expected value but found"):
		fault.Message, fault.Hint = "there is no value here", `a string stands in quotes: key = "value"`
	case strings.Contains(message, "leading zeroes"):
		fault.Message, fault.Hint = "a number may not begin with 0", `permissions are strings: listen_mode = "0660"`
	case message == "strings cannot contain newlines":
		fault.Message, fault.Hint = "the string does not end on its line", "close it with the quote that opened it"
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

// invalidUTF8 returns the offset of the first byte that isn't, or -1.
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

// globs returns the patterns of the include key; a key of a wrong type is Parse's to report.
func (d *document) globs(path string) []glob {
	var list []any
	switch value := d.tree["include"].(type) {
	case []any:
		list = value
	case string:
		list = []any{value}
	default:
		return []glob{defaultGlob(path)}
	}
	var globs []glob
	for _, item := range list {
		if pattern, ok := item.(string); ok && checkPattern(pattern) == nil {
			globs = append(globs, newGlob(filepath.Dir(path), pattern))
		}
	}
	return globs
}

// checkPattern refuses what could never be the name of a file.
func checkPattern(pattern string) error {
	if pattern == "" {
		return errors.New("is empty")
	}
	if _, err := filepath.Match(pattern, ""); err != nil {
		return fmt.Errorf("%q is not a pattern", pattern)
	}
	return nil
}

// defaultGlob is NAME.d/*.toml beside NAME.toml.
func defaultGlob(path string) glob {
	return glob{base: strings.TrimSuffix(path, ".toml") + ".d", parts: []string{"*.toml"}}
}

// section is one table of the text, read key by key. Each getter reports a wrong type, and says whether there is a value
// to work with.
type section struct {
	*faults
	file   string
	table  string // "" at the top, "peers"
	role   Role
	values map[string]any
	at     *entry

	included bool // the top of a file that another includes
}

// full returns the name of a key with its table: "peers.id".
func (s *section) full(key string) string {
	key = bareOrQuoted(key) // quoted, it is none of ours
	if s.table == "" {
		return key
	}
	return s.table + "." + key
}

// spot is where the value of a key stands; where there is none, where its table begins.
func (s *section) spot(key string) spot {
	return spot{s.file, s.at.child(key).value, s.full(key)}
}

func (s *section) spotOfName(key string) spot {
	return spot{s.file, s.at.child(key).name, s.full(key)}
}

// missing reports that a key which must be there is not.
func (s *section) missing(key string) {
	k := keysByName[s.full(key)]
	hint := "write " + k.Example
	if k.Example == "" {
		hint = "add " + k.title()
	}
	s.add(spot{s.file, s.at.value, k.Name}, hint, "is missing")
}

// bareOrQuoted returns a key as it stands in TOML.
func bareOrQuoted(key string) string {
	bad := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}
	if key == "" || strings.ContainsFunc(key, bad) {
		return strconv.Quote(key)
	}
	return key
}

// typeName says what a value is, with its article.
func typeName(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case time.Time:
		return "a date"
	case []any:
		return "a list"
	case []map[string]any:
		return "a list of tables"
	}
	return "a table"
}

// mistyped reports a value of a wrong type, and shows how it should be written.
func (s *section) mistyped(at spot, value any, want string) {
	k := keysByName[at.key]
	hint := "write " + cmp.Or(written(k, value), k.Example)
	n, isInteger := value.(int64)
	switch {
	case k.Type == typeDuration && isInteger:
		hint = fmt.Sprintf(`a duration is a string with a unit: write "%ds" or "%dm"`, n, n)
	case k.Type == typeDuration:
		hint = `a duration is a string with a unit, such as "30s" or "10m"`
	case k.Type == typeSize:
		hint = `a size is a string with a unit, such as "64KiB" or "256MiB"`
	case k.Type == typeTables:
		hint = fmt.Sprintf("write [[%s]]", k.Name)
	case k.Type == typeTable:
		hint = fmt.Sprintf("write [%s]", k.Name)
	}
	s.add(at, hint, "is %s, not %s", typeName(value), want)
}

// written returns the line, or the element of a list, that says with the right type what was written; empty if there is
// none. A public key is not repeated: it might be a private one.
func written(k Key, value any) string {
	if strings.HasSuffix(k.Name, "public_key") {
		return ""
	}
	_, name, ok := strings.Cut(k.Name, ".")
	if !ok {
		name = k.Name
	}
	list, isList := value.([]any)
	if isList && len(list) == 1 {
		value = list[0]
	}
	switch value := value.(type) {
	case int64:
		if k.Type == typeString || k.Type == typeStrings {
			return fmt.Sprintf(`"%d"`, value)
		}
	case string:
		_, notInteger := strconv.ParseInt(value, 10, 64)
		switch {
		case k.Type == typeString && isList && isPrintable(value):
			return fmt.Sprintf("%s = %q", name, value)
		case k.Type == typeBoolean && (value == "true" || value == "false"), k.Type == typeInteger && notInteger == nil:
			return name + " = " + value
		}
	}
	return ""
}

// isPrintable reports whether Go's quotes around s are TOML's.
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r >= 0x7f })
}

// scalar returns the value of a key, if it is there and of the type that is wanted.
func scalar[T any](s *section, key, want string) (T, spot, bool) {
	at := s.spot(key)
	value, ok := s.values[key]
	if !ok {
		return *new(T), at, false
	}
	typed, ok := value.(T)
	if !ok {
		s.mistyped(at, value, want)
	}
	return typed, at, ok
}

func (s *section) text(key string) (string, spot, bool) { return scalar[string](s, key, "a string") }

// required is text for a key that must be there, and not empty.
func (s *section) required(key string) (string, spot, bool) {
	value, at, ok := s.text(key)
	if _, there := s.values[key]; !there {
		s.missing(key)
	}
	if ok && value == "" {
		s.add(at, "write "+keysByName[at.key].Example, "is empty")
		ok = false
	}
	return value, at, ok
}

func (s *section) flag(key string, byDefault bool) bool {
	if value, _, ok := scalar[bool](s, key, "a boolean"); ok {
		return value
	}
	return byDefault
}

func (s *section) duration(key string, byDefault, least, most time.Duration) time.Duration {
	text, at, ok := s.text(key)
	if !ok {
		return byDefault
	}
	d, err := time.ParseDuration(text)
	switch {
	case err != nil:
		s.add(at, `write a number with a unit, such as "500ms", "30s", "10m" or "1h30m"`, "%q is not a duration", text)
	case d < least || d > most:
		s.add(at, fmt.Sprintf("it may be from %q to %q", formatDuration(least), formatDuration(most)), "%q is out of range", text)
	default:
		return d
	}
	return byDefault
}

// formatDuration writes a duration without units that are zero: "10m", where String has "10m0s".
func formatDuration(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// item is an element of a list, with its place.
type item struct {
	text string
	at   spot
}

// texts returns the elements of a list of strings. A mere string counts as a list of one.
func (s *section) texts(key string) ([]item, bool) {
	value, ok := s.values[key]
	if !ok {
		return nil, false
	}
	at := s.spot(key)
	if text, ok := value.(string); ok {
		return []item{{text, at}}, true
	}
	list, ok := value.([]any)
	if !ok {
		s.mistyped(at, value, "a string or a list of strings")
		return nil, false
	}
	items := make([]item, 0, len(list))
	for i, elem := range list {
		at.position = s.at.child(key).elem(i).value
		text, ok := elem.(string)
		if !ok {
			s.mistyped(at, elem, "a string")
			continue
		}
		items = append(items, item{text, at})
	}
	return items, true
}

// sub returns the table under a key, or nil.
func (s *section) sub(key string) *section {
	value, at, ok := scalar[map[string]any](s, key, "a table")
	if !ok || !keysByName[at.key].allows(s.role) {
		return nil
	}
	return s.within(key, value, s.at.child(key))
}

// subs returns the tables of a list.
func (s *section) subs(key string) []*section {
	value, ok := s.values[key]
	if !ok || !keysByName[key].allows(s.role) {
		return nil
	}
	var list []*section
	at := s.spot(key)
	switch value := value.(type) {
	case []map[string]any:
		for i, table := range value {
			list = append(list, s.within(key, table, s.at.child(key).elem(i)))
		}
	case []any:
		for i, elem := range value {
			table, ok := elem.(map[string]any)
			if !ok {
				at.position = s.at.child(key).elem(i).value
				s.mistyped(at, elem, "a table")
				continue
			}
			list = append(list, s.within(key, table, s.at.child(key).elem(i)))
		}
	default:
		s.mistyped(at, value, "a list of tables")
	}
	return list
}

func (s *section) within(key string, values map[string]any, at *entry) *section {
	inner := &section{faults: s.faults, file: s.file, table: key, role: s.role, values: values, at: at}
	inner.checkKeys()
	return inner
}

// checkKeys reports the keys that don't belong here: unknown ones, those of another table, those of another role.
func (s *section) checkKeys() {
	for _, key := range slices.Sorted(maps.Keys(s.values)) {
		k, known := keysByName[s.full(key)]
		switch {
		case !known:
			s.add(s.spotOfName(key), s.suggest(key), "there is no such key")
		case s.included && !slices.Contains(includable, key):
			s.add(s.spotOfName(key), "move it to the main file", "an included file has only [[peers]], [[services]] and [[mappings]]")
		case !k.allows(s.role):
			s.add(s.spotOfName(key), "", "belongs to %s, and this is a %s", roles(k.Roles), s.role)
		}
	}
}

// suggest says what an unknown key might have been meant to be.
func (s *section) suggest(key string) string {
	here := keysOf(s.table, s.role)
	if s.included {
		here = slices.DeleteFunc(here, func(k string) bool { return !slices.Contains(includable, k) })
	}
	if key == "private_key" {
		return "a private key stands in a file of its own, which private_key_file names"
	}
	if hint := didYouMean(key, here); hint != "" {
		return hint
	}
	for _, k := range keys {
		if table := k.Table(); table != s.table && k.allows(s.role) && k.Name == strings.TrimPrefix(table+"."+key, ".") {
			if table == "" {
				return "it belongs to the top of the file, before the first [table]"
			}
			return "it belongs to " + keysByName[table].title()
		}
	}
	slices.Sort(here)
	return "the keys here are " + strings.Join(here, ", ")
}

// title is how a key is written: role, [metrics], [[peers]].
func (k Key) title() string {
	switch k.Type {
	case typeTables:
		return "[[" + k.Name + "]]"
	case typeTable:
		return "[" + k.Name + "]"
	}
	return k.Name
}

// roles lists roles for people: "role server", "the roles client and server".
func roles(list []Role) string {
	words := make([]string, len(list))
	for i, r := range list {
		words[i] = string(r)
	}
	if len(words) == 1 {
		return "role " + words[0]
	}
	return "the roles " + strings.Join(words, " and ")
}
