package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	key1 = "m5ZbHNo2w1bOBuJ5rWBgPSCA4jHW2Xn2iWVvYtDmZzo="
	key2 = "9tQxVAhV2wH7b3xGqJmC2UzZBDBQsUoaDPRKkhd8nlg="
	key3 = "KdVd4Y8nyLJyTkuzSBBTyO4KuUKQLeuM2oFh5BSLt3I="
)

func serverPeer(id, key string) string {
	return "[[peers]]\nid = \"" + id + "\"\nrole = \"server\"\npublic_key = \"" + key + "\"\n"
}

// write makes files below dir; a name that ends in "/" is a directory, a content that begins with
// "->" a symbolic link.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		target, link := strings.CutPrefix(text, "->")
		switch {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(path, 0o755)
		case link:
			err = os.Symlink(target, path)
		default:
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func ids(c *Config) []string {
	var list []string
	for _, p := range c.Peers {
		list = append(list, p.ID)
	}
	return list
}

func TestInclude(t *testing.T) {
	three := map[string]string{
		"ptthq.toml":            "role = \"relay\"\n" + serverPeer("main", key1),
		"ptthq.d/20-b.toml":     serverPeer("b", key2),
		"ptthq.d/10-c.toml":     serverPeer("c", key3),
		"ptthq.d/.10-c.toml":    "the swap file of an editor",
		"ptthq.d/10-c.toml~":    "its backup",
		"ptthq.d/10-c.toml.bak": "another",
		"sites/x/peers.toml":    serverPeer("x", key2),
		"sites/y/peers.toml":    serverPeer("y", key3),
		"sites/z/other.toml":    "",
		"sites/README":          "",
	}
	for _, test := range []struct {
		name, include string
		want          []string
	}{
		{"by default NAME.d beside NAME.toml, sorted", "", []string{"main", "c", "b"}},
		{"none", "include = []\n", []string{"main"}},
		{"one file", `include = ["ptthq.d/20-b.toml"]` + "\n", []string{"main", "b"}},
		{
			"in the order of the patterns, each file once",
			`include = ["ptthq.d/2*.toml", "./ptthq.d/*.toml"]` + "\n",
			[]string{"main", "b", "c"},
		},
		{
			"a wildcard for directories", `include = ["sites/*/peers.toml"]` + "\n",
			[]string{"main", "x", "y"},
		},
		{
			"a directory that isn't there (yet)", `include = ["none.d/*.toml"]` + "\n",
			[]string{"main"},
		},
		{"not itself", `include = ["*.toml"]` + "\n", []string{"main"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, three)
			write(t, dir, map[string]string{"ptthq.toml": test.include + three["ptthq.toml"]})
			c, err := Load(filepath.Join(dir, "ptthq.toml"))
			if err != nil {
				t.Fatal(err)
			}
			if got := ids(c); !slices.Equal(got, test.want) {
				t.Errorf("peers %v, want %v", got, test.want)
			}
			if len(c.Files) != len(test.want) {
				t.Errorf("files %v", c.Files)
			}
		})
	}
}

// A directory may be named with characters that mean something in a pattern.
func TestIncludeTakesDirectoriesLiterally(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*")
	write(t, dir, map[string]string{
		"[x].toml":        "role = \"relay\"\n" + serverPeer("main", key1),
		"[x].d/peer.toml": serverPeer("a", key2),
		"x.d/peer.toml":   "not this one",
	})
	c, err := Load(filepath.Join(dir, "[x].toml"))
	if err != nil || len(c.Peers) != 2 {
		t.Fatalf("%v, %v", c, err)
	}
}

func TestSnapshotHash(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ptthq.toml")
	read := func() *Snapshot {
		t.Helper()
		s, err := ReadFiles(path)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	write(t, dir, map[string]string{
		"ptthq.toml": "role = \"relay\"\n", "ptthq.d/a.toml": "",
		"ptthq.d/b.toml": "# b",
	})
	first := read()
	if read().Hash != first.Hash {
		t.Error("the hash of the same files differs")
	}
	t.Chdir(dir)
	if other, err := ReadFiles("ptthq.toml"); err != nil || other.Hash != first.Hash {
		t.Errorf("the hash of the same files, named in another way, differs; %v", err)
	}
	seen := map[string]string{first.Hash: "as it was"}
	for _, change := range []struct {
		what string
		do   func() error
	}{
		{
			"a byte in an included file",
			func() error { return os.WriteFile(dir+"/ptthq.d/b.toml", []byte("# c"), 0o644) },
		},
		{"a byte moved from one file to the next", func() error {
			return errors.Join(os.WriteFile(dir+"/ptthq.d/a.toml", []byte("#"), 0o644),
				os.WriteFile(dir+"/ptthq.d/b.toml", []byte(" c"), 0o644))
		}},
		{
			"another name",
			func() error { return os.Rename(dir+"/ptthq.d/a.toml", dir+"/ptthq.d/aa.toml") },
		},
		{"a file gone", func() error { return os.Remove(dir + "/ptthq.d/b.toml") }},
	} {
		if err := change.do(); err != nil {
			t.Fatal(err)
		}
		s := read()
		if other, ok := seen[s.Hash]; ok {
			t.Errorf("%s: the same hash as %s", change.what, other)
		}
		seen[s.Hash] = change.what
	}
	if gone := read().Gone(first); !slices.Equal(gone,
		[]string{dir + "/ptthq.d/a.toml", dir + "/ptthq.d/b.toml"}) {
		t.Errorf("gone: %v", gone)
	}
}

func TestTooLarge(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ptthq.toml")
	write(t, dir, map[string]string{"ptthq.toml": ""})
	if err := os.Truncate(path, 100<<20); err != nil { // sparse: it takes no space
		t.Fatal(err)
	}
	_, err := Load(path)
	faults, ok := errors.AsType[Errors](err)
	if !ok || !strings.Contains(err.Error(), "16MiB") || faults[0].File != path {
		t.Errorf("%T: %v", err, err)
	}

	// So are many that are large together.
	write(t, dir, map[string]string{"ptthq.toml": "role = \"relay\"\n"})
	for _, name := range []string{"a", "b", "c"} {
		write(t, dir, map[string]string{"ptthq.d/" + name + ".toml": ""})
		if err := os.Truncate(filepath.Join(dir, "ptthq.d", name+".toml"), 6<<20); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(path); err == nil || !strings.Contains(err.Error(), "c.toml:1:1: too large") {
		t.Errorf("%v", err)
	}
}

func TestFaultsOfTheHost(t *testing.T) {
	dir := t.TempDir()
	relay := "role = \"relay\"\n"
	write(t, dir, map[string]string{
		"directory.toml/":      "",
		"dir.toml":             relay,
		"dir.d/x.toml/":        "",
		"dangling.toml":        relay,
		"dangling.d/x.toml":    "->nowhere",
		"missing-include.toml": `include = ["peers.toml"]` + "\n" + relay,
		"not-dir.toml":         relay,
		"not-dir.d":            "a file",
	})
	for _, test := range []struct {
		name, want string
		missing    bool
	}{
		{"none.toml", "none.toml: no such file or directory; `ptthqd init`", true},
		{"directory.toml", "directory.toml: is a directory", false},
		{"dir.toml", "dir.d/x.toml: is a directory", false},
		{"dangling.toml", "dangling.d/x.toml: no such file or directory; make it", true},
		{"missing-include.toml", "peers.toml: no such file or directory; make it", true},
		{"not-dir.toml", "list " + dir + "/not-dir.d: not a directory", false},
	} {
		_, err := Load(filepath.Join(dir, test.name))
		if _, ok := errors.AsType[*HostError](err); !ok ||
			!strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %T: %v", test.name, err, err)
		}
		if errors.Is(err, fs.ErrNotExist) != test.missing {
			t.Errorf("%s: %v: is it missing?", test.name, err)
		}
	}
}

func TestPrivateKeyFile(t *testing.T) {
	dir, credentials := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{
		"plain.toml":    "role = \"relay\"\n",
		"plain":         "role = \"relay\"\n",
		"relative.toml": "role = \"relay\"\nprivate_key_file = \"keys/my.key\"\n",
		"absolute.toml": "role = \"relay\"\nprivate_key_file = \"/run/keys/../my.key\"\n",
	})
	for _, test := range []struct {
		file       string
		credential bool
		want       string
	}{
		{"plain.toml", false, dir + "/plain.key"},
		{"plain", false, dir + "/plain.key"},
		{"plain.toml", true, credentials + "/ptthq.key"},
		{"relative.toml", true, dir + "/keys/my.key"},
		{"absolute.toml", true, "/run/my.key"},
	} {
		t.Setenv("CREDENTIALS_DIRECTORY", credentials)
		if err := os.RemoveAll(credentials + "/ptthq.key"); err != nil {
			t.Fatal(err)
		}
		if test.credential {
			write(t, credentials, map[string]string{"ptthq.key": ""})
		}
		c, err := Load(filepath.Join(dir, test.file))
		if err != nil {
			t.Fatal(err)
		}
		if c.PrivateKeyFile != test.want {
			t.Errorf("%s: %s, want %s", test.file, c.PrivateKeyFile, test.want)
		}
	}
}

func TestWatches(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(names ...string) []string {
		for i, name := range names {
			names[i] = filepath.Join(root, name)
		}
		return names
	}
	relay := "role = \"relay\"\n"
	write(t, root, map[string]string{
		"etc/ptthq.toml":         relay,
		"etc/ptthq.d/a.toml":     "->../../elsewhere/a.toml",
		"elsewhere/a.toml":       "",
		"k8s/..2024/ptthq.toml":  relay,
		"k8s/..data":             "->..2024",
		"k8s/ptthq.toml":         "->..data/ptthq.toml",
		"app/releases/1/p.toml":  relay,
		"app/current":            "->" + filepath.Join(root, "app/releases/1"),
		"deep/later.toml":        `include = ["not/there/yet/*.toml"]` + "\n" + relay,
		"loop/ptthq.toml":        "->ptthq.toml",
		"many/p.toml":            `include = ["sites/*/peers.toml"]` + "\n" + relay,
		"many/sites/a/":          "",
		"many/sites/b/x.toml":    "",
		"elsewhere/many/c/x.yml": "",
	})
	for _, test := range []struct {
		path string
		want []string
	}{
		{"etc/ptthq.toml", at("", "etc", "etc/ptthq.d", "etc/ptthq.toml", "elsewhere")},
		{"k8s/ptthq.toml", at("", "k8s", "k8s/..2024", "k8s/..2024/ptthq.toml")},
		{
			"app/current/p.toml",
			at("app", "app/releases", "app/releases/1", "app/releases/1/p.toml"),
		},
		{"deep/later.toml", at("", "deep", "deep/later.toml")},
		{"elsewhere/many/none.toml", at("elsewhere", "elsewhere/many")},
		{"no/such/none.toml", at("")},
		{"many/p.toml", at("", "many", "many/p.toml", "many/sites", "many/sites/a",
			"many/sites/b")},
		{"loop/ptthq.toml", at("", "loop")},
	} {
		path := filepath.Join(root, test.path)
		s, err := ReadFiles(path)
		if err != nil {
			s = nil
		}
		got := Watches(path, s)
		slices.Sort(test.want)
		for _, want := range test.want {
			if !slices.Contains(got, want) && want != root {
				t.Errorf("%s: %s is not watched, only %v", test.path, want, got)
			}
		}
		for _, name := range got {
			if strings.HasPrefix(name, root+"/") && !slices.Contains(test.want, name) {
				t.Errorf("%s: %s is watched for nothing", test.path, name)
			}
			if _, err := os.Stat(name); err != nil {
				t.Errorf("%s: %v", test.path, err)
			}
		}
	}
}
