// Package man_test holds the manual to the program: the keys of the config are described by the list that the program
// itself reads.
package man_test

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"ptthqd/pkg/config"
)

var update = flag.Bool("update", false, "write the keys into ptthqd.toml.5")

const (
	page  = "ptthqd.toml.5"
	begin = ".\\\" keys: begin\n"
	end   = ".\\\" keys: end\n"
)

func TestManualHasEveryKey(t *testing.T) {
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s: the marks around the keys are gone", page)
	}
	want := head + begin + describe(config.Keys()) + end + tail
	if want == string(text) {
		return
	}
	if !*update {
		t.Fatalf("%s is not what pkg/config says: go test ./cmd/ptthqd/man -update", page)
	}
	if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// describe renders the keys in mdoc, a subsection for each table.
func describe(keys []config.Key) string {
	var b strings.Builder
	table, of := "none", ""
	for _, k := range keys {
		switch {
		case isTable(k):
			closeList(&b, table)
			table, of = k.Name, whose(k)
			fmt.Fprintf(&b, ".Ss %s\n", title(k))
			fmt.Fprintf(&b, ".Pq %s\n", of)
			b.WriteString(prose(k.Doc))
			b.WriteString(".Bl -tag -width Ds\n")
			continue
		case k.Table() != table:
			closeList(&b, table)
			table, of = k.Table(), whose(config.Key{})
			b.WriteString(".Ss Top of the file\n.Bl -tag -width Ds\n")
		}
		fmt.Fprintf(&b, ".It Ic %s\n", strings.TrimPrefix(k.Name, table+"."))
		if whose(k) == of {
			fmt.Fprintf(&b, ".Pq %s\n", k.Type)
		} else {
			fmt.Fprintf(&b, ".Pq %s; %s\n", k.Type, whose(k))
		}
		b.WriteString(prose(k.Doc))
		if k.Default != "" {
			fmt.Fprintf(&b, "Default: %s.\n", strings.ReplaceAll(k.Default, `\`, `\e`))
		}
	}
	closeList(&b, table)
	return b.String()
}

func isTable(k config.Key) bool { return k.Type == "table" || k.Type == "list of tables" }

func closeList(b *strings.Builder, table string) {
	if table != "none" {
		b.WriteString(".El\n")
	}
}

func title(k config.Key) string {
	if k.Type == "table" {
		return "[" + k.Name + `]\&`
	}
	return "[[" + k.Name + `]]\&`
}

func whose(k config.Key) string {
	if len(k.Roles) == 0 {
		return "all roles"
	}
	var names []string
	for _, r := range k.Roles {
		names = append(names, string(r))
	}
	return strings.Join(names, " and ")
}

var (
	sentence = regexp.MustCompile(`(\S\.)\s+`)
	code     = regexp.MustCompile("`([^`]*)`")
)

// prose renders sentences as mdoc wants them: each on a line of its own, lines under 80 characters, no line that looks
// like a macro.
func prose(doc string) string {
	doc = sentence.ReplaceAllString(strings.ReplaceAll(doc, `\`, `\e`), "$1\n")
	var b strings.Builder
	for line := range strings.Lines(doc) {
		width := 0
		for i, word := range strings.Fields(line) {
			switch {
			case i == 0:
			case width+1+len(word) > 76:
				b.WriteByte('\n')
				width = 0
			default:
				b.WriteByte(' ')
				width++
			}
			if width == 0 && strings.ContainsAny(word[:1], ".'") {
				b.WriteString(`\&`)
			}
			b.WriteString(word)
			width += len(word)
		}
		b.WriteByte('\n')
	}
	return code.ReplaceAllString(b.String(), `\fB$1\fR`)
}
