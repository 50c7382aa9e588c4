package config

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestIndexPlaces(t *testing.T) {
	text := strings.TrimLeft(`
# größer
"ro\u006ce" = "relay" # = "x"
 a.b = { c = [1, "ä,]", [ { d = 1979-05-27 07:32:00Z } ] ], 'e f' = 1 }
s = """
[not.a = "header"\""" ""
"""
t = '''
x = 1'''

[ limits ]
links = 5

[[peers]]
id = "a"
[peers.sub]
x = 1
[[ peers ]]
id = "b"
allowed_servers = [
  "nas", # one
	"db",
]
[[peers.sub2]]
[[peers.sub2]]
y = true
`, "\n")
	index, _, err := buildIndex(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path        string
		name, value position
	}{
		{"role", position{2, 1}, position{2, 15}},
		{"a", position{3, 2}, position{3, 2}},
		{"a/b", position{3, 4}, position{3, 8}},
		{"a/b/c", position{3, 10}, position{3, 14}},
		{"a/b/c/1", position{3, 18}, position{3, 18}},
		{"a/b/c/2", position{3, 25}, position{3, 25}},
		{"a/b/c/2/0/d", position{3, 29}, position{3, 33}},
		{"a/b/e f", position{3, 61}, position{3, 69}},
		{"s", position{4, 1}, position{4, 5}},
		{"t", position{7, 1}, position{7, 5}},
		{"limits", position{10, 3}, position{10, 1}},
		{"limits/links", position{11, 1}, position{11, 9}},
		{"peers/0", position{13, 3}, position{13, 1}},
		{"peers/0/id", position{14, 1}, position{14, 6}},
		{"peers/0/sub", position{15, 8}, position{15, 1}},
		{"peers/0/sub/x", position{16, 1}, position{16, 5}},
		{"peers/1", position{17, 4}, position{17, 1}},
		{"peers/1/allowed_servers/0", position{20, 3}, position{20, 3}},
		{"peers/1/allowed_servers/1", position{21, 2}, position{21, 2}},
		{"peers/1/sub2/1/y", position{25, 1}, position{25, 5}},
	} {
		e := index
		for part := range strings.SplitSeq(test.path, "/") {
			var i int
			if _, err := fmt.Sscan(part, &i); err == nil {
				e = e.elem(i)
			} else {
				e = e.child(part)
			}
		}
		if e.name != test.name || e.value != test.value {
			t.Errorf("%s: name %v, value %v; want %v, %v", test.path, e.name, e.value, test.name, test.value)
		}
	}
}

func TestIndexIsBounded(t *testing.T) {
	for _, text := range []string{
		"a = " + strings.Repeat("[", 1<<20),
		"a = " + strings.Repeat("{a=", 1<<20),
		strings.Repeat("a.", 1<<20) + "a = 1",
		"[" + strings.Repeat("a.", 1<<20) + "a]",
	} {
		if _, _, err := buildIndex(text); err == nil {
			t.Errorf("%.20q... was not refused", text)
		}
	}
}

// Whatever the library accepts, the index has a place for each key and each element of it, and there the text is what
// the library says it is.
func FuzzIndex(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, text string) {
		index, offset, err := buildIndex(text)
		if err != nil {
			if offset < 0 || offset > len(text) {
				t.Fatalf("offset %d of %d", offset, len(text))
			}
			return
		}
		tree, err := decodeTOML(text)
		if err != nil || strings.HasPrefix(text, byteOrderMark) || !utf8.ValidString(text) {
			return
		}
		o := oracle{t, strings.Split(text, "\n")}
		o.table("", tree, index)
	})
}

type oracle struct {
	t     *testing.T
	lines []string
}

// at returns the text from a place on, to the end of its line.
func (o oracle) at(p position) string {
	if p.line < 1 || p.line > len(o.lines) {
		o.t.Fatalf("line %d of %d", p.line, len(o.lines))
	}
	runes := []rune(o.lines[p.line-1])
	if p.column < 1 || p.column > len(runes)+1 {
		o.t.Fatalf("column %d of %d in line %d", p.column, len(runes), p.line)
	}
	return string(runes[p.column-1:])
}

func (o oracle) table(path string, values map[string]any, e *entry) {
	for key, value := range values {
		path := path + "/" + key
		child := e.keys[key]
		if child == nil {
			o.t.Fatalf("the index has no %q", path)
		}
		if text := o.at(child.name); !strings.HasPrefix(text, key) && !strings.HasPrefix(text, `"`) && !strings.HasPrefix(text, "'") {
			o.t.Fatalf("%q is not at %v: %q", path, child.name, text)
		}
		o.value(path, value, child)
	}
}

func (o oracle) value(path string, value any, e *entry) {
	text := o.at(e.value)
	begins := func(with string) {
		if text == "" || !strings.Contains(with, text[:1]) {
			o.t.Fatalf("the value of %q is not at %v: %q", path, e.value, text)
		}
	}
	switch value := value.(type) {
	case string:
		begins(`"'`)
	case bool:
		begins("tf")
	case []any:
		begins("[")
		for i, elem := range value {
			if i >= len(e.elems) {
				o.t.Fatalf("the index has no element %d of %q", i, path)
			}
			o.value(path, elem, e.elems[i])
		}
	case []map[string]any:
		for i, elem := range value {
			if i >= len(e.elems) {
				o.t.Fatalf("the index has no element %d of %q", i, path)
			}
			text = o.at(e.elems[i].value)
			begins("[")
			o.table(path, elem, e.elems[i])
		}
	case map[string]any:
		o.table(path, value, e)
	default:
		begins("0123456789+-in")
	}
}
