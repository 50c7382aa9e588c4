package config

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
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
		e := index.root
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

// Whatever the library accepts, unless a key is there twice (it accepts some of those, and loses one of the values), the index has a place for each key and each element of it, and there the text is what
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
		if len(index.repeats) == 0 {
			oracle{t, strings.Split(text, "\n")}.table("", tree, index.root)
		}
	})
}

type oracle struct {
	t interface {
		Fatalf(format string, args ...any)
	}
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

// The same as FuzzIndex, with texts that are mostly well formed, and that open, close and continue tables in every order.
func TestIndexFollowsTheLibrary(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(r *rapid.T) {
		text := genDocument().Draw(r, "text")
		tree, err := decodeTOML(text)
		if err != nil {
			return
		}
		accepted++
		index, _, err := buildIndex(text)
		if err != nil {
			r.Fatal(err)
		}
		if len(index.repeats) == 0 {
			oracle{r, strings.Split(text, "\n")}.table("", tree, index.root)
		}
	})
	if accepted == 0 {
		t.Error("the library accepted no text")
	}
}

func genDocument() *rapid.Generator[string] {
	key := rapid.SampledFrom([]string{"a", "b", "c", `"d"`, `"\u0061"`, "'e f'", "a . b", "b.c", "c.a.b"})
	space := rapid.SampledFrom([]string{"", " ", "\t"})
	blank := rapid.SampledFrom([]string{"", " ", "\n", " # a comment, [ { = \"\n", "\r\n\t"})
	scalar := rapid.SampledFrom([]string{
		"1", "-0.5e3", "true", "inf", "0x1f", "1979-05-27", "1979-05-27T07:32:00.5Z", `""`, `"ü"`, `"\"]"`, `'\'`, `'"'`,
		`""" " "" \""" """""`, "'''\n ] '' '''", "\"\"\"\n[x]\ny = 1 \\\n  \"\"\"",
	})
	var value func(depth int) *rapid.Generator[string]
	value = func(depth int) *rapid.Generator[string] {
		return rapid.Custom(func(r *rapid.T) string {
			kind := rapid.IntRange(0, 4).Draw(r, "kind")
			if depth == 0 || kind > 1 {
				return scalar.Draw(r, "scalar")
			}
			var parts []string
			for range rapid.IntRange(0, 3).Draw(r, "elements") {
				part := blank.Draw(r, "blank")
				if kind == 1 {
					part += key.Draw(r, "key") + space.Draw(r, "space") + "=" + space.Draw(r, "space")
				}
				parts = append(parts, part+value(depth-1).Draw(r, "element")+blank.Draw(r, "blank"))
			}
			if inner := strings.Join(parts, ","); kind == 0 {
				return "[" + inner + "]"
			} else {
				return "{" + inner + "}"
			}
		})
	}
	line := rapid.Custom(func(r *rapid.T) string {
		indent, at := space.Draw(r, "indent"), key.Draw(r, "key")
		switch rapid.IntRange(0, 5).Draw(r, "line") {
		case 0:
			return indent + "[" + space.Draw(r, "space") + at + space.Draw(r, "space") + "]"
		case 1:
			return indent + "[[" + at + space.Draw(r, "space") + "]] # ["
		case 2:
			return indent + "# " + at + " = 1"
		default:
			return indent + at + space.Draw(r, "space") + "= " + value(2).Draw(r, "value")
		}
	})
	return rapid.Custom(func(r *rapid.T) string {
		return strings.Join(rapid.SliceOfN(line, 0, 8).Draw(r, "lines"), rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(r, "end"))
	})
}
