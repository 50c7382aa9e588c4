package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Gone returns the files that an older snapshot has and this one hasn't: they may be about to come back.
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

// Lost returns the directories that this snapshot still includes, of which an older one has files, and that do not exist
// any more, or are other directories now and empty: a volume that is not mounted, a directory that was renamed. Their
// files were not taken out one by one, so nobody has said that what they hold is withdrawn.
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
			filled[dir] = true // it is named once
		}
	}
	return lost
}

// listed returns the directories that were there, by their clean paths.
func (s *Snapshot) listed() map[string]fs.FileInfo {
	found := make(map[string]fs.FileInfo, len(s.dirs))
	for _, d := range s.dirs {
		if d.info != nil {
			found[filepath.Clean(d.path)] = d.info
		}
	}
	return found
}

// includes reports whether the include key names a file by a pattern.
func (s *Snapshot) includes(path string) bool {
	return s.main != nil && slices.ContainsFunc(s.main.globs(s.Path), func(g glob) bool { return g.covers(path) })
}

// covers reports whether the pattern matches a path, whether there is such a file or not.
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
