package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A file that lies among the included ones and is not read is told of; what editors and package
// managers leave is not.
func TestFilesThatAreNotRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unread := func(c *Config) string {
		var names []string
		for _, w := range c.Warnings() {
			if strings.Contains(w.Message, "not read") {
				names = append(names,
					strings.TrimPrefix(w.File, dir+string(filepath.Separator))+" "+w.Hint)
			}
		}
		return strings.Join(names, "\n")
	}
	load := func(name string) *Config {
		t.Helper()
		c, err := Load(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	write("ptthq.toml", clientHead)
	write("notes.txt", "")
	write("other.TOML", "")
	write("ptthq.d/read.toml", mapping("a 2200 nas 22"))
	for _, name := range []string{
		"a.toml~", ".a.toml.swp", "#a.toml#", "a.toml.dpkg-old", "a.toml.ucf-dist", "a.toml.rpmsave", "a.toml.bak", "a.toml.disabled", "README", "README.md", ".hidden", "sub.conf/x.conf",
	} {
		write("ptthq.d/"+name, "")
	}
	c := load("ptthq.toml")
	if got := unread(c); got != "" {
		t.Errorf("warned of\n%s", got)
	}
	write("ptthq.d/a.TOML", "")
	write("ptthq.d/b.conf", "")
	write("ptthq.d/c", "")
	const want = "ptthq.d/a.TOML rename it to a.toml if it belongs to the config, else move it away\n" +
		"ptthq.d/b.conf rename it to b.toml if it belongs to the config, else move it away\n" +
		"ptthq.d/c rename it to c.toml if it belongs to the config, else move it away"
	for what, c := range map[string]*Config{"put there later": c, "there": load("ptthq.toml")} {
		if got := filepath.ToSlash(unread(c)); got != want {
			t.Errorf("%s: warned of\n%s", what, got)
		}
	}

	// Beside other programs' files only a name in another case is a mistake.
	write("main.toml", "include = [\"p*.toml\", \"ptthq.d/*\"]\n"+clientHead)
	for _, name := range []string{"ptthq.toml", "ptthq.d"} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write("ptthq.d/x.conf", mapping("a 2200 nas 22"))
	if got := unread(load("main.toml")); !strings.HasPrefix(got, "other.TOML ") ||
		strings.Contains(got, "\n") {
		t.Errorf("warned of\n%s", got)
	}
	for i := range 30 {
		write("ptthq.d/z"+strings.Repeat("z", i)+".TOML", "")
	}
	write("many.toml", clientHead)
	if err := os.Rename(filepath.Join(dir, "ptthq.d"), filepath.Join(dir, "many.d")); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(unread(load("many.toml")), "\n") + 1; n != 11 {
		t.Errorf("%d warnings", n)
	}
}
