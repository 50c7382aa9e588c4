package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"

	"ptthqd/pkg/control"
)

// serviceUnit names a unit of the system's service manager, or of the user's own. The zero value
// names none.
type serviceUnit struct {
	name string // without ".service"
	user bool
}

// unitOf returns the unit that runs with a config.
func unitOf(path string) serviceUnit {
	if name := control.UnitName(path); name != "" {
		return serviceUnit{name: name}
	}
	if own := userConfig(); own != "" && sameFile(own, path) {
		return serviceUnit{name: "ptthqd", user: true}
	}
	return serviceUnit{}
}

func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// systemctl returns the command that does something to the unit. what may be several words.
func (u serviceUnit) systemctl(what string) string {
	if u.user {
		return "systemctl --user " + what + " " + u.name
	}
	return "systemctl " + what + " " + u.name
}

// journalctl returns the command that shows the unit's log.
func (u serviceUnit) journalctl() string {
	if u.user {
		return "journalctl --user -u " + u.name
	}
	return "journalctl -u " + u.name
}

// restart says how to restart the daemon.
func (u serviceUnit) restart() string {
	if u.name == "" {
		return "restart the daemon"
	}
	return "`" + u.systemctl("restart") + "`"
}

// serviceManager answers questions about units. Tests have their own.
type serviceManager struct {
	// show returns the properties of a unit by name.
	show func(ctx context.Context, u serviceUnit) (map[string]string, error)
	// lastError returns the last error in a unit's log; "" if there is none.
	lastError func(ctx context.Context, u serviceUnit) string
}

var systemd = serviceManager{show: showUnit, lastError: lastErrorOf}

func showUnit(ctx context.Context, u serviceUnit) (map[string]string, error) {
	const wanted = "LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload,Result,ExecMainStatus,ConditionResult,ConditionTimestampMonotonic"
	args := []string{"show", "--property=" + wanted, "--", u.name + ".service"}
	if u.user {
		args = append([]string{"--user"}, args...)
	}
	out, err := exec.CommandContext(ctx, "systemctl", args...).Output()
	if err != nil {
		return nil, err
	}
	properties := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			properties[key] = value
		}
	}
	return properties, nil
}

func lastErrorOf(ctx context.Context, u serviceUnit) string {
	args := []string{"-u", u.name + ".service", "-p", "err", "-n", "1", "-o", "cat", "--no-pager"}
	if u.user {
		args = append([]string{"--user"}, args...)
	}
	out, err := exec.CommandContext(ctx, "journalctl", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}

// examineService checks the systemd unit of this config.
func (d *doctor) examineService(ctx context.Context) {
	if d.unit.name == "" {
		d.add(finding{
			Name: "service", Subject: d.config.Path, Result: isSkipped,
			Detail: "no service of the system reads this config",
		})
		return
	}
	found, runs := serviceChecks(ctx, d.unit, systemd, d.keyMissing)
	d.stopped = !runs
	d.checks = append(d.checks, found...)
	if !d.unit.user {
		d.examineReaders(d.unit.name)
	}
}

// serviceChecks checks a unit. runs is false if the unit exists and its daemon does not run.
func serviceChecks(ctx context.Context, u serviceUnit, manager serviceManager, keyMissing bool) (found []finding, runs bool) {
	p, err := manager.show(ctx, u)
	c := finding{Name: "service", Subject: u.name + ".service", Result: isOK}
	if err != nil || p["LoadState"] == "" {
		c.Result, c.Detail = isSkipped, "systemd doesn't run here"
		return []finding{c}, true
	}
	c.Detail = fmt.Sprintf("%s (%s), %s", p["ActiveState"], p["SubState"], p["UnitFileState"])
	fault := func(detail, remedy string) ([]finding, bool) {
		c.Result, c.Detail, c.Remedy = isFailure, detail, remedy
		return []finding{c}, false
	}
	why := func(text string) string {
		if last := manager.lastError(ctx, u); last != "" {
			text += "; its last error: " + last
		}
		return text
	}
	start := "`" + u.systemctl("enable --now") + "`"
	inactive := p["ActiveState"] == "inactive"
	switch {
	case p["LoadState"] == "not-found":
		return fault("the unit is not installed",
			"install the package, or `make install` and `systemctl daemon-reload`")
	case p["LoadState"] == "masked":
		return fault("the unit is masked", "`"+u.systemctl("unmask")+"`")
	case p["LoadState"] != "loaded":
		return fault("the unit can't be loaded: "+p["LoadState"],
			"`"+u.systemctl("status")+"` says why")
	case inactive && keyMissing:
		c.Result, c.Detail, c.Remedy = isSkipped, "it does not start without its key, which is missing", "make the key first; then "+start
		return []finding{c}, false
	case p["ActiveState"] == "failed":
		return fault(why(fmt.Sprintf("it has failed: %s, exit code %s", p["Result"],
			p["ExecMainStatus"])),
			"mend that (`"+u.journalctl()+"` shows more), then "+u.restart())
	case p["SubState"] == "auto-restart":
		return fault(why("it fails and is started again and again, exit code "+p["ExecMainStatus"]),
			"mend that (`"+u.journalctl()+"` shows more); it is started again by itself")
	case inactive && p["ConditionResult"] == "no" && p["ConditionTimestampMonotonic"] != "0":
		return fault("it was not started: a condition of the unit is not met",
			"`"+u.systemctl("status")+"` names the condition; then "+start)
	case inactive:
		return fault("it is not started", start)
	}
	found = []finding{c}
	if p["NeedDaemonReload"] == "yes" {
		found = append(found, finding{
			Name: "service", Subject: c.Subject, Result: isWarning, Detail: "its unit file has changed since systemd read it",
			Remedy: "`systemctl daemon-reload`, then " + u.restart(),
		})
	}
	if p["UnitFileState"] == "disabled" {
		found = append(found, finding{
			Name: "service", Subject: c.Subject, Result: isWarning, Detail: "it runs, and will not start at the next boot",
			Remedy: "`" + u.systemctl("enable") + "`",
		})
	}
	return found, true
}

// serviceUser is the user of the system's services.
const serviceUser = "ptthqd"

// examineReaders checks whether the service could read the config. root can, which proves nothing.
func (d *doctor) examineReaders(unit string) {
	who, err := user.Lookup(serviceUser)
	if err != nil {
		return // it is not installed, or runs as somebody else
	}
	for _, name := range d.config.Files {
		info, err := os.Stat(name)
		if err != nil || mayRead(info, who) {
			continue
		}
		d.add(finding{
			Name: "config", Subject: name, Result: isFailure, Detail: fmt.Sprintf("the user %s, as whom %s runs, may not read it (mode %04o)", serviceUser, unit, info.Mode().Perm()),
			Remedy: "there is no secret in it: `chmod 644 " + name + "`",
		})
	}
}

// mayRead reports whether a user may read a file, by its mode alone.
func mayRead(info fs.FileInfo, who *user.User) bool {
	mode := info.Mode().Perm()
	uid, gid, ok := ownerOf(info)
	if !ok || mode&0o004 != 0 {
		return true
	}
	if strconv.Itoa(uid) == who.Uid {
		return mode&0o400 != 0
	}
	groups, err := who.GroupIds()
	if err != nil {
		return true
	}
	for _, g := range groups {
		if strconv.Itoa(gid) == g {
			return mode&0o040 != 0
		}
	}
	return false
}
