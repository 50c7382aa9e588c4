//go:build unix

package deploy_test

import (
	"os/exec"
	"syscall"
)

// cancelGroup has the cancellation of a command kill what it has started, too.
func cancelGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
