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

// A unit is what systemd says of a unit: its properties by name. A test has its own.
type unit func(ctx context.Context, name string) (map[string]string, error)

// systemctl asks the running systemd.
func systemctl(ctx context.Context, name string) (map[string]string, error) {
	const wanted = "LoadState,ActiveState,SubState,UnitFileState,NeedDaemonReload,Result,ExecMainStatus"
	out, err := exec.CommandContext(ctx, "systemctl", "show", "--property="+wanted, "--", name).Output()
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

// examineService looks at the systemd unit that this config is for.
func (d *doctor) examineService(ctx context.Context) {
	name := control.UnitName(d.config.Path)
	if name == "" {
		d.add(finding{Name: "service", Subject: d.config.Path, Result: isSkipped, Detail: "no service of the system reads this config"})
		return
	}
	d.checks = append(d.checks, serviceChecks(ctx, name, systemctl)...)
	d.examineReaders(name)
}

// serviceChecks judges a unit.
func serviceChecks(ctx context.Context, name string, ask unit) []finding {
	p, err := ask(ctx, name+".service")
	c := finding{Name: "service", Subject: name + ".service", Result: isOK}
	if err != nil || p["LoadState"] == "" {
		c.Result, c.Detail = isSkipped, "systemd doesn't run here"
		return []finding{c}
	}
	c.Detail = fmt.Sprintf("%s (%s), %s", p["ActiveState"], p["SubState"], p["UnitFileState"])
	fault := func(detail, remedy string) []finding {
		c.Result, c.Detail, c.Remedy = isFailure, detail, remedy
		return []finding{c}
	}
	switch {
	case p["LoadState"] == "not-found":
		return fault("the unit is not installed", "install the package, or `make install` and `systemctl daemon-reload`")
	case p["LoadState"] == "masked":
		return fault("the unit is masked", "`systemctl unmask "+name+"`")
	case p["LoadState"] != "loaded":
		return fault("the unit can't be loaded: "+p["LoadState"], "`systemctl status "+name+"` says why")
	case p["ActiveState"] == "failed":
		return fault(fmt.Sprintf("it has failed: %s, exit code %s", p["Result"], p["ExecMainStatus"]), "`journalctl -u "+name+"` says why; then `systemctl restart "+name+"`")
	case p["ActiveState"] == "inactive":
		return fault("it is not started", "`systemctl enable --now "+name+"`")
	}
	found := []finding{c}
	if p["NeedDaemonReload"] == "yes" {
		found = append(found, finding{
			Name: "service", Subject: c.Subject, Result: isWarning, Detail: "its unit file has changed since systemd read it",
			Remedy: "`systemctl daemon-reload && systemctl restart " + name + "`",
		})
	}
	if state := p["UnitFileState"]; state == "disabled" {
		found = append(found, finding{
			Name: "service", Subject: c.Subject, Result: isWarning, Detail: "it runs, and will not start at the next boot",
			Remedy: "`systemctl enable " + name + "`",
		})
	}
	return found
}

// serviceUser is the user as which the system's services run.
const serviceUser = "ptthqd"

// examineReaders tells whether the service could read the config, which root may well do.
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

// mayRead tells whether a user may read a file, by its mode alone.
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
