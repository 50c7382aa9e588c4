// Package deploy_test tries what is deployed, the units and the package, under a real systemd: on throw-away hosts of
// Debian 12 (systemd 252) and 13 (257), some of them on networks that meet only at the relay.
package deploy_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// bases are the systems on which all of it has to work.
var bases = []string{"trixie", "bookworm"}

// hostTool boots the hosts; where it is not, the tests are skipped.
func hostTool(t *testing.T) string {
	t.Helper()
	tool := os.Getenv("SYSTEMD_HOST")
	if tool == "" {
		tool = filepath.Join("..", "..", "shared", "tools", "systemd-host")
	}
	tool, err := filepath.Abs(tool)
	if err != nil {
		t.Fatal(err)
	}
	switch _, err := os.Stat(tool); {
	case runtime.GOOS != "linux":
		t.Skip("SKIPPED: systemd is Linux's")
	case err != nil:
		t.Skipf("SKIPPED, NOT TESTED UNDER SYSTEMD: %v (SYSTEMD_HOST=FILE names the tool that boots the hosts)", err)
	case os.Geteuid() != 0:
		t.Skip("SKIPPED, NOT TESTED UNDER SYSTEMD: only root can boot hosts")
	case testing.Short():
		t.Skip("SKIPPED, NOT TESTED UNDER SYSTEMD: -short")
	}
	return tool
}

// packages builds the package of this tree in two versions, once for all tests, and returns the directory in which they
// are as 1.deb and 2.deb.
func packages(t *testing.T) string {
	t.Helper()
	dir, err := buildPackages()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var buildPackages = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "ptthqd-deb-")
	if err != nil {
		return "", err
	}
	builtPackages = dir
	for _, version := range []string{"1", "2"} {
		scratch := filepath.Join(dir, version)
		cmd := exec.Command("make", "-C", "..", "deb", "VERSION="+version+".0.0", "BIN="+scratch, "DIST="+scratch, "DEB="+scratch+".deb")
		cmd.Env = append(os.Environ(), "GOFLAGS=", "MAKEFLAGS=", "MFLAGS=")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("make deb: %w\n%s", err, out)
		}
	}
	return dir, nil
})

var builtPackages string

func TestMain(m *testing.M) {
	m.Run()
	if builtPackages != "" {
		os.RemoveAll(builtPackages)
	}
}

// lab is a set of hosts that lives as long as its test.
type lab struct {
	t    *testing.T
	tool string
	dir  string // by which the tool knows it
}

// newLab boots hosts of a base, as the tool's options say; the packages are in /debs of each.
func newLab(t *testing.T, base string, hosts []string, options ...string) *lab {
	t.Helper()
	l := &lab{t: t, tool: hostTool(t)}
	args := []string{"lab", "--base", base, "--packages", "openssh-server,openssh-client,libpam-systemd", "--timeout", "900", "--ro", packages(t) + ":/debs"}
	for _, host := range hosts {
		args = append(args, "--host", host)
	}
	args = append(args, options...)
	// The driver tells the name of the lab, and holds it until its input ends.
	args = append(args, "--", "/bin/sh", "-c", `echo "$SYSTEMD_HOST_LAB"; exec cat`)
	cmd := exec.Command(l.tool, args...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		hold.Close()
		_ = cmd.Wait()
		t.Fatalf("boot %v: %s", hosts, complaint.Bytes())
	}
	l.dir = strings.TrimSpace(line)
	t.Cleanup(func() {
		l.t = t
		if t.Failed() {
			for _, name := range hosts {
				out, _ := l.host(name).try("journalctl --no-pager -o short-precise -u 'ptthqd*' -u '*.socket' | tail -n 60; systemctl status --no-pager --lines=0 'ptthqd*'")
				t.Logf("%s:\n%s", name, out)
			}
		}
		hold.Close()
		_ = cmd.Wait()
	})
	return l
}

// sub runs a part of the test.
func (l *lab) sub(name string, part func(t *testing.T)) {
	whole := l.t
	defer func() { l.t = whole }()
	whole.Run(name, func(t *testing.T) {
		l.t = t
		part(t)
	})
}

func (l *lab) host(name string) *host { return &host{l, name} }

// reboot stops everything on a host, starts its systemd anew, and waits until it is up.
func (l *lab) reboot(name string) {
	l.t.Helper()
	h := l.host(name)
	if _, code := h.try("systemctl cat soft-reboot.target >/dev/null 2>&1"); code != 0 {
		h.rebootByHand()
		return
	}
	before := h.run("systemctl show -P SoftRebootsCount")
	_, _ = h.answer("systemctl --no-block soft-reboot")
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		said, ok := h.answer("systemctl show -P SoftRebootsCount; systemctl is-system-running || true")
		count, state, _ := strings.Cut(said, "\n")
		if ok && count != before && (state == "running" || state == "degraded") {
			return
		}
	}
	l.t.Fatalf("%s did not come back within a minute", name)
}

// answer runs a script on a host that may be about to end all its processes: it stops them first, the one that waits for them out
// here stops as well, and would stay so for ever.
func (h *host) answer(script string) (said string, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cmd := h.command(ctx, script)
	cancelGroup(cmd)
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err == nil
}

// rebootByHand is for a systemd without soft-reboot, before 254: every process is ended, and PID 1 becomes a fresh systemd in the
// same root, with a /run and a /tmp that are empty.
func (h *host) rebootByHand() {
	h.lab.t.Helper()
	cmd := h.command(context.Background(), "")
	cmd.Args = []string{h.lab.tool, "pid", h.name}
	pid, err := cmd.Output()
	if err != nil {
		h.lab.t.Fatalf("pid of %s: %v", h.name, err)
	}
	h.run(`mkdir /nextroot
		mount --bind / /nextroot
		mount --bind /debs /nextroot/debs
		mount -t tmpfs -o mode=0755,nosuid,nodev run /nextroot/run
		mount -t tmpfs -o mode=1777,nosuid,nodev tmp /nextroot/tmp
		printf '#!/bin/sh\nmount --make-rshared /\nexec /lib/systemd/systemd "$@"\n' > /init && chmod +x /init
		touch /run/before
		systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms busctl call \
			org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager SwitchRoot ss /nextroot /init`)
	// Seen from outside: whatever runs inside meanwhile is ended too.
	before := filepath.Join("/proc", strings.TrimSpace(string(pid)), "root/run/before")
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if _, err := os.Stat(before); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Since(begun) > 2*time.Minute {
			h.lab.t.Fatalf("%s doesn't reboot", h.name)
		}
	}
	h.soon(`[[ $(systemctl is-system-running) =~ ^(running|degraded)$ ]] && rmdir /nextroot`)
}

// host is one of a lab's.
type host struct {
	lab  *lab
	name string
}

// command runs a bash script on the host.
func (h *host) command(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.lab.tool, "exec", h.name, "--", "/bin/bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "SYSTEMD_HOST_LAB="+h.lab.dir)
	return cmd
}

// try runs a script and returns what it prints, on both streams, and its exit code.
func (h *host) try(script string) (output string, code int) {
	h.lab.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := h.command(ctx, script).CombinedOutput()
	output = strings.TrimSpace(string(out))
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil:
		return output, 0
	case errors.As(err, &exit):
		return output, exit.ExitCode()
	}
	h.lab.t.Fatalf("%s: %s: %v", h.name, script, err)
	return "", 0
}

// run runs a script that must succeed, and returns what it prints.
func (h *host) run(script string) string {
	h.lab.t.Helper()
	out, code := h.try(script)
	if code != 0 {
		h.lab.t.Fatalf("%s: exit code %d from:\n%s\n%s", h.name, code, script, out)
	}
	return out
}

// soon runs a script again and again until it succeeds, for a minute at most, and returns what it
// then prints.
func (h *host) soon(script string) string {
	h.lab.t.Helper()
	var out string
	var code int
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if out, code = h.try(script); code == 0 {
			return out
		}
	}
	h.lab.t.Fatalf("%s: still exit code %d after a minute from:\n%s\n%s", h.name, code, script, out)
	return ""
}

// is fails the test unless the script prints what is wanted.
func (h *host) is(want, script string) {
	h.lab.t.Helper()
	if got, _ := h.try(script); got != want {
		h.lab.t.Errorf("%s: %s\n got %q\nwant %q", h.name, script, got, want)
	}
}

// says fails the test unless what the script prints has the text in it.
func (h *host) says(want, script string) {
	h.lab.t.Helper()
	if got, _ := h.try(script); !strings.Contains(got, want) {
		h.lab.t.Errorf("%s: %s\n got %q\nwant %q in it", h.name, script, got, want)
	}
}

// quoted is a text as one word of a shell.
func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// onEach runs a test on every base.
func onEach(t *testing.T, test func(t *testing.T, base string)) {
	t.Helper()
	hostTool(t)
	for _, base := range bases {
		t.Run(base, func(t *testing.T) { test(t, base) })
	}
}
