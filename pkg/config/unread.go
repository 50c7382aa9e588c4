package config

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"ptthqd/pkg/policy"
)

// maxUnread bounds the warnings of files that are not read.
const maxUnread = 10

// leftover matches the names of what editors and package managers leave behind, of examples, and of what somebody has
// switched off: nobody expects such a file to be read.
var leftover = regexp.MustCompile(`(?i)^(\.|#|readme)|~$|\.(swp|swo|swx|bak|old|orig|save|rej|tmp|temp|part|new|lock|disabled|off|example|sample|md` +
	`|dpkg-[a-z-]+|ucf-[a-z-]+|rpm(new|save|orig))$`)

// unread warns of files that lie where included ones do, and are none. In a directory NAME.d that is any file that is no
// leftover; elsewhere, where other programs may have theirs, one whose name differs from NAME.toml in case alone.
// It looks at the directories as they are now: a file that is put there later is no reason to read the others again.
func (w *warnings) unread() {
	read := make(map[string]bool, len(w.config.Files))
	for _, name := range w.config.Files {
		read[filepath.Clean(name)] = true
	}
	found := 0
	for _, dir := range w.config.dirs {
		list, err := os.ReadDir(dir)
		if err != nil {
			continue // if it matters, the reading has said so
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
			w.add(policy.Source{File: name, Line: 1}, "include", fmt.Sprintf("rename it to %s.toml if it belongs to the config, else move it away", strings.TrimSuffix(e.Name(), ext)),
				"this file is not read: the config includes no such name")
		}
	}
}
