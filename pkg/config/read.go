package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const (
	// maxBytes bounds all files of a configuration together. 10,000 peers take about 2 MiB.
	maxBytes = 16 << 20

	// maxFiles bounds their number.
	maxFiles = 20_000
)

// File is one file of a configuration, as it was read.
type File struct {
	Path string
	Data []byte
}

// Snapshot is all that a configuration says, as bytes: the main file, then those that it includes. Two with one Hash
// are the same, which is how a watcher tells that a writer has finished. A Snapshot is not changed once it is read.
type Snapshot struct {
	Path       string // of the main file, as it was given
	Files      []File
	Hash       string // SHA-256 over the names, as seen from the main file, and the contents, in hexadecimal
	Credential string // the key file that systemd hands over, when it does; see [Config.PrivateKeyFile]

	main *document   // Files[0], parsed: its include key says what else to read
	dirs []directory // where included files are looked for
}

// ReadFiles reads the main file, and those that its include key names; it does not judge them. The error is a
// [*HostError] where a file can't be read, or [Errors] where they are larger than a configuration can be.
func ReadFiles(path string) (*Snapshot, error) {
	s := newSnapshot(path)
	room := int64(maxBytes)
	if err := s.read(path, &room, false); err != nil {
		return nil, err
	}
	return s.readIncluded(room)
}

// ReadFrom is ReadFiles with the text of the main file from r. path names that text in errors; its
// directory is where relative names of included files begin.
func ReadFrom(path string, r io.Reader) (*Snapshot, error) {
	s := newSnapshot(path)
	data, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	switch {
	case err != nil:
		return nil, hostError("read", path, true, err)
	case len(data) > maxBytes:
		return nil, tooLarge(path)
	}
	s.Files = append(s.Files, File{path, data})
	return s.readIncluded(int64(maxBytes - len(data)))
}

func newSnapshot(path string) *Snapshot { return &Snapshot{Path: path, Credential: credential()} }

// readIncluded reads what the main file's include key names, of which room bytes may come.
func (s *Snapshot) readIncluded(room int64) (*Snapshot, error) {
	path := s.Path
	s.main = parseDocument(s.Files[0])
	seen := map[string]bool{filepath.Clean(path): true}
	for _, g := range s.main.globs(path) {
		found, dirs, err := g.expand()
		if err != nil {
			return nil, err
		}
		s.dirs = append(s.dirs, dirs...)
		for _, name := range found {
			if seen[name] {
				continue
			}
			seen[name] = true
			if err := s.read(name, &room, !g.literal()); err != nil {
				return nil, err
			}
		}
	}
	s.Hash = s.hash()
	return s, nil
}

// read appends a file. A match of a pattern may vanish between the listing and the reading; then it never was.
func (s *Snapshot) read(name string, room *int64, matched bool) error {
	if len(s.Files) == maxFiles {
		return Errors{{File: s.Path, Line: 1, Column: 1, Key: "include", Message: fmt.Sprintf("there are more than %d files to include", maxFiles)}}
	}
	data, err := readFile(name, *room, len(s.Files) > 0)
	switch {
	case errors.Is(err, errTooLarge):
		return tooLarge(name)
	case matched && errors.Is(err, fs.ErrNotExist) && !exists(name):
		return nil
	case err != nil:
		return hostError("read", name, len(s.Files) == 0, err)
	}
	*room -= int64(len(data))
	s.Files = append(s.Files, File{name, data})
	return nil
}

func tooLarge(name string) Errors {
	return Errors{{
		File: name, Line: 1, Column: 1, Message: fmt.Sprintf("too large: a configuration may have %v in all files together", Size(maxBytes)),
		Hint: "is this the right file?",
	}}
}

var (
	errTooLarge = errors.New("too large")
	errNotFile  = errors.New("not a regular file")
)

// readFile reads at most limit bytes. Only the main file may be something else than a regular one, for the sake of
// `check -c /dev/stdin`: another that is a pipe would block for ever.
func readFile(name string, limit int64, regular bool) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, syscall.EISDIR
	case regular && !info.Mode().IsRegular():
		return nil, errNotFile
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLarge
	}
	return data, err
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// hash does not depend on how the files were named: /etc/ptthq.toml, or in /etc ptthq.toml.
func (s *Snapshot) hash() string {
	sum := sha256.New()
	for _, f := range s.Files {
		for _, b := range [][]byte{[]byte(beside(s.Path, f.Path)), f.Data} {
			sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
			sum.Write(b)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// beside is a file's name as seen from the directory of the main one.
func beside(main, name string) string {
	dir, err := filepath.Abs(filepath.Dir(main))
	if err != nil {
		return name
	}
	if name, err = filepath.Abs(name); err != nil {
		return name
	}
	if rel, err := filepath.Rel(dir, name); err == nil {
		return rel
	}
	return name
}

// credential returns the private key that systemd hands to the service (LoadCredential=ptthq.key:...), if it does.
func credential() string {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	name := filepath.Join(dir, "ptthq.key")
	if !exists(name) {
		return ""
	}
	return name
}

// glob is an include pattern: what stands before its first wildcard, taken literally, and the parts behind it.
type glob struct {
	base  string
	parts []string
}

// newGlob reads a pattern relative to dir, which may itself hold characters that mean something in a pattern.
func newGlob(dir, pattern string) glob {
	pattern = filepath.FromSlash(pattern)
	g := glob{base: dir}
	if filepath.IsAbs(pattern) {
		g.base = filepath.VolumeName(pattern) + string(filepath.Separator)
		pattern = pattern[len(filepath.VolumeName(pattern)):]
	}
	for part := range strings.SplitSeq(pattern, string(filepath.Separator)) {
		switch {
		case part == "" || part == ".":
		case len(g.parts) == 0 && !strings.ContainsAny(part, `*?[\`):
			g.base = filepath.Join(g.base, part)
		default:
			g.parts = append(g.parts, part)
		}
	}
	return g
}

// literal reports whether the pattern is the name of one file.
func (g glob) literal() bool { return len(g.parts) == 0 }

// directory is one in which included files are looked for.
type directory struct {
	path string
	info fs.FileInfo // which directory it was when it was listed; nil where there was none
}

// expand returns the files that match, sorted, and the directories in which others could. As in a shell a wildcard matches no leading dot, so the swap and lock files
// of editors stay out. What can't be listed is an error: it must not look as if the peers in it were withdrawn.
func (g glob) expand() (files []string, dirs []directory, err error) {
	files = []string{g.base}
	for i, part := range g.parts {
		var next []string
		for _, dir := range files {
			names, info, err := matches(dir, part)
			if i > 0 && errors.Is(err, syscall.ENOTDIR) {
				continue // a wildcard for directories matches files, too
			}
			if err != nil {
				return nil, nil, err
			}
			next = append(next, names...)
			dirs = append(dirs, directory{dir, info})
		}
		files = next
	}
	slices.Sort(files)
	return files, dirs, nil
}

// matches returns the paths in dir that one part of a pattern matches, and which directory that is: none, and nil, if
// there is no such directory.
func matches(dir, part string) ([]string, fs.FileInfo, error) {
	if part == ".." {
		return []string{filepath.Join(dir, part)}, nil, nil
	}
	list, info, err := listDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, hostError("list", dir, false, err)
	}
	var found []string
	for _, e := range list {
		if strings.HasPrefix(e.Name(), ".") && !strings.HasPrefix(part, ".") {
			continue
		}
		if ok, err := filepath.Match(part, e.Name()); err == nil && ok { // a bad pattern is Parse's to report
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found, info, nil
}

// listDir lists a directory and tells which one it is, both of the same open one: the path may mean another at any time.
func listDir(dir string) ([]fs.DirEntry, fs.FileInfo, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	list, err := f.ReadDir(-1)
	return list, info, err
}

// Watches returns what a watcher has to look at for the configuration at path: directories, since editors and
// configuration management replace files, those that hold the symbolic links on the way included (Kubernetes swaps
// "..data"), for what doesn't exist the nearest directory that does, and the main file itself (in a container
// it may be a mount of its own). Without a snapshot (nil) the included files are taken to be at their default place.
// Any event in any of them is a reason to read again, and no more than that.
func Watches(path string, s *Snapshot) []string {
	names := []string{path}
	if s != nil {
		for _, d := range s.dirs {
			names = append(names, d.path)
		}
		for _, f := range s.Files {
			names = append(names, f.Path)
		}
	} else {
		names = append(names, defaultGlob(path).base)
	}
	dirs := make(map[string]bool)
	for _, name := range names {
		trace(name, dirs)
	}
	watched := slices.Collect(maps.Keys(dirs))
	if target, err := filepath.EvalSymlinks(path); err == nil {
		if abs, err := filepath.Abs(target); err == nil {
			watched = append(watched, abs)
		}
	}
	slices.Sort(watched)
	return slices.Compact(watched)
}

// trace walks a path part by part, as the kernel does, and notes each directory in which a change could make the path
// mean another file: where a symbolic link lies, where a part is missing, where the file lies, and above that.
func trace(name string, dirs map[string]bool) {
	const maxLinks = 40 // as the kernel's
	abs, err := filepath.Abs(name)
	if err != nil {
		return
	}
	root := filepath.VolumeName(abs) + string(filepath.Separator)
	rest := strings.Split(strings.TrimPrefix(abs, root), string(filepath.Separator))
	at, links := root, 0
	for len(rest) > 0 {
		next := filepath.Join(at, rest[0])
		info, err := os.Lstat(next)
		if err != nil {
			break
		}
		rest = rest[1:]
		if info.Mode()&fs.ModeSymlink != 0 {
			dirs[at] = true
			target, err := os.Readlink(next)
			if links++; err != nil || links > maxLinks {
				return
			}
			if filepath.IsAbs(target) {
				at = root
				target = strings.TrimPrefix(filepath.Clean(target), root)
			}
			rest = append(strings.Split(filepath.Clean(target), string(filepath.Separator)), rest...)
			continue
		}
		if !info.IsDir() {
			break
		}
		at = next
	}
	dirs[at] = true
	if parent := filepath.Dir(at); parent != root {
		dirs[parent] = true
	}
}

// hostError adds the command that mends it, where there is one.
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

// mend returns the commands that let this process read a file or list a directory.
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
		if _, err := os.Lstat(at); errors.Is(err, fs.ErrPermission) { // the topmost that can't be passed is the one
			object, mode = filepath.Dir(at), "a+x"
		}
	}
	name = strconv.Itoa(os.Geteuid())
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("`chmod %s %s` lets everybody read it (no secret belongs in it), `chown %s %[2]s` lets this user", mode, quote(object), name)
}

// quote makes a path safe to paste into a shell.
func quote(path string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+@:", r)
	}
	if strings.ContainsFunc(path, func(r rune) bool { return !plain(r) }) {
		return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
	}
	return path
}
