//go:build unix

package control_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ptthqd/pkg/control"
)

// Whoever may put another socket in the place of the control socket is the daemon for those who
// ask, so such a directory is not used.
func TestListenTrustsNoDirectoryOfOthers(t *testing.T) {
	for _, c := range []struct {
		name   string
		make   func(t *testing.T, dir string) error
		root   bool // it takes root to make
		refuse string
	}{
		{"own", func(_ *testing.T, dir string) error { return os.Chmod(dir, 0o755) }, false, ""},
		{"sticky", func(_ *testing.T,
			dir string,
		) error {
			return os.Chmod(dir, 0o777|os.ModeSticky)
		}, false, ""},
		{
			"anyone's", func(_ *testing.T, dir string) error { return os.Chmod(dir, 0o777) }, false,
			"has mode 0777: anyone could put a socket of his own there",
		},
		{
			"another user's",
			func(_ *testing.T,
				dir string,
			) error {
				return os.Chown(dir, 12345,
					12345)
			}, true, "belongs to user 12345",
		},
		{"a link of another user", func(t *testing.T, dir string) error {
			if err := os.Remove(dir); err != nil {
				return err
			}
			if err := os.Symlink(t.TempDir(), dir); err != nil {
				return err
			}
			return os.Lchown(dir, 12345, 12345)
		}, true, "belongs to user 12345"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.root && os.Geteuid() != 0 {
				t.Skip("only root can make what belongs to others")
			}
			dir := filepath.Join(t.TempDir(), "d")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.make(t, dir); err != nil {
				t.Fatal(err)
			}
			l, err := control.Listen(t.Context(), filepath.Join(dir, "s"))
			if err == nil {
				_ = l.Close()
			}
			if c.refuse == "" && err != nil || c.refuse != "" &&
				(err == nil || !strings.Contains(err.Error(), c.refuse)) {
				t.Errorf("%v; want %q", err, c.refuse)
			}
		})
	}
}
