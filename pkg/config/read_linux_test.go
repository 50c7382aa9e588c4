package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A plain user who must not read something is told the command that mends it.
func TestUnreadable(t *testing.T) {
	for _, test := range []struct {
		name, deny string
		mode       fs.FileMode
		want       string
	}{
		{
			"file", "c/ptthq.toml", 0o600,
			"read ROOT/c/ptthq.toml: permission denied; `chmod a+r ROOT/c/ptthq.toml`",
		},
		{"directory", "c", 0o644, "read ROOT/c/ptthq.toml: permission denied; `chmod a+x ROOT/c`"},
		{
			"directory above", ".", 0o600,
			"read ROOT/c/ptthq.toml: permission denied; `chmod a+x ROOT`",
		},
		{
			"included file", "c/ptthq.d/my peers.toml", 0o640,
			"read ROOT/c/ptthq.d/my peers.toml: permission denied; `chmod a+r 'ROOT/c/ptthq.d/my peers.toml'`",
		},
		{
			"include directory", "c/ptthq.d", 0o711,
			"list ROOT/c/ptthq.d: permission denied; `chmod a+rx ROOT/c/ptthq.d`",
		},
		{
			"include directory that can only be listed", "c/ptthq.d", 0o744,
			"read ROOT/c/ptthq.d/my peers.toml: permission denied; `chmod a+x ROOT/c/ptthq.d`",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, map[string]string{
				"c/ptthq.toml":            "role = \"relay\"\n",
				"c/ptthq.d/my peers.toml": "",
			})
			for path, mode := range map[string]fs.FileMode{
				filepath.Dir(dir):             0o755, // the others' way here
				filepath.Join(dir, test.deny): test.mode,
			} {
				if err := os.Chmod(path, mode); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() { os.Chmod(filepath.Join(dir, test.deny), 0o755) })

			var err error
			asPlainUser(t, func() { _, err = ReadFiles(filepath.Join(dir, "c/ptthq.toml")) })
			if _, ok := errors.AsType[*HostError](err); !ok || !errors.Is(err, fs.ErrPermission) {
				t.Fatalf("%T: %v", err, err)
			}
			if want := strings.ReplaceAll(test.want, "ROOT", dir); !strings.HasPrefix(err.Error(),
				want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
		})
	}
}

// asPlainUser runs f on a thread that is root no more where files are concerned. Who runs the tests
// as another user owns the files, so the modes above would not keep them out.
func asPlainUser(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can be another user: run this test as root too")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const nobody = 65534
	old, err := unix.SetfsuidRetUid(nobody)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.SetfsuidRetUid(old)
	gid, err := unix.SetfsgidRetGid(nobody)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.SetfsgidRetGid(gid)
	f()
}
