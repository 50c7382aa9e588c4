package ptthqd_test

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func glob(t *testing.T, patterns ...string) (names []string) {
	t.Helper()
	for _, pattern := range patterns {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	return names
}

// TestDocumentedTestsExist finds each test that the lists of faults name: `TestX` of test/e2e, or
// `package.TestX`, with a subtest behind a slash.
func TestDocumentedTestsExist(t *testing.T) {
	name := regexp.MustCompile("`(?:([a-z0-9]+)\\.)?((?:Test|Fuzz)[A-Z][A-Za-z0-9]*)[/`]")
	sources := map[string]string{} // by package
	for _, document := range []string{"docs/faults.md", "docs/mended.md"} {
		named := name.FindAllStringSubmatch(readFile(t, document), -1)
		if len(named) < 40 {
			t.Fatalf("%s names only %d tests", document, len(named))
		}
		for _, n := range named {
			pkg := cmp.Or(n[1], "e2e")
			if sources[pkg] == "" {
				var all strings.Builder
				for _, file := range glob(t, "*/"+pkg+"/*_test.go", pkg+"/*_test.go") {
					all.WriteString(readFile(t, file))
				}
				sources[pkg] = all.String()
			}
			if !strings.Contains(sources[pkg], "\nfunc "+n[2]+"(") {
				t.Errorf("%s: package %s has no %s", document, pkg, n[2])
			}
		}
	}
}

// TestDocumentsAreListed checks that the README names each document, and that links between
// documents lead somewhere.
func TestDocumentsAreListed(t *testing.T) {
	readme := readFile(t, "README.md")
	for _, document := range glob(t, "docs/*.*", "*.md") {
		if document != "README.md" && !strings.Contains(readme, "]("+document+")") {
			t.Errorf("README.md does not list %s", document)
		}
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)[^):]*\)`)
	for _, document := range glob(t, "docs/*.md", "*.md", "pkg/wire/*.md") {
		for _, found := range link.FindAllStringSubmatch(readFile(t, document), -1) {
			target := filepath.Join(filepath.Dir(document), found[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: link to %s: %v", document, found[1], err)
			}
		}
	}
}
