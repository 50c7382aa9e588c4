// Package tomlpos finds where each key, table and element of a TOML text stands.
//
// A TOML library gives no position for an unknown key, nor for anything within an array of tables.
// [Scan] reads the text beside the library and builds a tree of [Node]s of the same shape as the
// library's tree of maps and slices. A caller walks both trees in step:
//
//	positions, err := tomlpos.Scan(text)
//	at := positions.Root.Key("peers").Elem(1).Key("id").Value // where the second peer's id stands
//
// Scan judges nothing: where the text is malformed the tree ends early, because the library reports
// what is wrong. Scan refuses texts that are nested too deep, which protects the library's stack.
// It also lists keys that are defined twice ([Repeat]), of which the library finds only some.
//
// Nothing in this package keeps state; a tree may be read by several goroutines.
package tomlpos

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxDepth bounds how deep arrays, inline tables and dotted keys may nest. A configuration needs
// three levels. The library recurses without a bound of its own.
const MaxDepth = 32

// TooDeepError says that a text is nested more than [MaxDepth] deep.
type TooDeepError struct {
	At Position
}

func (e *TooDeepError) Error() string {
	return fmt.Sprintf("nested more than %d deep", MaxDepth)
}

// Position is a place in a text.
type Position struct {
	Line   int // from 1
	Column int // in characters, from 1
}

// At returns the position of a byte offset. Offsets outside of the text count as its nearest end.
func At(text string, offset int) Position {
	offset = min(max(offset, 0), len(text))
	head := text[:offset]
	start := strings.LastIndexByte(head, '\n') + 1
	return Position{strings.Count(head, "\n") + 1, utf8.RuneCountInString(head[start:]) + 1}
}

// Node is where one key, table or element of an array stands.
type Node struct {
	Name  Position // of the key; of an element: where it begins
	Value Position // of the value; of a table with a header: where the header begins

	kind  nodeKind
	keys  map[string]*Node // of a table
	elems []*Node          // of an array, also of an array of tables
}

type nodeKind uint8

const (
	isValue   nodeKind = iota // an inline table, too
	isImplied                 // a table that is only named by keys below it so far
	isTable                   // a table with a header
	isList                    // an array of tables with headers
)

// Key returns the node of a key. Without such a key it returns n, the nearest node that is known.
func (n *Node) Key(key string) *Node {
	if child := n.keys[key]; child != nil {
		return child
	}
	return n
}

// Elem returns the node of an array's element. Without such an element it returns n.
func (n *Node) Elem(i int) *Node {
	if i < len(n.elems) {
		return n.elems[i]
	}
	return n
}

func (n *Node) set(key string, child *Node) {
	if n.keys == nil {
		n.keys = make(map[string]*Node)
	}
	n.keys[key] = child
}

// Repeat is a key that is defined twice. The library finds most of them, one at a time, and loses
// the first value of the others.
type Repeat struct {
	Key       string // with the names of its tables: "limits.links"
	At, First Position
	List      bool // the key is a list of tables in one place and something else in the other
}

// Positions says where everything in a text stands.
type Positions struct {
	Root    *Node
	Repeats []Repeat
}

// Scan finds the position of each key and element of a text in TOML 1.1. The error is a
// [*TooDeepError]; the positions found until then are returned with it.
func Scan(text string) (Positions, error) {
	start := Position{1, 1}
	s := &scanner{text: text, last: start}
	root := &Node{kind: isTable, Name: start, Value: start}
	err := s.document(root)
	positions := Positions{root, s.repeats}
	if errors.Is(err, errTooDeep) {
		return positions, &TooDeepError{At(text, s.off)}
	}
	return positions, nil
}

// KeyText returns a key as it is written in TOML: bare, or quoted where it must be.
func KeyText(key string) string {
	bad := func(r rune) bool { return r >= utf8.RuneSelf || !isBare(byte(r)) }
	if key == "" || strings.ContainsFunc(key, bad) {
		return strconv.Quote(key)
	}
	return key
}

// isBare reports whether a key needs no quotes for this character.
func isBare(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' ||
		c == '-'
}
