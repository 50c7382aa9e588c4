package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Gone returns the files of an older snapshot that are not in this one. They may be about to come
// back.
func (s *Snapshot) Gone(older *Snapshot) []string {
	here := make(map[string]bool, len(s.Files))
	for _, f := range s.Files {
		here[f.Path] = true
	}
	var gone []string
	for _, f := range older.Files {
		if !here[f.Path] {
			gone = append(gone, f.Path)
		}
	}
	return gone
}

// Lost returns the directories of an older snapshot's files that this snapshot still includes, and
// that are gone or replaced by an empty directory: an unmounted volume, a renamed directory. Nobody
// has removed their files one by one, so nobody has withdrawn what the files say.
func (s *Snapshot) Lost(older *Snapshot) []string {
	filled := make(map[string]bool, len(s.Files))
	for _, f := range s.Files[min(1, len(s.Files)):] {
		filled[filepath.Dir(f.Path)] = true
	}
	was, is := older.listed(), s.listed()
	var lost []string
	for _, path := range s.Gone(older) {
		dir := filepath.Dir(path)
		if filled[dir] || was[dir] == nil || !s.includes(path) {
			continue
		}
		if now := is[dir]; now == nil || !os.SameFile(was[dir], now) {
			lost = append(lost, dir)
			filled[dir] = true // name it once
		}
	}
	return lost
}

// listed returns the directories that existed, by their clean paths.
func (s *Snapshot) listed() map[string]fs.FileInfo {
	found := make(map[string]fs.FileInfo, len(s.dirs))
	for _, d := range s.dirs {
		if d.info != nil {
			found[filepath.Clean(d.path)] = d.info
		}
	}
	return found
}

// includes reports whether a pattern of the include key matches the path.
func (s *Snapshot) includes(path string) bool {
	return s.main != nil &&
		slices.ContainsFunc(s.main.globs(s.Path), func(g glob) bool { return g.covers(path) })
}

// covers reports whether the pattern matches a path. No such file need exist.
func (g glob) covers(path string) bool {
	rel, err := filepath.Rel(g.base, path)
	if err != nil {
		return false
	}
	parts := strings.Split(rel, string(filepath.Separator))
	if len(parts) != len(g.parts) {
		return false
	}
	for i, part := range g.parts {
		if ok, err := filepath.Match(part, parts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
