package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// globs returns the patterns of the include key. Parse reports a key of a wrong type.
func (d *document) globs(path string) []glob {
	var list []any
	switch value := d.tree["include"].(type) {
	case []any:
		list = value
	case string:
		list = []any{value}
	default:
		return []glob{defaultGlob(path)}
	}
	var globs []glob
	for _, item := range list {
		if pattern, ok := item.(string); ok && checkPattern(pattern) == nil {
			globs = append(globs, newGlob(filepath.Dir(path), pattern))
		}
	}
	return globs
}

// checkPattern returns an error for a pattern that can match no file.
func checkPattern(pattern string) error {
	if pattern == "" {
		return errors.New("is empty")
	}
	if _, err := filepath.Match(pattern, ""); err != nil {
		return fmt.Errorf("%q is not a pattern", pattern)
	}
	return nil
}

// defaultGlob returns the pattern of a configuration without an include key: NAME.d/*.toml beside
// NAME.toml.
func defaultGlob(path string) glob {
	return glob{base: strings.TrimSuffix(path, ".toml") + ".d", parts: []string{"*.toml"}}
}

// glob is an include pattern, split at its first wildcard.
type glob struct {
	base  string   // the path before the wildcard, taken literally
	parts []string // the elements of the path from the wildcard on
}

// newGlob reads a pattern relative to dir. Wildcards in dir itself are taken literally.
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

// directory is a directory that was listed for included files.
type directory struct {
	path string
	info fs.FileInfo // which directory it was when it was listed; nil if there was none
}

// expand returns the files that match, sorted, and the directories in which others could match. As
// in a shell, a wildcard matches no leading dot: swap and lock files of editors stay out. A
// directory that can't be listed is an error, because the peers in it must not look withdrawn.
func (g glob) expand() (files []string, dirs []directory, err error) {
	files = []string{g.base}
	for i, part := range g.parts {
		var next []string
		for _, dir := range files {
			names, info, err := matches(dir, part)
			if i > 0 && errors.Is(err, syscall.ENOTDIR) {
				continue // a wildcard for directories has matched a file
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

// matches returns the paths in dir that one part of a pattern matches, and which directory that is;
// none, and nil, if there is no such directory.
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
		// Parse reports a bad pattern.
		if ok, err := filepath.Match(part, e.Name()); err == nil && ok {
			found = append(found, filepath.Join(dir, e.Name()))
		}
	}
	return found, info, nil
}

// listDir lists a directory and returns which one it is. Both come from one open file, since the
// path may lead to another directory at any time.
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
