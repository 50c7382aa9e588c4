package bind_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
)

// A Unix socket's file gets the group, by number or name, and back the process's own.
func TestGroup(t *testing.T) {
	dir := t.TempDir()
	b := bind.Binder{Directory: dir}
	l, err := b.Listen(t.Context(), on(config.Unix, "db.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close(false)
	if err := l.SetGroup("no-such-group-here"); err == nil || !strings.Contains(err.Error(), "listen_group") {
		t.Errorf("an unknown group: %v", err)
	}
	if os.Geteuid() != 0 {
		if err := l.SetGroup("0"); err == nil || !strings.Contains(err.Error(), "SupplementaryGroups=") {
			t.Errorf("a group of others: %v", err)
		}
		return
	}
	for group, want := range map[string]uint32{"12345": 12345, "root": 0, "": uint32(os.Getegid())} {
		if err := l.SetGroup(group); err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(filepath.Join(dir, "db.sock"))
		if err != nil || info.Sys().(*syscall.Stat_t).Gid != want {
			t.Errorf("%q: %v, %v", group, info.Sys(), err)
		}
	}
}
