package config

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxDepth bounds how deep arrays, inline tables and dotted keys may nest. The configuration needs three levels; the
// library recurses without a bound of its own, so the index, which is built first, is what protects the stack.
const maxDepth = 32

var errTooDeep = errors.New("nested too deep")

// position is a place in a text: line and column (in characters), both from 1.
type position struct{ line, column int }

// place returns the position of a byte offset.
func place(text string, offset int) position {
	offset = min(max(offset, 0), len(text))
	head := text[:offset]
	start := strings.LastIndexByte(head, '\n') + 1
	return position{strings.Count(head, "\n") + 1, utf8.RuneCountInString(head[start:]) + 1}
}

// entry is where one key, table or element of an array stands. The tree of entries has the shape of the tree that the
// library decodes, which gives no place for unknown keys, nor for anything within an array of tables.
type entry struct {
	kind  entryKind
	name  position          // of the key; of an element: where it begins
	value position          // of the value; of a table with a header: where the header begins
	keys  map[string]*entry // of a table
	elems []*entry          // of an array, also of one of tables
}

type entryKind uint8

const (
	isValue   entryKind = iota // an inline table, too
	isImplied                  // a table of which there are only keys below it (so far)
	isTable                    // a table with a header
	isList                     // an array of tables with headers
)

// child returns the entry of a key, or e where there is none: the nearest place that is known.
func (e *entry) child(key string) *entry {
	if c := e.keys[key]; c != nil {
		return c
	}
	return e
}

// elem returns the entry of an array's element, or e.
func (e *entry) elem(i int) *entry {
	if i < len(e.elems) {
		return e.elems[i]
	}
	return e
}

func (e *entry) set(key string, child *entry) {
	if e.keys == nil {
		e.keys = make(map[string]*entry)
	}
	e.keys[key] = child
}

// repeat is a key that is defined twice. The library finds most of them, one at a time, and loses the value of the rest.
type repeat struct {
	key       string
	at, first position
	list      bool // once as a list of tables, once not
}

// index says where everything in a text stands.
type index struct {
	root    *entry
	repeats []repeat
}

// buildIndex finds the place of each key and element. It reads TOML 1.1, and takes for granted that the text is well
// formed: where it isn't, the index ends there without an error, since the library says what is wrong. The only error
// is errTooDeep, with the offset.
func buildIndex(text string) (index, int, error) {
	start := position{1, 1}
	s := &scanner{text: text, last: start}
	root := &entry{kind: isTable, name: start, value: start}
	err := s.document(root)
	if errors.Is(err, errTooDeep) {
		return index{root, s.repeats}, s.off, err
	}
	return index{root, s.repeats}, 0, nil
}

// errMalformed ends the index early: the text isn't TOML.
var errMalformed = errors.New("malformed")

type scanner struct {
	text string
	off  int

	// The place of the offset asked for last: places are asked for in rising order, so that all of them together
	// cost one pass over the text.
	asked int
	last  position

	repeats []repeat
}

func (s *scanner) here() position {
	for _, r := range s.text[s.asked:s.off] {
		if r == '\n' {
			s.last = position{s.last.line + 1, 1}
		} else {
			s.last.column++
		}
	}
	s.asked = s.off
	return s.last
}

// peek returns the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.off < len(s.text) {
		return s.text[s.off]
	}
	return 0
}

func (s *scanner) accept(token string) bool {
	if strings.HasPrefix(s.text[s.off:], token) {
		s.off += len(token)
		return true
	}
	return false
}

func (s *scanner) skipSpaces() {
	for s.peek() == ' ' || s.peek() == '\t' {
		s.off++
	}
}

// skipBlank skips white space, line ends and comments.
func (s *scanner) skipBlank() {
	for {
		switch s.peek() {
		case ' ', '\t', '\r', '\n':
			s.off++
		case '#':
			s.skipTo("\n")
		default:
			return
		}
	}
}

// skipTo moves to the next of the given bytes, or to the end.
func (s *scanner) skipTo(bytes string) {
	if i := strings.IndexAny(s.text[s.off:], bytes); i >= 0 {
		s.off += i
	} else {
		s.off = len(s.text)
	}
}

func (s *scanner) document(root *entry) error {
	table, name := root, ""
	for {
		s.skipBlank()
		if s.off == len(s.text) {
			return nil
		}
		var err error
		if s.peek() == '[' {
			table, name, err = s.header(root)
		} else {
			err = s.pair(table, name, 0)
		}
		if err != nil {
			return err
		}
	}
}

// header reads [a.b] or [[a.b]], and returns the table that it opens, and its name.
func (s *scanner) header(root *entry) (*entry, string, error) {
	start := s.here()
	s.off++
	list := s.accept("[")
	k, err := s.path(root, "")
	if err != nil {
		return nil, "", err
	}
	if !s.accept("]") || list && !s.accept("]") {
		return nil, "", errMalformed
	}
	opened := &entry{kind: isTable, name: k.at, value: start}
	e := k.table.keys[k.last]
	switch {
	case e == nil && list:
		e = &entry{kind: isList, name: k.at, value: start}
		k.table.set(k.last, e)
	case e == nil:
		k.table.set(k.last, opened)
		return opened, k.name, nil
	case e.kind == isImplied && !list:
		e.kind, e.name, e.value = isTable, k.at, start
		return e, k.name, nil
	case e.kind != isList || !list:
		s.repeats = append(s.repeats, repeat{k.name, k.at, e.name, list || e.kind == isList})
		return opened, k.name, nil
	}
	e.elems = append(e.elems, opened)
	return opened, k.name, nil
}

// pair reads key = value into the table, which has the given name.
func (s *scanner) pair(table *entry, name string, depth int) error {
	k, err := s.path(table, name)
	if err != nil {
		return err
	}
	if !s.accept("=") {
		return errMalformed
	}
	s.skipSpaces()
	e, err := s.scan(k.name, depth)
	if err != nil {
		return err
	}
	e.name = k.at
	if first := k.table.keys[k.last]; first != nil {
		s.repeats = append(s.repeats, repeat{k.name, k.at, first.name, first.kind == isList})
		return nil
	}
	k.table.set(k.last, e)
	return nil
}

// path is a dotted key: the table that holds its last part, that part and its place, and the name of the whole.
type path struct {
	table *entry
	last  string
	at    position
	name  string
}

// path reads a dotted key within the table of the given name.
func (s *scanner) path(table *entry, name string) (path, error) {
	for depth := 0; ; depth++ {
		if depth == maxDepth {
			return path{}, errTooDeep
		}
		s.skipSpaces()
		at := s.here()
		key, err := s.key()
		if err != nil {
			return path{}, err
		}
		name = strings.TrimPrefix(name+"."+bareOrQuoted(key), ".")
		s.skipSpaces()
		if !s.accept(".") {
			return path{table, key, at, name}, nil
		}
		table = s.sub(table, key, name, at)
	}
}

// sub returns the table under a key, made when absent: of an array of tables, the last element.
func (s *scanner) sub(table *entry, key, name string, at position) *entry {
	e := table.keys[key]
	switch {
	case e == nil:
		e = &entry{kind: isImplied, name: at, value: at}
		table.set(key, e)
	case e.kind == isList:
		return e.elems[len(e.elems)-1]
	case e.kind == isValue:
		s.repeats = append(s.repeats, repeat{name, at, e.name, false})
		return &entry{kind: isImplied, name: at, value: at} // leads nowhere
	}
	return e
}

// key reads one part of a dotted key, bare or quoted.
func (s *scanner) key() (string, error) {
	start := s.off
	switch quote := s.peek(); quote {
	case '"', '\'':
		if err := s.line(quote); err != nil {
			return "", err
		}
		quoted := s.text[start+1 : s.off-1]
		if quote == '"' {
			return unescape(quoted), nil
		}
		return quoted, nil
	}
	for c := s.peek(); c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'; c = s.peek() {
		s.off++
	}
	if s.off == start {
		return "", errMalformed
	}
	return s.text[start:s.off], nil
}

// scan reads the value of the key with the given name, and returns its place and those within it.
func (s *scanner) scan(name string, depth int) (*entry, error) {
	if depth == maxDepth {
		return nil, errTooDeep
	}
	at := s.here()
	e := &entry{name: at, value: at}
	switch {
	case s.accept("["):
		return e, s.array(e, name, depth+1)
	case s.accept("{"):
		return e, s.inline(e, name, depth+1)
	case s.accept(`"""`):
		return e, s.lines(`"""`)
	case s.accept(`'''`):
		return e, s.lines(`'''`)
	case s.peek() == '"', s.peek() == '\'':
		return e, s.line(s.peek())
	}
	start := s.off
	s.skipTo(",]}#\r\n") // a number, a boolean or a date, which may hold a space
	if s.off == start {
		return nil, errMalformed
	}
	return e, nil
}

func (s *scanner) array(e *entry, name string, depth int) error {
	for {
		s.skipBlank()
		if s.accept("]") {
			return nil
		}
		elem, err := s.scan(name, depth)
		if err != nil {
			return err
		}
		e.elems = append(e.elems, elem)
		s.skipBlank()
		if !s.accept(",") && s.peek() != ']' {
			return errMalformed
		}
	}
}

func (s *scanner) inline(e *entry, name string, depth int) error {
	for {
		s.skipBlank()
		if s.accept("}") {
			return nil
		}
		if err := s.pair(e, name, depth); err != nil {
			return err
		}
		s.skipBlank()
		if !s.accept(",") && s.peek() != '}' {
			return errMalformed
		}
	}
}

// line skips a string on one line, from its opening quote to behind its closing one.
func (s *scanner) line(quote byte) error {
	for s.off++; s.off < len(s.text); s.off++ {
		switch c := s.text[s.off]; {
		case c == quote:
			s.off++
			return nil
		case c == '\n':
			return errMalformed
		case c == '\\' && quote == '"':
			s.off++
		}
	}
	s.off = len(s.text)
	return errMalformed
}

// lines skips a string of several lines, from behind its opening quotes. Up to two quotes more than the closing three
// belong to the string.
func (s *scanner) lines(quotes string) error {
	for s.off < len(s.text) {
		if s.accept(quotes) {
			for range 2 {
				s.accept(quotes[:1])
			}
			return nil
		}
		if s.peek() == '\\' && quotes[0] == '"' {
			s.off++
		}
		s.off++
	}
	s.off = len(s.text)
	return errMalformed
}

// unescape resolves the escapes of a basic string. What is no valid escape, which the library refuses, stays as it is.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		digits := 0
		switch s[i] {
		case 'x':
			digits = 2
		case 'u':
			digits = 4
		case 'U':
			digits = 8
		}
		if digits > 0 && i+digits < len(s) {
			if r, err := strconv.ParseUint(s[i+1:i+1+digits], 16, 32); err == nil {
				b.WriteRune(rune(r))
				i += digits
				continue
			}
		}
		if n := strings.IndexByte(`btnfre"\`, s[i]); n >= 0 {
			b.WriteByte("\b\t\n\f\r\x1b\"\\"[n])
			continue
		}
		b.WriteString(s[i-1 : i+1])
	}
	return b.String()
}
