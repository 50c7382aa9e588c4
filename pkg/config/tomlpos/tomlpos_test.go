package tomlpos

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"pgregory.net/rapid"
)

// decode is the library, which panics where its authors expect none of its bugs.
func decode(text string) (tree map[string]any, err error) {
	defer func() {
		if bug := recover(); bug != nil {
			err = fmt.Errorf("panic: %v", bug)
		}
	}()
	tree = make(map[string]any)
	_, err = toml.Decode(text, &tree)
	return tree, err
}

// addSeeds adds the example and the bad configurations to a fuzz target's corpus.
func addSeeds(f *testing.F) {
	f.Helper()
	for _, pattern := range []string{"../../../configs/*.toml", "../testdata/*.toml"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			f.Fatalf("%s: %v, %v", pattern, names, err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(text))
		}
	}
}

func TestScan(t *testing.T) {
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
	positions, err := Scan(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path        string
		name, value Position
	}{
		{"role", Position{2, 1}, Position{2, 15}},
		{"a", Position{3, 2}, Position{3, 2}},
		{"a/b", Position{3, 4}, Position{3, 8}},
		{"a/b/c", Position{3, 10}, Position{3, 14}},
		{"a/b/c/1", Position{3, 18}, Position{3, 18}},
		{"a/b/c/2", Position{3, 25}, Position{3, 25}},
		{"a/b/c/2/0/d", Position{3, 29}, Position{3, 33}},
		{"a/b/e f", Position{3, 61}, Position{3, 69}},
		{"s", Position{4, 1}, Position{4, 5}},
		{"t", Position{7, 1}, Position{7, 5}},
		{"limits", Position{10, 3}, Position{10, 1}},
		{"limits/links", Position{11, 1}, Position{11, 9}},
		{"peers/0", Position{13, 3}, Position{13, 1}},
		{"peers/0/id", Position{14, 1}, Position{14, 6}},
		{"peers/0/sub", Position{15, 8}, Position{15, 1}},
		{"peers/0/sub/x", Position{16, 1}, Position{16, 5}},
		{"peers/1", Position{17, 4}, Position{17, 1}},
		{"peers/1/allowed_servers/0", Position{20, 3}, Position{20, 3}},
		{"peers/1/allowed_servers/1", Position{21, 2}, Position{21, 2}},
		{"peers/1/sub2/1/y", Position{25, 1}, Position{25, 5}},
	} {
		e := positions.Root
		for part := range strings.SplitSeq(test.path, "/") {
			var i int
			if _, err := fmt.Sscan(part, &i); err == nil {
				e = e.Elem(i)
			} else {
				e = e.Key(part)
			}
		}
		if e.Name != test.name || e.Value != test.value {
			t.Errorf("%s: name %v, value %v; want %v, %v", test.path, e.Name, e.Value, test.name,
				test.value)
		}
	}
}

func TestScanIsBounded(t *testing.T) {
	for _, text := range []string{
		"a = " + strings.Repeat("[", 1<<20),
		"a = " + strings.Repeat("{a=", 1<<20),
		strings.Repeat("a.", 1<<20) + "a = 1",
		"[" + strings.Repeat("a.", 1<<20) + "a]",
	} {
		if _, err := Scan(text); err == nil {
			t.Errorf("%.20q... was not refused", text)
		}
	}
}

// Whatever the library accepts, unless a key is there twice (it accepts some of those, and loses
// one of the values), Scan found a place for each key and each element of it, and there the text is
// what the library says it is.
func FuzzScan(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, text string) {
		positions, err := Scan(text)
		if err != nil {
			deep, ok := errors.AsType[*TooDeepError](err)
			if !ok {
				t.Fatal(err)
			}
			oracle{t, strings.Split(text, "\n")}.at(deep.At)
			return
		}
		tree, err := decode(text)
		if err != nil || strings.HasPrefix(text, "\ufeff") || !utf8.ValidString(text) {
			return
		}
		if len(positions.Repeats) == 0 {
			oracle{t, strings.Split(text, "\n")}.table("", tree, positions.Root)
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
func (o oracle) at(p Position) string {
	if p.Line < 1 || p.Line > len(o.lines) {
		o.t.Fatalf("line %d of %d", p.Line, len(o.lines))
	}
	runes := []rune(o.lines[p.Line-1])
	if p.Column < 1 || p.Column > len(runes)+1 {
		o.t.Fatalf("column %d of %d in line %d", p.Column, len(runes), p.Line)
	}
	return string(runes[p.Column-1:])
}

func (o oracle) table(path string, values map[string]any, e *Node) {
	for key, value := range values {
		path := path + "/" + key
		child := e.keys[key]
		if child == nil {
			o.t.Fatalf("Scan found no %q", path)
		}
		if text := o.at(child.Name); !strings.HasPrefix(text, key) &&
			!strings.HasPrefix(text, `"`) && !strings.HasPrefix(text, "'") {
			o.t.Fatalf("%q is not at %v: %q", path, child.Name, text)
		}
		o.value(path, value, child)
	}
}

func (o oracle) value(path string, value any, e *Node) {
	text := o.at(e.Value)
	begins := func(with string) {
		if text == "" || !strings.Contains(with, text[:1]) {
			o.t.Fatalf("the value of %q is not at %v: %q", path, e.Value, text)
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
				o.t.Fatalf("Scan found no element %d of %q", i, path)
			}
			o.value(path, elem, e.elems[i])
		}
	case []map[string]any:
		for i, elem := range value {
			if i >= len(e.elems) {
				o.t.Fatalf("Scan found no element %d of %q", i, path)
			}
			text = o.at(e.elems[i].Value)
			begins("[")
			o.table(path, elem, e.elems[i])
		}
	case map[string]any:
		o.table(path, value, e)
	default:
		begins("0123456789+-in")
	}
}

// The same as FuzzScan, with texts that are mostly well formed, and that open, close and continue
// tables in every order.
func TestScanFollowsTheLibrary(t *testing.T) {
	accepted := 0
	rapid.Check(t, func(r *rapid.T) {
		text := genDocument().Draw(r, "text")
		tree, err := decode(text)
		if err != nil {
			return
		}
		accepted++
		positions, err := Scan(text)
		if err != nil {
			r.Fatal(err)
		}
		if len(positions.Repeats) == 0 {
			oracle{r, strings.Split(text, "\n")}.table("", tree, positions.Root)
		}
	})
	if accepted == 0 {
		t.Error("the library accepted no text")
	}
}

func genDocument() *rapid.Generator[string] {
	key := rapid.SampledFrom([]string{
		"a", "b", "c", `"d"`, `"\u0061"`, "'e f'", "a . b", "b.c",
		"c.a.b",
	})
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
					part += key.Draw(r, "key") + space.Draw(r, "space") + "=" +
						space.Draw(r, "space")
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
		return strings.Join(rapid.SliceOfN(line, 0, 8).Draw(r, "lines"),
			rapid.SampledFrom([]string{"\n", "\r\n"}).Draw(r, "end"))
	})
}
