package daemon

import (
	"errors"
	"fmt"

	"ptthqd/pkg/config"
)

// lost refuses a config of which a whole directory is gone. An unmounted volume would otherwise
// shut out all peers in it.
func lost(was, is *config.Snapshot) error {
	dirs := is.Lost(was)
	if len(dirs) == 0 {
		return nil
	}
	text := "the directory is gone, or is another one and empty, " +
		"and the config in force has files from it"
	if more := len(dirs) - 1; more > 0 {
		text += fmt.Sprintf(" (and so it is with %d more)", more)
	}
	return &config.HostError{
		Op: "list", Path: dirs[0], Err: errors.New(text),
		Hint: "mount it or put it back; if its files are to go, take it out of the include key, " +
			"or leave a file with a comment in it",
	}
}

// emptied finds files that had content and have none now. A full disk leaves that of a file that is
// written in place; an empty file of [[peers]] would shut out all of them.
func emptied(was, is *config.Snapshot) config.Errors {
	before := make(map[string]int, len(was.Files))
	for _, f := range was.Files {
		before[f.Path] = len(f.Data)
	}
	var faults config.Errors
	for _, f := range is.Files {
		if len(f.Data) == 0 && before[f.Path] > 0 {
			faults = append(faults, config.Error{
				File: f.Path, Line: 1, Column: 1,
				Message: "the file has become empty",
				Hint: "is the disk full (`df -h`)? If nothing is to be in it, remove it, " +
					"or write a comment into it",
			})
		}
	}
	return faults
}
