package daemon

import "ptthqd/pkg/config"

// emptied finds files that had something in them and have nothing now. That is what a full disk leaves of a file that is
// written in place; taken at its word, an empty file of [[peers]] would shut all of them out.
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
				Hint:    "is the disk full (`df -h`)? If nothing is to be in it, remove it, or write a comment into it",
			})
		}
	}
	return faults
}
