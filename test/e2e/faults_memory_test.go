//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestLittleMemory has all nodes do with little memory, in each way that one
// limits it, while connections flow and others are not read.
func TestLittleMemory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		limit func(t *testing.T, node string) []string
		most  int64 // resident, bytes; 0: what limits it sees to that
	}{
		{"GOMEMLIMIT and ulimit -v", func(t *testing.T, _ string) []string {
			requires(t, has("prlimit"), "apt-get install util-linux")
			return []string{"env", "GOMEMLIMIT=32MiB", "prlimit", fmt.Sprintf("--as=%d", 2<<30)}
		}, 96 << 20},
		{"control group", func(t *testing.T, node string) []string {
			return append([]string{"env", "-u", "GOMEMLIMIT"}, controlGroup(t, node, 96<<20)...)
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			nodes := []string{"relay", "nas", "laptop"}
			prefix := map[string][]string{}
			for _, node := range nodes {
				prefix[node] = c.limit(t, node)
			}
			w := newWorld(t, endServer) // ends before the limits do
			w.prefix = prefix
			w.all()
			unread := w.floods(t, 30)
			size := uint64(1 << 20)
			if *full {
				size = 64 << 20
			}
			each(t, "flows beside those that nobody reads", 20, func(int) error {
				p1, err := w.dial()
				if err != nil {
					return err
				}
				defer func() { _ = p1.Close() }()
				return exchange(p1, size, size, nil)
			})
			for _, node := range nodes {
				f := w.footprint(t, node)
				t.Logf("%s: %d MiB resident", node, f.resident>>20)
				if p := w.status(node).Process; c.most == 0 && (p.GroupMemory != 96<<20 || p.GoMemoryLimit != 64<<20) {
					t.Errorf("%s stays below %d MiB in a group of %d", node, p.GoMemoryLimit>>20, p.GroupMemory>>20)
				}
				if c.most > 0 && f.resident > c.most {
					t.Errorf("%s has %d MiB resident, want %d at most", node, f.resident>>20, c.most>>20)
				}
				select {
				case <-w.procs[node].exited:
					t.Errorf("%s has ended: %v", node, w.procs[node].cmd.ProcessState)
				default:
				}
			}
			for _, p1 := range unread {
				resetConn(p1)
			}
			w.empties(t, 10*time.Second)
			w.carries(5 * time.Second)
		})
	}
}

// controlGroup makes a group of processes that may have so much memory, and
// returns the prefix that puts a node into it.
func controlGroup(t *testing.T, node string, most int64) []string {
	t.Helper()
	requires(t, os.Geteuid() == 0, "a control group needs root")
	name := fmt.Sprintf("ptthqd-e2e-%d-%s", os.Getpid(), node)
	for parent, limit := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"} {
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(parent, name)
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			eventually(t, 5*time.Second, "the control group is empty", func() error { return os.Remove(dir) })
		})
		if os.WriteFile(filepath.Join(dir, limit), fmt.Append(nil, most), 0) != nil {
			continue
		}
		return []string{"sh", "-c", "echo $$ > " + dir + `/cgroup.procs && exec "$0" "$@"`}
	}
	requires(t, false, "a control group that limits memory is not to be had here")
	return nil
}

// floods opens connections to a P5 that accepts and never reads, and writes
// until no more is taken. It returns them with all full.
func (w *world) floods(t *testing.T, n int) []*net.TCPConn {
	t.Helper()
	all := make([]*net.TCPConn, n)
	for i := range all {
		all[i] = w.mustDial()
	}
	each(t, "fills up", n, func(i int) error {
		c := all[i]
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := c.Write(request{kind: kindSilent}.bytes()); err != nil {
			return err
		}
		p := make([]byte, 64<<10)
		for {
			_ = c.SetWriteDeadline(time.Now().Add(700 * time.Millisecond))
			switch _, err := c.Write(p); {
			case os.IsTimeout(err):
				return nil
			case err != nil:
				return err
			}
		}
	})
	return all
}
