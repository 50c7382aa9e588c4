package tomlpos

import (
	"errors"
	"strconv"
	"strings"
)

// The reasons to end a scan early.
var (
	errMalformed = errors.New("malformed") // the text isn't TOML
	errTooDeep   = errors.New("nested too deep")
)

// scanner walks over a text once, without backtracking.
type scanner struct {
	text string
	off  int // of the next byte

	// here remembers its last answer: it is asked in rising order, so all answers together cost
	// one pass over the text.
	asked int
	last  Position

	repeats []Repeat
}

// here returns the position of the next byte.
func (s *scanner) here() Position {
	for _, r := range s.text[s.asked:s.off] {
		if r == '\n' {
			s.last = Position{s.last.Line + 1, 1}
		} else {
			s.last.Column++
		}
	}
	s.asked = s.off
	return s.last
}

// peek returns the next byte; 0 at the end of the text.
func (s *scanner) peek() byte {
	if s.off < len(s.text) {
		return s.text[s.off]
	}
	return 0
}

// accept skips the token and returns true, if the text goes on with it.
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

func (s *scanner) document(root *Node) error {
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

// header reads [a.b] or [[a.b]]. It returns the table that the header opens, and the table's name.
func (s *scanner) header(root *Node) (*Node, string, error) {
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
	opened := &Node{kind: isTable, Name: k.at, Value: start}
	e := k.table.keys[k.last]
	switch {
	case e == nil && list:
		e = &Node{kind: isList, Name: k.at, Value: start}
		k.table.set(k.last, e)
	case e == nil:
		k.table.set(k.last, opened)
		return opened, k.name, nil
	case e.kind == isImplied && !list:
		e.kind, e.Name, e.Value = isTable, k.at, start
		return e, k.name, nil
	case e.kind != isList || !list:
		s.repeats = append(s.repeats, Repeat{k.name, k.at, e.Name, list || e.kind == isList})
		return opened, k.name, nil
	}
	e.elems = append(e.elems, opened)
	return opened, k.name, nil
}

// pair reads key = value into the table, which has the given name.
func (s *scanner) pair(table *Node, name string, depth int) error {
	k, err := s.path(table, name)
	if err != nil {
		return err
	}
	if !s.accept("=") {
		return errMalformed
	}
	s.skipSpaces()
	e, err := s.value(k.name, depth)
	if err != nil {
		return err
	}
	e.Name = k.at
	if first := k.table.keys[k.last]; first != nil {
		s.repeats = append(s.repeats, Repeat{k.name, k.at, first.Name, first.kind == isList})
		return nil
	}
	k.table.set(k.last, e)
	return nil
}

// path is a dotted key.
type path struct {
	table *Node    // that holds the last part
	last  string   // part
	at    Position // of the last part
	name  string   // of the whole
}

// path reads a dotted key within the table of the given name.
func (s *scanner) path(table *Node, name string) (path, error) {
	for depth := 0; ; depth++ {
		if depth == MaxDepth {
			return path{}, errTooDeep
		}
		s.skipSpaces()
		at := s.here()
		key, err := s.key()
		if err != nil {
			return path{}, err
		}
		name = strings.TrimPrefix(name+"."+KeyText(key), ".")
		s.skipSpaces()
		if !s.accept(".") {
			return path{table, key, at, name}, nil
		}
		table = s.sub(table, key, name, at)
	}
}

// sub returns the table under a key; of an array of tables, the last element. It makes the table
// if there is none.
func (s *scanner) sub(table *Node, key, name string, at Position) *Node {
	e := table.keys[key]
	switch {
	case e == nil:
		e = &Node{kind: isImplied, Name: at, Value: at}
		table.set(key, e)
	case e.kind == isList:
		return e.elems[len(e.elems)-1]
	case e.kind == isValue:
		s.repeats = append(s.repeats, Repeat{name, at, e.Name, false})
		return &Node{kind: isImplied, Name: at, Value: at} // leads nowhere
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
	for isBare(s.peek()) {
		s.off++
	}
	if s.off == start {
		return "", errMalformed
	}
	return s.text[start:s.off], nil
}

// value reads the value of the key with the given name, and returns its node.
func (s *scanner) value(name string, depth int) (*Node, error) {
	if depth == MaxDepth {
		return nil, errTooDeep
	}
	at := s.here()
	e := &Node{Name: at, Value: at}
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

func (s *scanner) array(e *Node, name string, depth int) error {
	for {
		s.skipBlank()
		if s.accept("]") {
			return nil
		}
		elem, err := s.value(name, depth)
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

func (s *scanner) inline(e *Node, name string, depth int) error {
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

// lines skips a string of several lines, from behind its opening quotes. Up to two quotes in front
// of the closing three belong to the string.
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

// unescape resolves the escapes of a basic string. An invalid escape stays as it is: the library
// refuses it.
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
