package client_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"ptthqd/pkg/client"
)

// A Unix listener has the group and the mode of its mapping, and a reload changes both.
func TestUnixSocketGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give a file any group")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "db.sock")
	m := mapping("db", "unix db.sock")
	m.ListenGroup = "12345"
	n := start(t, client.Config{Settings: settings(m), RuntimeDirectory: dir})
	for _, want := range []uint32{12345, 12346} {
		wantMode(t, path, 0o660)
		info, err := os.Lstat(path)
		if err != nil || info.Sys().(*syscall.Stat_t).Gid != want {
			t.Errorf("%v, %v, want group %d", info.Sys(), err, want)
		}
		m.ListenGroup = "12346"
		n.apply(t, m)
	}
	if err := n.stop(); err != nil {
		t.Error(err)
	}
}
