package config

import (
	"path/filepath"
	"testing"
)

// The examples that the README shows load as they are, and `ptthqd check` has nothing to say about
// them.
func TestExamples(t *testing.T) {
	names, err := filepath.Glob("../../configs/*.toml")
	if err != nil || len(names) != 3 {
		t.Fatalf("examples: %v, %v", names, err)
	}
	for _, name := range names {
		c, err := Load(name)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if want := filepath.Base(name); want != string(c.Role)+".toml" {
			t.Errorf("%s has the role %s", want, c.Role)
		}
		for _, w := range c.Warnings() {
			t.Errorf("%v", w)
		}
	}
}
