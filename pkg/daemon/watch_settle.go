package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"ptthqd/pkg/config"
)

func (d *daemon) readFiles() reading {
	s, err := config.ReadFiles(d.options.Config)
	return reading{snapshot: s, err: err, files: identify(s)}
}

// A reading is what was found when the files were read.
type reading struct {
	snapshot *config.Snapshot
	err      error
	files    map[string]os.FileInfo // which files these are
}

// key is the same for readings that say the same.
func (r *reading) key() string {
	if r.err != nil {
		return "error: " + r.err.Error()
	}
	return r.snapshot.Hash
}

// identify tells which files a snapshot was read from.
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

// settle reads until whoever writes has finished, and returns what it found then, or nil if that is what was considered
// last. It gives up when another reload has been done.
func settle(ctx context.Context, now *loaded, read func() reading, considered string, reloaded <-chan struct{}) (_ *reading, overtaken bool) {
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

// isGone tells whether files have vanished, which may be about to come back.
func isGone(found reading, now *loaded) bool {
	if found.err != nil {
		return errors.Is(found.err, fs.ErrNotExist)
	}
	return len(found.snapshot.Gone(now.snapshot)) > 0
}

// rewritten returns how long the files must have stayed as they are, since one of them has another content and is still
// the same file: longer where it has shrunk, for that is how one begins that is cut off and written anew.
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
