package host

import (
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// LimitMemory sets the memory limit of Go's runtime to two thirds of this process's control
// group's, and returns the group's limit in bytes; 0 if there is none. It changes nothing if
// GOMEMLIMIT is set.
//
// The other third is for what Go's runtime does not count: buffers of sockets in the kernel (up to
// 8 MiB each way for a link), page tables, pages of files. test/e2e's TestLittleMemory runs on this
// share of 96 MiB.
func LimitMemory(root fs.FS, log *slog.Logger) (limit int64) {
	limit, file := GroupMemory(root)
	if limit == 0 || os.Getenv("GOMEMLIMIT") != "" {
		return limit
	}
	share := limit / 3 * 2
	debug.SetMemoryLimit(share)
	log.Info("the control group limits this process's memory, and Go's runtime stays below two "+
		"thirds of that",
		"limit", limit, "file", file, "go_memory_limit", share)
	return limit
}

// GoMemoryLimit returns the memory limit of Go's runtime in bytes; 0 if there is none.
func GoMemoryLimit() int64 {
	if limit := debug.SetMemoryLimit(-1); limit != math.MaxInt64 {
		return limit
	}
	return 0
}

// noGroupMemory is how version 1 of control groups says "no limit", at least: more than any host
// has.
const noGroupMemory = 1 << 60

// GroupMemory returns the least memory limit, in bytes, of this process's control groups and those
// above them, and the file that says it; 0 if there is none. memory.high of version 2 counts like
// memory.max, because a process above it is slowed down until it hardly runs.
func GroupMemory(root fs.FS) (limit int64, file string) {
	groups, _ := fs.ReadFile(root, "proc/self/cgroup")
	mounts, _ := fs.ReadFile(root, "proc/self/mountinfo")
	unified, memory := memoryGroups(string(groups))
	for line := range strings.Lines(string(mounts)) {
		m, ok := parseMount(line)
		group, names := "", []string{"memory.max", "memory.high"}
		switch {
		case ok && m.kind == "cgroup2":
			group = unified
		case ok && m.kind == "cgroup" && hasOption(m.options, "memory"):
			group, names = memory, []string{"memory.limit_in_bytes"}
		}
		if group == "" {
			continue
		}
		for _, dir := range m.upwards(group) {
			for _, name := range names {
				at := path.Join(dir, name)
				if n := readLimit(root, at); n > 0 && (limit == 0 || n < limit) {
					limit, file = n, at
				}
			}
		}
	}
	return limit, file
}

// memoryGroups returns the path of the process's group of version 2, and of its group of version 1
// that counts memory. text is /proc/self/cgroup, see cgroups(7).
func memoryGroups(text string) (unified, memory string) {
	for line := range strings.Lines(text) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(fields) < 3:
		case fields[0] == "0" && fields[1] == "":
			unified = fields[2]
		case hasOption(fields[1], "memory"):
			memory = fields[2]
		}
	}
	return unified, memory
}

// mount is a line of /proc/self/mountinfo.
type mount struct {
	root    string // the directory of the file system that is mounted
	point   string // where it is mounted
	kind    string
	options string // of the file system
}

var mountEscapes = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// parseMount parses a line, see proc_pid_mountinfo(5).
func parseMount(line string) (m mount, ok bool) {
	place, system, _ := strings.Cut(line, " - ")
	left, right := strings.Fields(place), strings.Fields(system)
	if len(left) < 6 || len(right) < 3 {
		return m, false
	}
	return mount{
		mountEscapes.Replace(left[3]), mountEscapes.Replace(left[4]), right[0],
		right[2],
	}, true
}

// upwards returns the directories of a group and of the groups above it that the mount shows.
func (m mount) upwards(group string) []string {
	below, ok := strings.CutPrefix(path.Clean("/"+group), strings.TrimSuffix(m.root, "/"))
	if !ok || below != "" && below[0] != '/' {
		below = "" // a container, which sees the host's name of the group
	}
	dirs := []string{path.Join(m.point, below)}
	for ; below != "" && below != "/"; below = path.Dir(below) {
		dirs = append(dirs, path.Join(m.point, path.Dir(below)))
	}
	return dirs
}

func hasOption(list, option string) bool {
	for o := range strings.SplitSeq(list, ",") {
		if o == option {
			return true
		}
	}
	return false
}

// readLimit returns the number in a file; 0 if there is none or it means no limit.
func readLimit(root fs.FS, name string) int64 {
	text, err := fs.ReadFile(root, strings.TrimPrefix(name, "/"))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n >= noGroupMemory {
		return 0
	}
	return n
}
