package deploy_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestInstall installs from source, twice, and takes it away again. The package is made of the same target.
func TestInstall(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: it is a layout of Linux's")
	}
	root, bin := t.TempDir(), t.TempDir()
	config := filepath.Join(root, "etc", "ptthq.toml")
	do := func(target string) {
		t.Helper()
		cmd := exec.Command("make", "-C", "..", target, "DESTDIR="+root, "BIN="+bin, "VERSION=1.0.0", "COMMIT=none")
		cmd.Env = append(os.Environ(), "GOFLAGS=", "MAKEFLAGS=", "MFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("make %s: %v\n%s", target, err, out)
		}
	}
	installed := func() (files []string) {
		t.Helper()
		err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				files = append(files, strings.TrimPrefix(path, root))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return files
	}

	do("install")
	files := installed()
	for _, want := range []string{
		"bin/ptthqd",
		"lib/systemd/system/ptthqd.service", "lib/systemd/system/ptthqd@.service",
		"lib/systemd/system/ptthqd.socket", "lib/systemd/system/ptthqd@.socket", "lib/systemd/user/ptthqd.service",
		"lib/sysusers.d/ptthqd.conf", "lib/sysctl.d/10-ptthqd.conf",
		"share/man/man8/ptthqd.8.gz", "share/man/man5/ptthqd.toml.5.gz",
		"share/bash-completion/completions/ptthqd", "share/zsh/site-functions/_ptthqd", "share/fish/vendor_completions.d/ptthqd.fish",
		"share/ptthqd/privileged-ports.conf", "share/ptthqd/ptthq.toml", "share/ptthqd/relay.toml", "share/doc/ptthqd/README.md",
	} {
		if !slices.Contains(files, "/usr/local/"+want) {
			t.Errorf("%s is not installed", want)
		}
	}
	unit, err := os.ReadFile(filepath.Join(root, "usr/local/lib/systemd/system/ptthqd.service"))
	if err != nil || !strings.Contains(string(unit), "ExecStart=/usr/local/bin/ptthqd run") || strings.Contains(string(unit), "/usr/bin/ptthqd") {
		t.Errorf("the unit starts another program: %v\n%s", err, unit)
	}

	dropIn, err := os.ReadFile(filepath.Join(root, "usr/local/share/ptthqd/privileged-ports.conf"))
	if err != nil || !strings.Contains(string(dropIn), " /usr/local/share/ptthqd/privileged-ports.conf ") {
		t.Errorf("the drop-in names another place: %v\n%s", err, dropIn)
	}
	if slices.Contains(files, "/etc/ptthq.toml") {
		t.Error("a config is installed: `ptthqd init` writes it")
	}

	const edited = "# the administrator was here\n"
	if err := os.MkdirAll(filepath.Dir(config), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	do("install")
	if text, err := os.ReadFile(config); err != nil || string(text) != edited {
		t.Errorf("a second install has changed the config: %q, %v", text, err)
	}
	do("uninstall")
	if left := installed(); !slices.Equal(left, []string{"/etc/ptthq.toml"}) {
		t.Errorf("uninstall leaves %q", left)
	}
}
