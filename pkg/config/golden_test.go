package config

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden messages of the bad configurations")

// Each bad configuration is refused with all that is wrong with it, in words and with a place.
func TestBadConfigurations(t *testing.T) {
	names, err := filepath.Glob("testdata/*.bad.toml")
	if err != nil || len(names) < 30 {
		t.Fatalf("%d bad configurations, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".bad.toml"), func(t *testing.T) {
			c, err := Load(filepath.ToSlash(name))
			if c != nil || err == nil {
				t.Fatal("it was accepted")
			}
			faults, ok := errors.AsType[Errors](err)
			if !ok {
				t.Fatalf("%T is no fault of the text: %v", err, err)
			}
			for _, f := range faults {
				if f.File == "" || f.Line < 1 || f.Column < 1 || f.Message == "" {
					t.Errorf("a fault without place or message: %#v", f)
				}
			}
			got := err.Error() + "\n"
			golden := strings.TrimSuffix(name, ".toml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}
