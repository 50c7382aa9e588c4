package main

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
)

var office = serviceUnit{name: "ptthqd@office"}

// managerOf knows the state of the unit office; nil stands for a host without systemd.
func managerOf(t *testing.T, state map[string]string) serviceManager {
	return serviceManager{
		show: func(_ context.Context, u serviceUnit) (map[string]string, error) {
			if u != office {
				t.Errorf("asked about %v", u)
			}
			if state == nil {
				return nil, errors.New("System has not been booted with systemd as init system (PID 1)")
			}
			return state, nil
		},
		lastError: func(context.Context, serviceUnit) string { return "ptthqd can't run: it is Monday" },
	}
}

// A service that waits for its key is a consequence of the missing key, not another fault.
func TestServiceWithoutKey(t *testing.T) {
	state := map[string]string{"LoadState": "loaded", "ActiveState": "inactive", "ConditionResult": "no", "ConditionTimestampMonotonic": "4711"}
	found, runs := serviceChecks(t.Context(), office, managerOf(t, state), true)
	if runs || len(found) != 1 || found[0].Result != isSkipped || !strings.Contains(found[0].Remedy, "make the key first") {
		t.Errorf("%v, %+v", runs, found)
	}
}

// Commands name the unit that the config is for, and the user's own service manager.
func TestUnitCommands(t *testing.T) {
	for _, c := range []struct {
		unit                serviceUnit
		restart, journalctl string
	}{
		{serviceUnit{"ptthqd", false}, "`systemctl restart ptthqd`", "journalctl -u ptthqd"},
		{office, "`systemctl restart ptthqd@office`", "journalctl -u ptthqd@office"},
		{serviceUnit{"ptthqd", true}, "`systemctl --user restart ptthqd`", "journalctl --user -u ptthqd"},
		{serviceUnit{}, "restart the daemon", ""},
	} {
		if got := c.unit.restart(); got != c.restart {
			t.Errorf("%+v: %s", c.unit, got)
		}
		if got := c.unit.journalctl(); c.journalctl != "" && got != c.journalctl {
			t.Errorf("%+v: %s", c.unit, got)
		}
	}
}

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
		{"failed", isFailure, "exit code 78; its last error: ptthqd can't run: it is Monday", "journalctl -u ptthqd@office", with("ActiveState", "failed", "Result", "exit-code", "ExecMainStatus", "78")},
		{"in a loop", isFailure, "started again and again, exit code 1; its last error: ptthqd can't run", "journalctl -u ptthqd@office", with("ActiveState", "activating", "SubState", "auto-restart", "ExecMainStatus", "1")},
		{"condition", isFailure, "a condition of the unit is not met", "systemctl status", with("ActiveState", "inactive", "ConditionResult", "no", "ConditionTimestampMonotonic", "4711")},
		{"not started", isFailure, "not started", "systemctl enable --now ptthqd@office", with("ActiveState", "inactive")},
		{"changed", isWarning, "has changed", "daemon-reload", with("NeedDaemonReload", "yes")},
		{"not at boot", isWarning, "next boot", "systemctl enable ptthqd@office", with("UnitFileState", "disabled")},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, runs := serviceChecks(t.Context(), office, managerOf(t, c.state), false)
			if runs == (c.result == isFailure) {
				t.Errorf("runs: %v", runs)
			}
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

// What the running daemon tells of its sockets and links is judged.
func TestDaemonsFigures(t *testing.T) {
	const mib = 1 << 20
	connected := func(f control.Figures) control.Status {
		return control.Status{Links: []control.Link{{Relay: "relay:30380", State: control.LinkConnected, Figures: &f, Socket: &control.Socket{ReceiveBuffer: 16 * mib}}}}
	}
	listening := func(l control.Listener, uptime time.Duration, peers ...control.Peer) control.Status {
		l.Listen, l.Address = "[::]:30380", "[::]:30380"
		return control.Status{Listeners: []control.Listener{l}, Peers: peers, Uptime: control.Seconds(uptime)}
	}
	for _, c := range []struct {
		name                       string
		status                     control.Status
		check, result, says, mends string
	}{
		{"a good link", connected(control.Figures{PacketsSent: 5000, Loss: 0.01}), "link", isOK, "1% lost", ""},
		{"a lossy link", connected(control.Figures{PacketsSent: 5000, Loss: 0.2}), "link", isWarning, "20% of the packets are lost", "mtr -u"},
		{"a young link", connected(control.Figures{PacketsSent: 10, Loss: 0.2}), "link", isOK, "20% lost", ""},
		{
			"no link",
			control.Status{Links: []control.Link{{Relay: "relay:30380", State: control.LinkWaiting, LastError: "no answer"}}},
			"link", isFailure, "the daemon is not connected: no answer", "handshake above",
		},
		{
			"a key that another node holds",
			control.Status{Links: []control.Link{{Relay: "relay:30380", State: control.LinkWaiting, LastError: "superseded", Problem: "another node holds this node's key"}}},
			"link", isFailure, "another node holds this node's key", "ptthqd keygen",
		},
		{"a good buffer", connected(control.Figures{}), "buffer", isOK, "16 MiB", ""},
		{
			"a small buffer",
			control.Status{Links: []control.Link{{Relay: "relay:30380", Socket: &control.Socket{ReceiveBuffer: 425984}}}},
			"buffer", isWarning, "416 KiB, smaller than the 8.0 MiB", "sysctl -w net.core.rmem_max=",
		},
		{"a small buffer of a relay", listening(control.Listener{ReceiveBuffer: 425984}, 0), "buffer", isWarning, "416 KiB, smaller", "ptthqd.socket"},
		{"a good listener", listening(control.Listener{Packets: 1e6, Dropped: 3}, time.Hour), "listener", isOK, "3 dropped", ""},
		{"a full buffer", listening(control.Listener{Packets: 1e6, Dropped: 3000}, time.Hour), "listener", isWarning, "the receive buffer was full", "net.core.rmem_max"},
		{"a closed firewall", listening(control.Listener{}, time.Hour, control.Peer{ID: "nas"}), "listener", isWarning, "nothing has arrived for 1h0m", "ufw allow 30380/udp"},
		{"a relay that has just started", listening(control.Listener{}, time.Second, control.Peer{ID: "nas"}), "listener", isOK, "0 packets", ""},
		{
			"a node that is not let in",
			control.Status{Waiting: []control.Waiting{{Key: "m5Zb", Address: "192.0.2.7:1", Tries: 3}}},
			"peers", isNote, "it has come 3 times with a key that the config does not name: m5Zb", "add a [[peers]]",
		},
		{"peers that are away", listening(control.Listener{}, 0, control.Peer{ID: "nas"}, control.Peer{ID: "laptop", Connected: true}), "peers", isNote, "1 of 2 connected; not nas", ""},
	} {
		d := &doctor{status: &c.status}
		d.examineBuffers()
		if len(c.status.Links) > 0 {
			d.checks = append(d.checks, d.examineLink(config.Relay{Address: "relay:30380"}, true)...)
		} else {
			d.examineListeners(t.Context())
		}
		i := slices.IndexFunc(d.checks, func(f finding) bool { return f.Name == c.check })
		if i < 0 {
			t.Errorf("%s: no %s in %+v", c.name, c.check, d.checks)
			continue
		}
		if f := d.checks[i]; f.Result != c.result || !strings.Contains(f.Detail, c.says) || !strings.Contains(f.Remedy, c.mends) || (f.Remedy == "") != (c.mends == "") {
			t.Errorf("%s: %+v", c.name, f)
		}
	}
}

// Each reason for which a dial fails, and each status of a refusal, has a remedy of its own.
func TestRemedies(t *testing.T) {
	seen := map[string]link.Reason{}
	for _, reason := range link.DialReasons {
		remedy := remedyOf(reason, config.Relay{Address: "relay.example.com:30380"})
		if other, ok := seen[remedy]; ok || remedy == "" {
			t.Errorf("%s: the same remedy as %s: %q", reason, other, remedy)
		}
		seen[remedy] = reason
	}
	for status, part := range map[wire.Status]string{
		wire.StatusNotAllowed: "ptthqd explain laptop nas :22", wire.StatusNotConnected: "`ptthqd doctor` there", wire.StatusRefused: "`ss -ltn`",
		wire.StatusTimeout: "firewall", wire.StatusTooMany: "[limits]", wire.StatusVersion: "upgrade",
	} {
		if remedy := remedyOfRefusal(control.Hop{Code: int(status), By: "nas"}, "laptop", "nas", ":22"); !strings.Contains(remedy, part) {
			t.Errorf("%v: %q", status, remedy)
		}
	}
}
