package ptthqd_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ptthqd/pkg/config"
)

// No limit is without an effect: each is read in a program's code, outside of what parses it.
func TestEachLimitIsUsed(t *testing.T) {
	used := make(map[string]bool)
	packages, err := filepath.Glob("pkg/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range packages {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var parsed []*ast.File
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			parsed = append(parsed, file)
		}
		if slices.ContainsFunc(parsed, knowsConfig) { // others have limits of their own
			for _, file := range parsed {
				limitsUsed(file, used)
			}
		}
	}
	for field := range reflect.TypeFor[config.Limits]().Fields() {
		if !used[field.Name] {
			t.Errorf("nothing uses config.Limits.%s", field.Name)
		}
	}
}

func knowsConfig(file *ast.File) bool {
	return slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"ptthqd/pkg/config"` })
}

// limitsUsed notes the limits that a file uses: the X of each `….Limits.X`, and of each `l.X` where l is a
// variable made of such Limits, or a parameter of the type config.Limits (no pointer).
func limitsUsed(file *ast.File, used map[string]bool) {
	isLimits := func(e ast.Expr) bool {
		if address, ok := e.(*ast.UnaryExpr); ok {
			e = address.X
		}
		s, ok := e.(*ast.SelectorExpr)
		return ok && s.Sel.Name == "Limits"
	}
	for _, d := range file.Decls {
		names := make(map[string]bool)
		ast.Inspect(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Field:
				for _, name := range n.Names {
					names[name.Name] = names[name.Name] || isLimits(n.Type)
				}
			case *ast.AssignStmt:
				if name, ok := n.Lhs[0].(*ast.Ident); ok && isLimits(n.Rhs[0]) {
					names[name.Name] = true
				}
			case *ast.SelectorExpr:
				name, ok := n.X.(*ast.Ident)
				if isLimits(n.X) || ok && names[name.Name] {
					used[n.Sel.Name] = true
				}
			}
			return true
		})
	}
}
