package daemon

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/config"
)

// A history tells what is read from when on: the entry with the latest time that has come.
type history []struct {
	at    time.Duration
	files string // "main=a extra=b"; "" is no main file
	inode string // names the files that are other ones than at the beginning
}

// read returns a reader of the history that begins now.
func (h history) read(t *testing.T) func() reading {
	t.Helper()
	begun := time.Now()
	return func() reading {
		now := h[0]
		for _, e := range h {
			if time.Since(begun) >= e.at {
				now = e
			}
		}
		return found(t, now.files, now.inode)
	}
}

func found(t *testing.T, files, inode string) reading {
	t.Helper()
	if files == "" {
		return reading{err: &config.HostError{Op: "read", Path: "main", Err: fs.ErrNotExist}}
	}
	r := reading{snapshot: &config.Snapshot{Hash: files}, files: make(map[string]os.FileInfo)}
	for f := range strings.FieldsSeq(files) {
		name, content, _ := strings.Cut(f, "=")
		r.snapshot.Files = append(r.snapshot.Files, config.File{Path: name, Data: []byte(content)})
		r.files[name] = inodeOf(t, name+inode)
	}
	return r
}

// inodeOf returns an os.FileInfo that os.SameFile finds equal to those of the same name.
func inodeOf(t *testing.T, name string) os.FileInfo {
	t.Helper()
	path := filepath.Join(inodes, name)
	f, err := os.OpenFile(path, os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info
}

var inodes string

func TestSettle(t *testing.T) {
	inodes = t.TempDir()
	const ms = time.Millisecond
	for _, c := range []struct {
		name       string
		history    history
		considered string
		want       string // key of what is applied; "" for nothing
		after      time.Duration
	}{
		{"nothing new", history{{0, "main=a extra=x", ""}}, "main=a extra=x", "", 0},
		{"replaced in one step", history{{0, "main=b extra=x", "2"}}, "main=a extra=x", "main=b extra=x", 300 * ms},
		{"a file is added", history{{0, "main=a extra=x more=y", ""}}, "main=a extra=x", "main=a extra=x more=y", 300 * ms},
		{"written in place", history{{0, "main=b extra=x", ""}}, "main=a extra=x", "main=b extra=x", 1200 * ms},
		{
			"a slow writer",
			history{{0, "main=a1 extra=x", ""}, {700 * ms, "main=a12 extra=x", ""}, {1400 * ms, "main=a123 extra=x", ""}},
			"main=a extra=x", "main=a123 extra=x", 2700 * ms,
		},
		{"replaced again", history{{0, "main=b extra=x", "2"}, {200 * ms, "main=c extra=x", "3"}}, "main=a extra=x", "main=c extra=x", 600 * ms},
		{"back as it was", history{{0, "main=b extra=x", "2"}, {200 * ms, "main=a extra=x", ""}}, "main=a extra=x", "", 300 * ms},
		{"a file vanishes for a moment", history{{0, "main=a", ""}, {time.Second, "main=a extra=x", "2"}}, "main=a extra=x", "", 1200 * ms},
		{"a file vanishes and another comes", history{{0, "main=a", ""}, {time.Second, "main=a extra=y", "2"}}, "main=a extra=x", "main=a extra=y", 1500 * ms},
		{"a file vanishes for good", history{{0, "main=a", ""}}, "main=a extra=x", "main=a", 2100 * ms},
		{"the main file vanishes for a moment", history{{0, "", ""}, {1900 * ms, "main=b extra=x", "2"}}, "main=a extra=x", "main=b extra=x", 2400 * ms},
		{"the main file vanishes for good", history{{0, "", ""}}, "main=a extra=x", "error: read main: file does not exist", 2100 * ms},
		{"refused before", history{{0, "main=bad extra=x", "2"}}, "main=bad extra=x", "", 0},
		{"mended", history{{0, "main=a extra=x", "2"}}, "main=bad extra=x", "main=a extra=x", 300 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := found(t, "main=a extra=x", "")
			now := &loaded{snapshot: first.snapshot, files: first.files}
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				got := ""
				if r := settle(t.Context(), now, c.history.read(t), c.considered); r != nil {
					got = r.key()
				}
				if took := time.Since(begun); got != c.want || took != c.after {
					t.Errorf("%q after %v, want %q after %v", got, took, c.want, c.after)
				}
			})
		})
	}
}

func TestSettleGivesUp(t *testing.T) {
	inodes = t.TempDir()
	first := found(t, "main=a", "")
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		read := func() reading { return reading{err: errors.New("disk")} }
		if r := settle(ctx, &loaded{snapshot: first.snapshot, files: first.files}, read, "main=a"); r != nil {
			t.Errorf("got %q", r.key())
		}
	})
}
