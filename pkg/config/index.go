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
	name  position          // of the key; of an element: where it begins
	value position          // of the value; of a table with a header: where the header begins
	keys  map[string]*entry // of a table
	elems []*entry          // of an array, also an array of tables

	implied bool // a table that has no header or value of its own (yet), only keys below it
}

// child returns the entry of a key. On nil, or where there is none, it returns e: the nearest place that is known.
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

// find returns the entry of a dotted key, as it was where a text was read up to a line.
func (e *entry) find(key string, line int) *entry {
	for part := range strings.SplitSeq(key, ".") {
		for i := len(e.elems) - 1; i >= 0; i-- {
			if e.elems[i].value.line <= line {
				e = e.elems[i]
				break
			}
		}
		if e = e.keys[part]; e == nil {
			return nil
		}
	}
	return e
}

// sub returns the table under a key, made when absent: for the last element of an array of tables, that element.
func (e *entry) sub(key string, at position) *entry {
	c := e.keys[key]
	if c == nil {
		c = &entry{name: at, value: at, implied: true}
		if e.keys == nil {
			e.keys = make(map[string]*entry)
		}
		e.keys[key] = c
	}
	if n := len(c.elems); n > 0 {
		return c.elems[n-1]
	}
	return c
}

// buildIndex finds the place of each key and element. It reads TOML 1.1, and takes for granted that the text is well
// formed: where it isn't, the index ends there without an error, since the library says what is wrong. The only error
// is errTooDeep, with the offset.
func buildIndex(text string) (*entry, int, error) {
	s := &scanner{text: text, last: position{1, 1}}
	root := &entry{name: position{1, 1}, value: position{1, 1}}
	err := s.document(root)
	if errors.Is(err, errTooDeep) {
		return root, s.off, err
	}
	return root, 0, nil
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
	table := root
	for {
		s.skipBlank()
		if s.off == len(s.text) {
			return nil
		}
		var err error
		if s.peek() == '[' {
			table, err = s.header(root)
		} else {
			err = s.pair(table, 0)
		}
		if err != nil {
			return err
		}
	}
}

// header reads [a.b] or [[a.b]], and returns the table that it opens.
func (s *scanner) header(root *entry) (*entry, error) {
	start := s.here()
	s.off++
	array := s.accept("[")
	table, last, at, err := s.path(root)
	if err != nil {
		return nil, err
	}
	if !s.accept("]") || array && !s.accept("]") {
		return nil, errMalformed
	}
	if array {
		table.sub(last, at)
		list := table.keys[last]
		list.elems = append(list.elems, &entry{name: at, value: start})
		return table.sub(last, at), nil
	}
	opened := table.sub(last, at)
	if opened.implied { // else the first of two stands: the library refuses the second
		opened.name, opened.value, opened.implied = at, start, false
	}
	return opened, nil
}

// pair reads key = value into the table.
func (s *scanner) pair(table *entry, depth int) error {
	table, last, at, err := s.path(table)
	if err != nil {
		return err
	}
	if !s.accept("=") {
		return errMalformed
	}
	s.skipSpaces()
	e, err := s.scan(depth)
	if err != nil {
		return err
	}
	e.name = at
	if table.keys == nil {
		table.keys = make(map[string]*entry)
	}
	if table.keys[last] == nil { // the first of two stands: the library refuses the second
		table.keys[last] = e
	}
	return nil
}

// path reads a dotted key, and returns the table that holds its last part, that part, and its place.
func (s *scanner) path(table *entry) (*entry, string, position, error) {
	for depth := 0; ; depth++ {
		if depth == maxDepth {
			return nil, "", position{}, errTooDeep
		}
		s.skipSpaces()
		at := s.here()
		key, err := s.key()
		if err != nil {
			return nil, "", position{}, err
		}
		s.skipSpaces()
		if !s.accept(".") {
			return table, key, at, nil
		}
		table = table.sub(key, at)
	}
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

// scan reads a value, and returns its place and those within it.
func (s *scanner) scan(depth int) (*entry, error) {
	if depth == maxDepth {
		return nil, errTooDeep
	}
	at := s.here()
	e := &entry{name: at, value: at}
	switch {
	case s.accept("["):
		return e, s.array(e, depth+1)
	case s.accept("{"):
		return e, s.inline(e, depth+1)
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

func (s *scanner) array(e *entry, depth int) error {
	for {
		s.skipBlank()
		if s.accept("]") {
			return nil
		}
		elem, err := s.scan(depth)
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

func (s *scanner) inline(e *entry, depth int) error {
	for {
		s.skipBlank()
		if s.accept("}") {
			return nil
		}
		if err := s.pair(e, depth); err != nil {
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
