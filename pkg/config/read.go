package config

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// maxBytes bounds the bytes of all files of a configuration together. 10,000 peers take 2 MiB.
	maxBytes = 16 << 20

	// maxFiles bounds the number of files.
	maxFiles = 20_000
)

// File is one file of a configuration, as it was read.
type File struct {
	Path string
	Data []byte
}

// Snapshot is the bytes of a configuration: the main file, then the included files. Two snapshots
// with the same Hash are equal; a watcher knows by that that a writer has finished. A Snapshot
// never changes.
type Snapshot struct {
	Path       string // of the main file, as it was given
	Files      []File
	Hash       string // SHA-256 of the names, relative to the main file, and contents; hexadecimal
	Credential string // the key file that systemd hands over, or empty; see [Config.PrivateKeyFile]

	main *document   // Files[0], decoded: its include key says what else to read
	dirs []directory // where included files are looked for
}

// ReadFiles reads the main file and the files that its include key names. It does not judge them.
// The error is a [*HostError] if a file can't be read, or [Errors] if there are too many files or
// bytes.
func ReadFiles(path string) (*Snapshot, error) {
	s := newSnapshot(path)
	room := int64(maxBytes)
	if err := s.read(path, &room, false); err != nil {
		return nil, err
	}
	return s.readIncluded(room)
}

// ReadFrom is ReadFiles with the text of the main file from r. path names that text in errors, and
// names of included files are relative to its directory.
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

// readIncluded reads the files that the main file's include key names, room bytes at most.
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

// read appends a file. matched says that a pattern has found it: then it may vanish between the
// listing and the reading, which is no error.
func (s *Snapshot) read(name string, room *int64, matched bool) error {
	if len(s.Files) == maxFiles {
		return Errors{{
			File: s.Path, Line: 1, Column: 1, Key: "include",
			Message: fmt.Sprintf("there are more than %d files to include", maxFiles),
		}}
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
		File: name, Line: 1, Column: 1,
		Message: fmt.Sprintf("too large: a configuration may have %v in all files together",
			Size(maxBytes)),
		Hint: "is this the right file?",
	}}
}

var (
	errTooLarge = errors.New("too large")
	errNotFile  = errors.New("not a regular file")
)

// readFile reads at most limit bytes. regular demands a regular file, as an included pipe would
// block for ever; the main file may be one (`check -c /dev/stdin`).
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

// hash returns the same for the same files, however they were named: as /etc/ptthq.toml, or as
// ptthq.toml in /etc.
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

// beside returns a file's name relative to the directory of the main file.
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

// credential returns the file of the private key that systemd hands to the service
// (LoadCredential=ptthq.key:...), or "".
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
