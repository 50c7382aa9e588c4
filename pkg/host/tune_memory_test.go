package host_test

import (
	"bytes"
	"log/slog"
	"path"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"

	"ptthqd/pkg/host"
)

func TestGroupMemory(t *testing.T) {
	const (
		v2     = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
		v1     = "34 30 0:31 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n"
		hybrid = "40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" + v1
		other  = "31 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		none   = "9223372036854771712\n" // of version 1
	)
	for _, test := range []struct {
		what           string
		groups, mounts string
		files          map[string]string
		limit          int64
		file           string
	}{
		{"no control groups", "", "", nil, 0, ""},
		{"no limit", "0::/system.slice/ptthqd.service\n", v2, map[string]string{
			"system.slice/ptthqd.service/memory.max": "max\n", "system.slice/ptthqd.service/memory.high": "max\n",
		}, 0, ""},
		{"a service's", "0::/system.slice/ptthqd.service\n", v2, map[string]string{
			"system.slice/ptthqd.service/memory.max": "134217728\n", "system.slice/memory.max": "max\n",
		}, 128 << 20, "/sys/fs/cgroup/system.slice/ptthqd.service/memory.max"},
		{"a slice's, which is less", "0::/system.slice/ptthqd.service\n", v2, map[string]string{
			"system.slice/ptthqd.service/memory.max": "134217728\n", "system.slice/memory.max": "67108864\n",
		}, 64 << 20, "/sys/fs/cgroup/system.slice/memory.max"},
		{
			"where it is slowed down", "0::/a\n", v2,
			map[string]string{
				"a/memory.max":  "134217728\n",
				"a/memory.high": "100000000\n",
			},
			100000000, "/sys/fs/cgroup/a/memory.high",
		},
		{
			"a container's root", "0::/\n", v2,
			map[string]string{"memory.max": "268435456\n"},
			256 << 20, "/sys/fs/cgroup/memory.max",
		},
		{
			"a container's, by its host's name", "0::/docker/abc\n", "30 24 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
			map[string]string{"memory.max": "268435456\n"},
			256 << 20, "/sys/fs/cgroup/memory.max",
		},
		{
			"another's mount", "0::/docker/abcd\n", "30 24 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
			map[string]string{"memory.max": "268435456\n"},
			256 << 20, "/sys/fs/cgroup/memory.max",
		},
		{
			"a path with a colon and a blank", "0::/a:b c\n",
			"30 24 0:26 / /sys/fs/c\\040group rw - cgroup2 cgroup2 rw\n",
			map[string]string{"../c group/a:b c/memory.max": "5000000\n"},
			5000000, "/sys/fs/c group/a:b c/memory.max",
		},
		{"version 1", "4:memory:/x/y\n1:cpu:/\n", other + v1, map[string]string{
			"memory/x/y/memory.limit_in_bytes": none, "memory/x/memory.limit_in_bytes": "100663296\n", "memory/memory.limit_in_bytes": none,
		}, 96 << 20, "/sys/fs/cgroup/memory/x/memory.limit_in_bytes"},
		{"both versions", "4:cpu,memory:/x\n0::/y\n", hybrid, map[string]string{
			"memory/x/memory.limit_in_bytes": "100663296\n", "unified/y/memory.max": "50331648\n",
		}, 48 << 20, "/sys/fs/cgroup/unified/y/memory.max"},
		{
			"not a number", "0::/\n", v2,
			map[string]string{"memory.max": "-5\n", "memory.high": "12 MiB\n"},
			0, "",
		},
		{
			"a path that leads out", "0::/../../x\n", v2,
			map[string]string{"memory.max": "268435456\n"},
			256 << 20, "/sys/fs/cgroup/memory.max",
		},
	} {
		root := fstest.MapFS{
			"proc/self/cgroup": {Data: []byte(test.groups)},
			"proc/self/mountinfo": {Data: []byte("22 1 0:5 / /proc rw - proc proc rw\nnonsense\n" +
				test.mounts)},
		}
		for name, text := range test.files {
			root[path.Clean("sys/fs/cgroup/"+name)] = &fstest.MapFile{Data: []byte(text)}
		}
		if limit, file := host.GroupMemory(root); limit != test.limit || file != test.file {
			t.Errorf("%s: %d of %q, want %d of %q", test.what, limit, file, test.limit, test.file)
		}
	}
}

// Go's runtime stays below two thirds of what the group has, unless somebody has said otherwise.
func TestLimitMemory(t *testing.T) {
	before := debug.SetMemoryLimit(-1)
	defer debug.SetMemoryLimit(before)
	root := fstest.MapFS{
		"proc/self/cgroup":                 {Data: []byte("0::/a\n")},
		"proc/self/mountinfo":              {Data: []byte("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")},
		"sys/fs/cgroup/a/memory.max":       {Data: []byte("805306368\n")},
		"sys/fs/cgroup/a/b/c/d/memory.max": {Data: []byte("1\n")},
	}
	for _, test := range []struct {
		environment string
		want        int64
	}{{"", 512 << 20}, {"off", before}, {"3GiB", before}} {
		debug.SetMemoryLimit(before)
		t.Setenv("GOMEMLIMIT", test.environment)
		var log bytes.Buffer
		limit := host.LimitMemory(root, slog.New(slog.NewTextHandler(&log, nil)))
		if now := debug.SetMemoryLimit(-1); limit != 768<<20 || now != test.want ||
			strings.Contains(log.String(), "/sys/fs/cgroup/a/memory.max") != (now != before) {
			t.Errorf("%+v: %d of %d; the log:\n%s", test, now, limit, &log)
		}
	}
	if limit := host.LimitMemory(fstest.MapFS{}, slog.New(slog.DiscardHandler)); limit != 0 {
		t.Errorf("%d without control groups", limit)
	}
}

func FuzzGroupMemory(f *testing.F) {
	f.Add("0::/a/b\n", "30 24 0:26 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "1000000")
	f.Add("4:memory:/x\n0::/..\n", "34 30 0:31 / /m\\040m rw shared:9 - cgroup cgroup rw,memory\n",
		"max")
	f.Fuzz(func(t *testing.T, groups, mounts, text string) {
		root := fstest.MapFS{
			"proc/self/cgroup": {Data: []byte(groups)}, "proc/self/mountinfo": {Data: []byte(mounts)},
			"sys/fs/cgroup/memory.max": {Data: []byte(text)},
		}
		if limit, file := host.GroupMemory(root); limit < 0 || (limit == 0) != (file == "") {
			t.Errorf("%d of %q", limit, file)
		}
	})
}
