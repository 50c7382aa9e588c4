package config

import (
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Watches returns the paths that a watcher of the configuration at path has to watch. Any event in
// any of them is a reason to read the files again, and means nothing more.
//
// Most are directories, because editors and configuration management replace files. They include
// the directories of the symbolic links on the way (Kubernetes swaps "..data"); for a missing file
// the nearest directory that exists; and the main file itself, which may be a mount in a container.
// Without a snapshot (nil) the included files are taken to be at their default place.
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

// trace walks a path part by part, as the kernel does. It adds to dirs each directory in which a
// change could make the path lead to another file: the directory of each symbolic link, of a
// missing part, of the file, and the one above.
func trace(name string, dirs map[string]bool) {
	const maxLinks = 40 // as in Linux
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
			rest = append(strings.Split(filepath.Clean(target), string(filepath.Separator)),
				rest...)
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
