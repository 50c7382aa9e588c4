package config

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"ptthqd/pkg/policy"
)

// maxUnread is how many files that are not read are named.
const maxUnread = 10

// leftover matches the names of files that no user expects to be read: files of editors and package
// managers, examples, and files that are switched off by their name.
var leftover = regexp.MustCompile(`(?i)^(\.|#|readme)|~$` +
	`|\.(swp|swo|swx|bak|old|orig|save|rej|tmp|temp|part|new|lock|disabled|off|example|sample|md` +
	`|dpkg-[a-z-]+|ucf-[a-z-]+|rpm(new|save|orig))$`)

// unread warns of files that lie beside included files and are not included. In a directory NAME.d
// that is any file but a leftover. Elsewhere, where other programs may have files, it is a file
// whose extension differs from .toml in case alone. It looks at the directories as they are now.
func (w *warnings) unread() {
	read := make(map[string]bool, len(w.config.Files))
	for _, name := range w.config.Files {
		read[filepath.Clean(name)] = true
	}
	found := 0
	for _, dir := range w.config.dirs {
		list, err := os.ReadDir(dir)
		if err != nil {
			continue // if it matters, ReadFiles has reported it
		}
		own := strings.HasSuffix(dir, ".d")
		for _, e := range list {
			name := filepath.Join(dir, e.Name())
			ext := filepath.Ext(name)
			cased := strings.EqualFold(ext, ".toml") && ext != ".toml"
			if read[name] || leftover.MatchString(e.Name()) || !own && !cased {
				continue
			}
			if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() {
				continue
			}
			if found++; found > maxUnread {
				w.add(w.top(), "include", "", "there are more files that are not read")
				return
			}
			hint := fmt.Sprintf("rename it to %s.toml if it belongs to the config, else move it "+
				"away", strings.TrimSuffix(e.Name(), ext))
			w.add(policy.Source{File: name, Line: 1}, "include", hint,
				"this file is not read: the config includes no such name")
		}
	}
}
