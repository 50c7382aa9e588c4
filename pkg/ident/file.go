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

// maxKeyFile is how many bytes of a key file are read: room for a key and much white space.
const maxKeyFile = 4096

// LoadPrivateKey reads the key file at path. As sshd and WireGuard do, it refuses a file that
// others than its owner may read or write; the error has the command that mends it. Files below
// $CREDENTIALS_DIRECTORY are taken as they are: systemd guards them by an ACL that makes them look
// group-readable. Errors match [fs.ErrNotExist] or [fs.ErrPermission] if that is the cause, and
// never have the file's content.
func LoadPrivateKey(path string) (PrivateKey, error) {
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return PrivateKey{}, fmt.Errorf("read private key: %w: make one with `ptthqd keygen -o %s`",
			err, shellQuote(path))
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

// CheckKeyFile returns an error if others may read or write the key file at path, as
// [LoadPrivateKey] does. It needs no right to read the file. Use it for the file from which systemd
// has made a credential, since the credential has a mode of its own.
func CheckKeyFile(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at private key: %w", err)
	}
	return refuseMode(info, path)
}

// checkMode returns an error if others may read or write the key file. It asks the open file, and
// not the path, so that the checked file is the one that is read.
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

// refuseMode returns an error if others may read or write a file. Windows has no such bits.
func refuseMode(info fs.FileInfo, path string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("private key %s is open to other users (mode %04o): "+
			"mend it with `chmod 600 %s`, and change the key if somebody may have read it",
			path, mode, shellQuote(path))
	}
	return nil
}

// isCredential reports whether path lies below the directory of the service's systemd credentials.
func isCredential(path string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return false
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// WritePrivateKey writes k to a file at path with mode 0600, and returns when the disk has it. If
// the file exists, it returns an error that matches [fs.ErrExist]. With force it replaces the file
// in one step, so that a reader sees the old key or the new one.
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

// syncDir writes the names in dir to the disk. Windows has no call for that, and does not need it.
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

// user returns the user of this process, as an argument of chown.
func user() string {
	if uid := os.Getuid(); uid >= 0 {
		return fmt.Sprint(uid)
	}
	return "USER"
}

// shellQuote quotes s if a shell needs it.
func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-@:=+,%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
