package ptthqd_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// dependencies is the golden list: each module whose code is in the program on some platform, and its licence.
const dependencies = "testdata/dependencies.txt"

// licences maps what every text of a licence says to its SPDX name; all of these may be linked into ours. The first that
// matches counts.
var licences = []struct {
	name string
	says []string
}{
	{"Apache-2.0", []string{"Apache License", "Version 2.0, January 2004"}},
	{"BSD-3-Clause", []string{"Redistribution and use in source and binary forms", "Neither the name of"}},
	{"BSD-3-Clause", []string{"Redistribution and use in source and binary forms", "used to endorse or promote products"}},
	{"BSD-2-Clause", []string{"Redistribution and use in source and binary forms"}},
	{"MIT", []string{"Permission is hereby granted, free of charge", "The above copyright notice and this permission notice"}},
}

type goDependency struct {
	Module *struct {
		Path string
		Dir  string
		Main bool
	}
}

// TestDependencies holds the golden list: a dependency is a decision, and so is its licence.
func TestDependencies(t *testing.T) {
	found := map[string]string{}
	for _, goos := range platforms {
		for _, d := range list[goDependency](t, goos, "list", "-deps", "-json=Module", "./...") {
			if d.Module != nil && !d.Module.Main && found[d.Module.Path] == "" {
				found[d.Module.Path] = licenceOf(t, d.Module.Path, d.Module.Dir)
			}
		}
	}
	want := map[string]string{}
	golden, err := os.ReadFile(dependencies)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(golden)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] != "#" {
			want[fields[0]] = fields[1]
		}
	}
	for path, licence := range found {
		if want[path] != licence {
			t.Errorf("the program contains %s (%s), %s says %q", path, licence, dependencies, cmp.Or(want[path], "nothing"))
		}
	}
	for path := range want {
		if found[path] == "" {
			t.Errorf("%s names %s, and the program does not contain it", dependencies, path)
		}
	}
	// Whoever gets the program gets the notices that these licences ask for.
	notices, err := os.ReadFile("deploy/debian/copyright")
	if err != nil {
		t.Fatal(err)
	}
	for path := range found {
		if !strings.Contains(string(notices), path) {
			t.Errorf("deploy/debian/copyright does not name %s", path)
		}
	}
	if t.Failed() {
		var lines []string
		for path, licence := range found {
			lines = append(lines, fmt.Sprintf("%s %s\n", path, licence))
		}
		slices.Sort(lines)
		t.Logf("as it is:\n%s", strings.Join(lines, ""))
	}
}

// licenceOf tells the SPDX name of the licence in a module's directory.
func licenceOf(t *testing.T, path, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "[LC][IO][CP][EY]*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // a directory of licences beside the file
		}
		words := strings.Join(strings.Fields(string(text)), " ")
		for _, l := range licences {
			if !slices.ContainsFunc(l.says, func(s string) bool { return !strings.Contains(words, s) }) {
				return l.name
			}
		}
	}
	t.Errorf("%s: no licence in %s that licences knows", path, dir)
	return "unknown"
}
