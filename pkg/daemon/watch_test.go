package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/pkg/host"
	"ptthqd/pkg/ident"
)

// A history is what reads return: the entry with the latest time that has come.
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
		{"a file is away for seconds", history{{0, "main=a", ""}, {9 * time.Second, "main=a extra=x", "2"}}, "main=a extra=x", "", 9 * time.Second},
		{"a file vanishes for good", history{{0, "main=a", ""}}, "main=a extra=x", "main=a", 10200 * ms},
		{"the main file is away for seconds", history{{0, "", ""}, {9 * time.Second, "main=b extra=x", "2"}}, "main=a extra=x", "main=b extra=x", 9300 * ms},
		{"the main file vanishes for good", history{{0, "", ""}}, "main=a extra=x", "error: read main: file does not exist", 10200 * ms},
		{"shrinks in place and is written on", history{{0, "main=a extra=", ""}, {9 * time.Second, "main=a extra=xy", ""}}, "main=a extra=x", "main=a extra=xy", 10200 * ms},
		{"shrinks in place for good", history{{0, "main=a extra=", ""}}, "main=a extra=x", "main=a extra=", 10200 * ms},
		{"replaced by a shorter one", history{{0, "main=a extra=", "2"}}, "main=a extra=x", "main=a extra=", 300 * ms},
		{"refused before", history{{0, "main=bad extra=x", "2"}}, "main=bad extra=x", "", 0},
		{"mended", history{{0, "main=a extra=x", "2"}}, "main=bad extra=x", "main=a extra=x", 300 * ms},
	} {
		t.Run(c.name, func(t *testing.T) {
			first := found(t, "main=a extra=x", "")
			now := &loaded{snapshot: first.snapshot, files: first.files}
			synctest.Test(t, func(t *testing.T) {
				begun := time.Now()
				got := ""
				if r, _ := settle(t.Context(), now, c.history.read(t), c.considered, nil); r != nil {
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
		if r, _ := settle(ctx, &loaded{snapshot: first.snapshot, files: first.files}, read, "main=a", nil); r != nil {
			t.Errorf("got %q", r.key())
		}
	})
}

// An applier is a role that takes any config.
type applier struct {
	role
	applied []string // the IDs of the peers, config by config
}

func (a *applier) Apply(_ context.Context, c *config.Config) error {
	a.applied = append(a.applied, c.Peers[0].ID)
	return nil
}

func (a *applier) Summary() string                    { return "" }
func (a *applier) Sockets() map[string][]syscall.Conn { return nil }

// The watcher's find isn't applied if a command has read something newer meanwhile, even if the
// command refused that.
func TestWatcherAppliesNothingOlderThanACommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "relay.toml")
	write := func(id, more string) *config.Snapshot {
		t.Helper()
		text := fmt.Sprintf("role = \"relay\"\n%s\n[[peers]]\nid = %q\nrole = \"server\"\npublic_key = \"m5ZbHNo2w1bOBuJ5rWBgPSCA4jHW2Xn2iWVvYtDmZzo=\"\n", more, id)
		err := errors.Join(os.WriteFile(file+"~", []byte(text), 0o600), os.Rename(file+"~", file))
		if err != nil {
			t.Fatal(err)
		}
		s, err := config.ReadFiles(file)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := write("first", "")
	c, err := config.Parse(first)
	if err != nil {
		t.Fatal(err)
	}
	role := &applier{}
	identity, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{
		options: Options{Config: file}, service: &host.Service{}, log: slog.New(slog.DiscardHandler), level: new(slog.LevelVar), role: role, identity: identity,
		background: t.Context(), reloaded: make(chan struct{}, 1),
	}
	d.scraped, d.control = &metricsServer{daemon: d}, newControlListener(nil, c.Limits)
	d.state.Store(stateRunning)
	d.considered.Store(first.Hash)
	d.loaded.Store(&loaded{c, first, identify(first), time.Now()})

	write("good", "")
	d.reloading.Lock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.checkFiles(t.Context())
	}()
	time.Sleep(2 * settleTime) // it has read the good one twice, and waits for its turn
	if result := d.applyLocked(t.Context(), "command", time.Now(), write("bad", "lisen = 1"), nil); result.OK {
		t.Errorf("the bad one: %+v", result)
	}
	d.reloading.Unlock()
	<-done
	if len(role.applied) > 0 {
		t.Errorf("%q came into force after a newer one was refused", role.applied)
	}
	// Put right, it is taken over.
	write("mended", "")
	for d.checkFiles(t.Context()) {
	}
	if !slices.Equal(role.applied, []string{"mended"}) {
		t.Errorf("in force came %q", role.applied)
	}
}
