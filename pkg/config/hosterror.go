package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// HostError is a fault of the host, not of the text: a file that is missing or may not be read. A
// program that ends because of one exits with 1, because a restart may succeed.
type HostError struct {
	Op   string // "read", "list"
	Path string
	Err  error
	Hint string // the command that mends it; may be empty
}

// Error returns "op path: reason; hint".
func (e *HostError) Error() string {
	text := e.Op + " " + e.Path + ": " + e.Err.Error()
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Unwrap returns the operating system's error, so that a caller can detect [fs.ErrNotExist]: the
// file may come back.
func (e *HostError) Unwrap() error { return e.Err }

// hostError makes a HostError with a hint. main says that the file is the main one.
func hostError(op, name string, main bool, err error) error {
	if pathError := (*fs.PathError)(nil); errors.As(err, &pathError) {
		err = pathError.Err
	}
	e := &HostError{Op: op, Path: name, Err: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Hint = mend(name)
	case errors.Is(err, fs.ErrNotExist) && op == "read" && main:
		e.Hint = "`ptthqd init` writes one, -c FILE names another"
	case errors.Is(err, fs.ErrNotExist):
		e.Hint = "make it, or take it out of the include key"
	}
	return e
}

// mend returns the commands that let this process read a file or list a directory; "" if the path
// is not known.
func mend(name string) string {
	if runtime.GOOS == "windows" {
		return "give the user who runs ptthqd the right to read it"
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return ""
	}
	object, mode := abs, "a+r"
	if info, err := os.Stat(abs); err == nil && info.IsDir() {
		mode = "a+rx"
	}
	for at := abs; at != filepath.Dir(at); at = filepath.Dir(at) {
		if _, err := os.Lstat(at); errors.Is(err, fs.ErrPermission) { // mend the topmost one
			object, mode = filepath.Dir(at), "a+x"
		}
	}
	name = strconv.Itoa(os.Geteuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("`chmod %s %s` lets everybody read it (no secret belongs in it), "+
		"`chown %s %[2]s` lets this user", mode, quote(object), name)
}

// quote returns a path as it can be pasted into a shell.
func quote(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("/._-+@:", r)
	}
	if strings.ContainsFunc(path, func(r rune) bool { return !plain(r) }) {
		return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	return path
}
