//go:build linux

package e2e

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestFaultsAreTested finds each test that docs/faults.md names.
func TestFaultsAreTested(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/faults.md")
	if err != nil {
		t.Fatal(err)
	}
	sources := map[string]string{} // by package
	named := regexp.MustCompile("`(?:([a-z]+)\\.)?(Test[A-Z][A-Za-z0-9]*)`").FindAllStringSubmatch(string(text), -1)
	if len(named) < 40 {
		t.Fatalf("only %d tests are named", len(named))
	}
	for _, n := range named {
		pkg := cmp.Or(n[1], "e2e")
		if sources[pkg] == "" {
			files, err := filepath.Glob(filepath.Join("../..", "*", pkg, "*_test.go")) // pkg/ or test/
			if err != nil {
				t.Fatal(err)
			}
			var all strings.Builder
			for _, name := range files {
				source, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				all.Write(source)
			}
			sources[pkg] = all.String()
		}
		if !strings.Contains(sources[pkg], "func "+n[2]+"(t *testing.T)") {
			t.Errorf("package %s has no %s", pkg, n[2])
		}
	}
}
