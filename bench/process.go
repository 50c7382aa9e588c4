//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A process is a command that the bench has started, with all its descendants: it may be a script,
// or start a process for each connection.
type process struct {
	name   string
	cmd    *exec.Cmd
	log    string // the file of its output
	exited chan struct{}
}

// start starts a command whose output goes to a log file.
func start(name string, cmd *exec.Cmd, log string) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if cmd.Stdout == nil {
		cmd.Stdout = file
	}
	cmd.Stderr = file
	// A process that outlives the bench would spoil the next measurement.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, log: log, exited: make(chan struct{})}
	go p.reap()
	return p, nil
}

func (p *process) reap() {
	_ = p.cmd.Wait()
	close(p.exited)
}

// stop ends the process and its descendants, and waits for it.
func (p *process) stop() {
	for _, pid := range p.tree() {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	select {
	case <-p.exited:
	case <-time.After(5 * time.Second):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // whatever is left of its process group
	<-p.exited
}

// gone returns an error if the process has ended.
func (p *process) gone() error {
	select {
	case <-p.exited:
		return fmt.Errorf("%s has ended: %v\n%s", p.name, p.cmd.ProcessState, p.lastWords())
	default:
		return nil
	}
}

// lastWords returns the end of the process's output.
func (p *process) lastWords() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-2000):])
}

// tree returns the IDs of the process and its descendants, parents before children.
func (p *process) tree() []int {
	children := map[int][]int{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if fields, err := statFields(pid); err == nil {
			parent, _ := strconv.Atoi(fields[statParent])
			children[parent] = append(children[parent], pid)
		}
	}
	pids := []int{p.cmd.Process.Pid}
	for i := 0; i < len(pids); i++ {
		pids = append(pids, children[pids[i]]...)
	}
	return pids
}

// Positions of fields in /proc/PID/stat, behind the name.
const (
	statParent = 1
	statUser   = 11 // user and system time, then both of the children that have ended
)

func statFields(pid int) ([]string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < statUser+4 {
		return nil, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	return fields, nil
}

// clockTicks is USER_HZ, 100 wherever Go runs.
const clockTicks = 100

// cpu returns the processor time of the process and its descendants, in seconds.
func (p *process) cpu() float64 {
	ticks := 0
	for _, pid := range p.tree() {
		fields, err := statFields(pid)
		if err != nil {
			continue // it has just ended; its parent has its time
		}
		for _, field := range fields[statUser : statUser+4] {
			n, _ := strconv.Atoi(field)
			ticks += n
		}
	}
	return float64(ticks) / clockTicks
}

// memory returns the resident set of the process and its descendants, in KiB.
func (p *process) memory() float64 {
	total := 0
	for _, pid := range p.tree() {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
				n, _ := strconv.Atoi(strings.Fields(rest)[0])
				total += n
			}
		}
	}
	return float64(total)
}

// converse starts a command and returns its standard input and output. The caller closes the input
// and waits for the command.
func converse(cmd *exec.Cmd) (in io.WriteCloser, out *bufio.Reader, err error) {
	if in, err = cmd.StdinPipe(); err != nil {
		return nil, nil, err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	return in, bufio.NewReader(pipe), cmd.Start()
}

// manyFiles raises the limit of open files, for this process and those that it starts.
func manyFiles() error {
	const want = 65536 // enough for 10,000 connections beside other load
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	wish := syscall.Rlimit{Cur: want, Max: max(want, limit.Max)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &wish) == nil {
		return nil
	}
	wish = syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &wish); err != nil {
		return err
	}
	if limit.Max < want {
		return fmt.Errorf("the limit of open files is %d: what needs more fails (ulimit -n)", limit.Max)
	}
	return nil
}
