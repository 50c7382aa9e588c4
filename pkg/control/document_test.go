package control_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"strings"
	"testing"
)

const document = "../../docs/control.md"

// The tables of docs/control.md are what the code says. With PTTHQD_UPDATE set they are written
// anew.
func TestObjectsAreDocumented(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	const mark = "go test ./pkg/control -->\n"
	head, tables, found := strings.Cut(string(text), mark)
	if !found {
		t.Fatalf("%s has lost its mark", document)
	}
	want := "\n" + strings.Join(objects(t), "\n")
	if tables == want {
		return
	}
	if os.Getenv("PTTHQD_UPDATE") == "" {
		t.Fatalf("%s isn't what control.go says; mend it with PTTHQD_UPDATE=1 go test ./pkg/control", document)
	}
	if err := os.WriteFile(document, []byte(head+mark+want), 0o644); err != nil {
		t.Fatal(err)
	}
}

// objects returns a section for each type of control.go that goes over the socket.
func objects(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "control.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	structs := make(map[string]*ast.StructType)
	var order []string
	comments := make(map[string]string)
	for _, declaration := range file.Decls {
		general, ok := declaration.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, spec := range general.Specs {
			if named, ok := spec.(*ast.TypeSpec); ok {
				if body, ok := named.Type.(*ast.StructType); ok {
					structs[named.Name.Name] = body
					comments[named.Name.Name] = strings.Join(strings.Fields(general.Doc.Text()),
						" ")
					order = append(order, named.Name.Name)
				}
			}
		}
	}
	var sections []string
	for _, name := range order {
		rows := rowsOf(t, structs, structs[name])
		sections = append(sections,
			fmt.Sprintf("### %s\n\n%s\n\n| field | type | |\n|---|---|---|\n%s", name,
				comments[name], strings.Join(rows, "")))
	}
	return sections
}

func rowsOf(t *testing.T, structs map[string]*ast.StructType, body *ast.StructType) (rows []string) {
	t.Helper()
	for _, f := range body.Fields.List {
		if f.Tag == nil && len(f.Names) > 0 {
			continue // it is not told
		}
		if f.Tag == nil { // embedded
			rows = append(rows, rowsOf(t, structs, structs[f.Type.(*ast.Ident).Name])...)
			continue
		}
		name, options, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		if options != "" {
			options = "?"
		}
		about := strings.Join(strings.Fields(f.Doc.Text()+f.Comment.Text()), " ")
		if about == "" {
			t.Errorf("field %s has no comment", name)
		}
		rows = append(rows, fmt.Sprintf("| `%s`%s | %s | %s |\n", name, options, typeName(f.Type), about))
	}
	return rows
}

func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		switch e.Name {
		case "bool":
			return "boolean"
		case "int", "int64", "uint64", "float64":
			return "number"
		case "Seconds":
			return "seconds"
		}
		return e.Name
	case *ast.StarExpr:
		return typeName(e.X)
	case *ast.ArrayType:
		return "list of " + typeName(e.Elt)
	case *ast.MapType:
		return "map to " + typeName(e.Value)
	}
	return "time"
}
