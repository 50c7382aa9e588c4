package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"ptthqd/pkg/config"
)

// readFiles reads the files of the config once.
func (d *daemon) readFiles() reading {
	s, err := config.ReadFiles(d.options.Config)
	return reading{snapshot: s, err: err, files: identify(s)}
}

// reading is the result of reading the files once.
type reading struct {
	snapshot *config.Snapshot
	err      error
	files    map[string]os.FileInfo // by path
}

// key is equal for readings with equal content, or with equal errors.
func (r *reading) key() string {
	if r.err != nil {
		return "error: " + r.err.Error()
	}
	return r.snapshot.Hash
}

// identify returns the identities of the files of a snapshot, by path.
func identify(s *config.Snapshot) map[string]os.FileInfo {
	if s == nil {
		return nil
	}
	files := make(map[string]os.FileInfo, len(s.Files))
	for _, f := range s.Files {
		if info, err := os.Stat(f.Path); err == nil {
			files[f.Path] = info
		}
	}
	return files
}

// settle reads until the writer has finished. It returns what it has read, or nil if that was
// considered already. It gives up when another reload was done (overtaken) or ctx is done.
func settle(ctx context.Context, now *loaded, read func() reading, considered string,
	reloaded <-chan struct{},
) (_ *reading, overtaken bool) {
	found := read()
	since := time.Now()
	var goneSince time.Time
	timer := time.NewTimer(settleTime)
	defer timer.Stop()
	for {
		if found.key() == considered {
			return nil, false
		}
		if goneSince.IsZero() && isGone(found, now) {
			goneSince = time.Now()
		}
		timer.Reset(settleTime)
		select {
		case <-timer.C:
		case <-reloaded:
			return nil, true
		case <-ctx.Done():
			return nil, false
		}
		again := read()
		switch {
		case again.key() != found.key():
			found, since = again, time.Now()
			if !isGone(found, now) {
				goneSince = time.Time{}
			}
			continue
		case isGone(again, now) && time.Since(goneSince) < goneTime:
			continue
		case time.Since(since) < rewritten(again, now):
			continue
		}
		return &again, false
	}
}

// isGone reports whether files have vanished. They may be about to come back.
func isGone(found reading, now *loaded) bool {
	if found.err != nil {
		return errors.Is(found.err, fs.ErrNotExist)
	}
	return len(found.snapshot.Gone(now.snapshot)) > 0
}

// rewritten returns how long the files must stay unchanged because one of them is being written in
// place: it has another content and is the same file. A file that has shrunk may have been
// truncated to be written anew, and needs longer.
func rewritten(found reading, now *loaded) time.Duration {
	if found.snapshot == nil {
		return 0
	}
	before := make(map[string]string, len(now.snapshot.Files))
	for _, f := range now.snapshot.Files {
		before[f.Path] = string(f.Data)
	}
	var wait time.Duration
	for _, f := range found.snapshot.Files {
		content, known := before[f.Path]
		if !known || content == string(f.Data) {
			continue
		}
		was, is := now.files[f.Path], found.files[f.Path]
		switch {
		case was != nil && is != nil && !os.SameFile(was, is):
		case len(f.Data) < len(content):
			return goneTime
		default:
			wait = rewriteTime
		}
	}
	return wait
}
