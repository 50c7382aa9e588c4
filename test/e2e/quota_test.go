//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// processorPeriod is the period of a processor quota: what a container or a small virtual machine has, as a rule.
const processorPeriod = 100 * time.Millisecond

// starve gives the nodes of the world percent of one processor together, as a small host would, by a control group. Call it
// before they start. Where no group can be had it takes their place by one processor for all, with GOMAXPROCS=1, at which others
// work that have a higher priority. It returns what it has done.
func (w *world) starve(percent int) string {
	w.t.Helper()
	group, err := newProcessorGroup(percent)
	if err != nil {
		w.crowd()
		return "one processor that is busy with something else (no control group: " + err.Error() + ")"
	}
	w.t.Cleanup(func() {
		w.end()
		eventually(w.t, 5*time.Second, "the control group is empty", func() error { return os.Remove(group) })
	})
	for _, node := range append([]string{"laptop", "nas"}, w.relays()...) {
		w.prefix[node] = []string{"sh", "-c", `echo $$ > ` + group + `/cgroup.procs && exec "$0" "$@"`}
	}
	return fmt.Sprintf("%d %% of one processor", percent)
}

// newProcessorGroup makes a control group (v2, or v1 where the host still has that) with a quota.
func newProcessorGroup(percent int) (group string, err error) {
	quota := fmt.Sprint(int(processorPeriod/time.Microsecond) * percent / 100)
	period := fmt.Sprint(int(processorPeriod / time.Microsecond))
	name := fmt.Sprintf("ptthqd-e2e-%d", os.Getpid())
	settings := map[string]string{"cpu.max": quota + " " + period}
	parents, _ := filepath.Glob("/sys/fs/cgroup/cgroup.controllers")
	if len(parents) == 0 {
		settings = map[string]string{"cpu.cfs_period_us": period, "cpu.cfs_quota_us": quota}
		parents, _ = filepath.Glob("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
	}
	if len(parents) == 0 {
		parents, _ = filepath.Glob("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us")
	}
	if len(parents) == 0 {
		return "", errors.New("there are none on this host")
	}
	group = filepath.Join(filepath.Dir(parents[0]), name)
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", err
	}
	// What the group may have it is to get, whoever else has something to do on this host.
	for file, value := range map[string]string{"cpu.weight": "10000", "cpu.shares": "100000"} {
		if _, err := os.Stat(filepath.Join(group, file)); err == nil {
			settings[file] = value
		}
	}
	for file, value := range settings {
		if err := os.WriteFile(filepath.Join(group, file), []byte(value), 0o644); err != nil {
			return "", errors.Join(err, os.Remove(group))
		}
	}
	return group, nil
}

// crowd has the nodes share the first processor with spinners, which are nicer to nobody.
func (w *world) crowd() {
	const spinners = 4
	for _, node := range append([]string{"laptop", "nas"}, w.relays()...) {
		w.prefix[node] = []string{"env", "GOMAXPROCS=1", "nice", "-n", "3", "taskset", "-c", "0"}
	}
	for range spinners {
		spinner := spin(w.t)
		w.t.Cleanup(func() { _ = spinner.Process.Kill(); _ = spinner.Wait() })
	}
}

// spin starts a program that has the first processor work without end.
func spin(t *testing.T) *exec.Cmd {
	t.Helper()
	c := exec.Command("taskset", "-c", "0", "sh", "-c", "while :; do :; done")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c
}
