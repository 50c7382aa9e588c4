package ident

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// maxKeyFile bounds what is read of a key file: room for a key and much white space.
const maxKeyFile = 4096

// LoadPrivateKey reads the key file at path. As sshd and WireGuard do, it refuses a file that others than its owner may
// read, with the command that mends it; below $CREDENTIALS_DIRECTORY systemd guards the files, by an ACL that makes
// them look group-readable, so they are taken as they are. The errors match [fs.ErrNotExist] and [fs.ErrPermission]
// where it is that; none holds the file's content.
func LoadPrivateKey(path string) (PrivateKey, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return PrivateKey{}, fmt.Errorf("read private key: %w: make one with `ptthqd keygen -o %s`", err, shellQuote(path))
	case errors.Is(err, fs.ErrPermission):
		return PrivateKey{}, fmt.Errorf("read private key: %w: only its owner may read it: "+
			"run as that user, or give it to this one with `chown %s %s`", err, user(), shellQuote(path))
	case err != nil:
		return PrivateKey{}, fmt.Errorf("read private key: %w", err)
	}
	defer f.Close()
	if err := checkMode(f, path); err != nil {
		return PrivateKey{}, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return PrivateKey{}, fmt.Errorf("read private key: %w", err)
	}
	key, err := ParsePrivateKey(text)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// CheckKeyFile refuses the key file at path as [LoadPrivateKey] does when others may read or write it, and takes no right
// to read it. It is for the file of which systemd has made a credential: that has a mode of its own.
func CheckKeyFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at private key: %w", err)
	}
	return refuseMode(info, path)
}

// checkMode refuses the open key file f when others may read or write it. It asks the open file, not the path, so that
// what was checked is what is read.
func checkMode(f *os.File, path string) error {
	if isCredential(path) {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read private key: %w", err)
	}
	return refuseMode(info, path)
}

// refuseMode refuses a file that others may read or write. Windows has no such bits.
func refuseMode(info fs.FileInfo, path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("private key %s is open to other users (mode %04o): mend it with `chmod 600 %s`, "+
			"and change the key if somebody may have read it", path, mode, shellQuote(path))
	}
	return nil
}

// isCredential tells whether path lies below the directory in which systemd hands a service its credentials.
func isCredential(path string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// WritePrivateKey writes k to a file at path that only its owner may read (mode 0600), and returns when the disk has it.
// It does not touch a file that is there, and then returns an error that matches [fs.ErrExist], unless force is true:
// then it puts the new file in the old one's place in one step, so that a reader sees either key whole.
func WritePrivateKey(path string, k PrivateKey, force bool) error {
	if err := writePrivateKey(path, k, force); err != nil {
		return fmt.Errorf("write private key: %w", err)
	}
	return nil
}

func writePrivateKey(path string, k PrivateKey, force bool) error {
	dir := filepath.Dir(path)
	var f *os.File
	var err error
	if force {
		f, err = os.CreateTemp(dir, "."+filepath.Base(path)+".*") // mode 0600
	} else {
		f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(k.Encode())
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil && force {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// syncDir makes a new name in dir last. Windows cannot do that, and needs no help.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// user names the user that this process runs as, for a chown.
func user() string {
	if uid := os.Getuid(); uid >= 0 {
		return fmt.Sprint(uid)
	}
	return "USER"
}

// shellQuote quotes s where a shell would need it.
func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-@:=+,%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
