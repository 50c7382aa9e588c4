package main

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestServiceChecks(t *testing.T) {
	running := map[string]string{"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled", "NeedDaemonReload": "no"}
	with := func(pairs ...string) map[string]string {
		p := maps.Clone(running)
		for i := 0; i < len(pairs); i += 2 {
			p[pairs[i]] = pairs[i+1]
		}
		return p
	}
	for _, c := range []struct {
		name, result, says, mends string
		state                     map[string]string // what systemd says
	}{
		{"well", isOK, "active (running), enabled", "", with()},
		{"no systemd", isSkipped, "systemd doesn't run here", "", nil},
		{"not installed", isFailure, "not installed", "make install", with("LoadState", "not-found", "ActiveState", "inactive")},
		{"masked", isFailure, "masked", "systemctl unmask ptthqd@office", with("LoadState", "masked")},
		{"broken", isFailure, "can't be loaded: bad-setting", "systemctl status", with("LoadState", "bad-setting")},
		{"failed", isFailure, "exit code 78", "journalctl -u ptthqd@office", with("ActiveState", "failed", "Result", "exit-code", "ExecMainStatus", "78")},
		{"not started", isFailure, "not started", "systemctl enable --now ptthqd@office", with("ActiveState", "inactive")},
		{"changed", isWarning, "has changed", "daemon-reload", with("NeedDaemonReload", "yes")},
		{"not at boot", isWarning, "next boot", "systemctl enable ptthqd@office", with("UnitFileState", "disabled")},
	} {
		t.Run(c.name, func(t *testing.T) {
			found := serviceChecks(t.Context(), "ptthqd@office", func(_ context.Context, name string) (map[string]string, error) {
				if name != "ptthqd@office.service" {
					t.Errorf("asked about %s", name)
				}
				if c.state == nil {
					return nil, errors.New("System has not been booted with systemd as init system (PID 1)")
				}
				return c.state, nil
			})
			last := found[len(found)-1]
			if last.Result != c.result || !strings.Contains(last.Detail, c.says) || !strings.Contains(last.Remedy, c.mends) {
				t.Errorf("%+v", found)
			}
		})
	}
}

func TestMayRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "ptthq.toml")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, _, ok := ownerOf(info)
	if !ok {
		t.Skip("files have no owners here")
	}
	owner, stranger := &user.User{Uid: strconv.Itoa(uid), Gid: "1"}, &user.User{Uid: "12345678", Gid: "12345678", Username: "nobody-here"}
	for _, c := range []struct {
		mode fs.FileMode
		who  *user.User
		may  bool
	}{{0o600, owner, true}, {0o200, owner, false}, {0o600, stranger, false}, {0o644, stranger, true}} {
		if err := os.Chmod(name, c.mode); err != nil {
			t.Fatal(err)
		}
		if info, err = os.Stat(name); err != nil {
			t.Fatal(err)
		}
		if _, err := c.who.GroupIds(); err != nil && c.mode == 0o600 && c.who == stranger {
			continue // this system doesn't tell the groups of who isn't there
		}
		if may := mayRead(info, c.who); may != c.may {
			t.Errorf("mode %04o, %s: %v", c.mode, c.who.Uid, may)
		}
	}
}
