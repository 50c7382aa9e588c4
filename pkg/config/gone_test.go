package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A directory of included files is lost where it is gone as a whole, and not where its files were
// taken out.
func TestLost(t *testing.T) {
	const relay = "role = \"relay\"\n"
	for _, test := range []struct {
		name, include string
		do            func(dir string) error
		want          []string
	}{
		{"nothing", "", func(string) error { return nil }, nil},
		{
			"renamed", "", func(dir string) error { return os.Rename(dir+"/p.d", dir+"/q.d") },
			[]string{"p.d"},
		},
		{
			"removed", "", func(dir string) error { return os.RemoveAll(dir + "/p.d") },
			[]string{"p.d"},
		},
		{"emptied", "", func(dir string) error { return os.Remove(dir + "/p.d/a.toml") }, nil},
		{"another one, empty", "", func(dir string) error {
			return errors.Join(os.Rename(dir+"/p.d", dir+"/q.d"), os.Mkdir(dir+"/p.d", 0o755))
		}, []string{"p.d"}},
		{"another one, filled", "", func(dir string) error {
			return errors.Join(os.Rename(dir+"/p.d", dir+"/q.d"), os.Mkdir(dir+"/p.d", 0o755),
				os.WriteFile(dir+"/p.d/b.toml", nil, 0o644))
		}, nil},
		{"a link to an empty one", "", func(dir string) error {
			return errors.Join(os.Rename(dir+"/p.d", dir+"/q.d"),
				os.Symlink(dir+"/sites", dir+"/p.d"))
		}, []string{"p.d"}},
		{"not included any more", "", func(dir string) error {
			return errors.Join(os.RemoveAll(dir+"/p.d"),
				os.WriteFile(dir+"/p.toml", []byte("include = []\n"+relay), 0o644))
		}, nil},
		{
			"one of several", `include = ["sites/*/peers.toml"]`,
			func(dir string) error { return os.RemoveAll(dir + "/sites/x") },
			[]string{"sites/x"},
		},
		{
			"all of several", `include = ["sites/*/peers.toml"]`,
			func(dir string) error { return os.RemoveAll(dir + "/sites") },
			[]string{
				"sites/x",
				"sites/y",
			},
		},
		{"by another pattern", `include = ["sites/*/peers.toml"]`, func(dir string) error {
			return errors.Join(os.RemoveAll(dir+"/sites/x"),
				os.WriteFile(dir+"/p.toml", []byte("include = [\"sites/y/*.toml\"]\n"+relay),
					0o644))
		}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{
				"p.toml": test.include + "\n" +
					relay, "p.d/a.toml": "", "sites/x/peers.toml": "", "sites/y/peers.toml": "",
			})
			t.Chdir(dir)
			read := func() *Snapshot {
				t.Helper()
				s, err := ReadFiles("./p.toml")
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			first := read()
			if err := test.do(dir); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, name := range test.want {
				want = append(want, filepath.FromSlash(name))
			}
			if got := read().Lost(first); !slices.Equal(got, want) {
				t.Errorf("lost: %v, want %v", got, want)
			}
		})
	}
}
