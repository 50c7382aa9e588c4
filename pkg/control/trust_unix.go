//go:build unix

package control

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// trustDir returns an error if others than root and this user can put another socket into dir, or
// another directory in its place. Each directory on the way, up to the first of root's, must belong
// to one of the two, and must not be writable for others unless it is sticky, as /tmp is.
func trustDir(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	trusted := map[uint32]bool{0: true, uint32(os.Geteuid()): true}
	if root, err := os.Lstat("/"); err == nil {
		trusted[ownerOf(root)] = true // in a user namespace root may have another ID
	}
	for ; ; dir = filepath.Dir(dir) {
		link, err := os.Lstat(dir)
		if err != nil {
			return err
		}
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		for _, i := range []fs.FileInfo{link, info} {
			if !trusted[ownerOf(i)] {
				return fmt.Errorf("%s belongs to user %d, who could put a socket of his own there",
					dir, ownerOf(i))
			}
		}
		if !info.IsDir() {
			return fmt.Errorf("%s is no directory", dir)
		}
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&fs.ModeSticky == 0 {
			return fmt.Errorf("%s has mode %04o: anyone could put a socket of his own there", dir,
				info.Mode().Perm())
		}
		if ownerOf(info) == 0 || dir == filepath.Dir(dir) {
			return nil
		}
	}
}

func ownerOf(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }
