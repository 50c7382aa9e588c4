package ident_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"ptthqd/pkg/ident"
)

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ptthq.key")
	key := generate(t)
	if err := ident.WritePrivateKey(path, key, false); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if runtime.GOOS != "windows" && info.Mode() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode())
	}
	wantKey(t, path, key)

	other := generate(t)
	if err := ident.WritePrivateKey(path, other, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("writing over a key: error %v, want one that matches fs.ErrExist", err)
	}
	wantKey(t, path, key)

	if err := ident.WritePrivateKey(path, other, true); err != nil {
		t.Fatal(err)
	}
	wantKey(t, path, other)
	left, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 {
		t.Errorf("%v: want the key alone, and nothing left over", left)
	}
}

// wantKey loads the key file and compares.
func wantKey(t *testing.T, path string, want ident.PrivateKey) {
	t.Helper()
	got, err := ident.LoadPrivateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Public() != want.Public() {
		t.Errorf("%s holds another key", path)
	}
}

func TestKeyFileErrorsSayWhatToDo(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "my keys", "missing.key")
	_, err := ident.LoadPrivateKey(missing)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "ptthqd keygen -o '"+missing+"'") {
		t.Errorf("missing file: %v", err)
	}
	if err := ident.WritePrivateKey(missing, generate(t), false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	if err := ident.WritePrivateKey(missing, generate(t), true); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory, with force: %v", err)
	}

	garbage := filepath.Join(dir, "garbage.key")
	if err := os.WriteFile(garbage, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = ident.LoadPrivateKey(garbage)
	if err == nil || !strings.Contains(err.Error(), garbage) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("garbage: %v", err)
	}

	if _, err := ident.LoadPrivateKey(dir); err == nil {
		t.Error("a directory was read as a key")
	}
}

func TestKeyFileOpenToOthersIsRefused(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no permission bits")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "ptthq.key")
	key := generate(t)
	if err := ident.WritePrivateKey(path, key, false); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o644, 0o640, 0o602, 0o601} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := ident.LoadPrivateKey(path)
		if err == nil || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %v: error %v, want one with the chmod", mode, err)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	wantKey(t, path, key)

	// systemd makes its credentials 0440, as an ACL shows in the group's bits.
	if err := os.Chmod(path, 0o440); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Join(dir, "elsewhere"))
	if _, err := ident.LoadPrivateKey(path); err == nil {
		t.Error("mode 0440 outside the credentials directory: accepted")
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	wantKey(t, path, key)
}

// What is open to others is refused, whether this process may read it or not.
func TestCheckKeyFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no modes here")
	}
	path := filepath.Join(t.TempDir(), "node.key")
	if err := ident.CheckKeyFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, open := range map[os.FileMode]bool{0o600: false, 0o400: false, 0o640: true, 0o644: true, 0o602: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := ident.CheckKeyFile(path); (err != nil) != open {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}
