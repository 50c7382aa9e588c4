package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"ptthqd/pkg/policy"
)

// addSeeds adds the examples and the bad configurations to a fuzz target's corpus.
func addSeeds(f *testing.F) {
	f.Helper()
	for _, pattern := range []string{"../../configs/*.toml", "testdata/*.toml"} {
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

// No text makes Parse panic, or return anything but a Config that others take or Errors with a
// place.
func FuzzParse(f *testing.F) {
	addSeeds(f)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(&Snapshot{Path: "ptthq.toml", Files: []File{{"ptthq.toml", []byte(text)}}})
		if err != nil {
			faults, ok := errors.AsType[Errors](err)
			if !ok || len(faults) == 0 || len(faults) > maxErrors {
				t.Fatalf("%T: %v", err, err)
			}
			for _, fault := range faults {
				if fault.File != "ptthq.toml" || fault.Line < 1 || fault.Column < 1 ||
					fault.Message == "" {
					t.Fatalf("%#v", fault)
				}
			}
			return
		}
		if _, err := policy.NewRelay(c.Peers); err != nil {
			t.Fatalf("policy refuses what config accepts: %v", err)
		}
		if _, err := policy.NewServices(c.Services); err != nil {
			t.Fatalf("policy refuses what config accepts: %v", err)
		}
		for _, l := range append(c.Listen, c.Metrics.Listen) {
			again(t, UDP, l)
		}
		for _, m := range c.Mappings {
			again(t, TCP, m.Listen)
		}
		if d := Compare(c, c); !d.Empty() {
			t.Fatalf("it differs from itself: %v", d.Lines())
		}
		c.Warnings()
		c.Notes()
	})
}

// again parses the canonical text of a listener, which must mean the same.
func again(t *testing.T, kind Kind, l Listen) {
	t.Helper()
	if l.IsZero() || l.Kind == TCP && kind == UDP {
		return
	}
	if parsed, _, err := parseListen(kind, l.String()); err != nil || parsed != l {
		t.Fatalf("%q becomes %q, %v", l, parsed, err)
	}
}
