package ptthqd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The most lines of a function, of a function in a test file, and of a file outside tests.
// What is longer is hard to read in one piece.
const (
	functionLines     = 80
	testFunctionLines = 100
	fileLines         = 600
)

func TestSizes(t *testing.T) {
	long := make(map[string]int) // the lines of what is too long
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "." && strings.HasPrefix(d.Name(), "."):
			return fs.SkipDir
		case !strings.HasSuffix(path, ".go"):
			return nil
		}
		files++
		return measure(filepath.ToSlash(path), long)
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("no Go file found")
	}
	for _, name := range slices.Sorted(maps.Keys(long)) {
		t.Errorf("%s has %d lines: split it", name, long[name])
	}
}

// measure adds to long the functions of a file that are too long, and the file itself.
func measure(path string, long map[string]int) error {
	positions := token.NewFileSet()
	parsed, err := parser.ParseFile(positions, path, nil, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	test := strings.HasSuffix(path, "_test.go")
	if n := positions.File(parsed.FileStart).LineCount(); n > fileLines && !test {
		long[path] = n
	}
	most := functionLines
	if test {
		most = testFunctionLines
	}
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if n := positions.Position(f.End()).Line - positions.Position(f.Pos()).Line + 1; n > most {
			long[path+" "+f.Name.Name] = n
		}
	}
	return nil
}
