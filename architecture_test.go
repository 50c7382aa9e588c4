// Package ptthqd_test asserts what holds for the whole tree: the floors on which its packages stand, what each of them
// may know, and on whose code the program is built, under which licence.
package ptthqd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "ptthqd"

// floors says how high each package stands. A package imports only from floors below its own; roles, which share a
// floor, therefore never import each other.
var floors = map[string]int{
	"pkg/wire":      0,
	"pkg/door":      0,
	"pkg/ident":     0,
	"pkg/quiet":     0,
	"pkg/spare":     0,
	"pkg/nowait":    0,
	"pkg/origin":    0,
	"pkg/parity":    0,
	"test/testutil": 0, // for tests
	"pkg/awake":     0,
	"pkg/budget":    0,

	"pkg/config/tomlpos": 0,

	"pkg/splice":                  1, // needs wire's codes for how a stream ends
	"pkg/policy":                  1,
	"pkg/carrier":                 1, // needs parity
	"pkg/session/internal/window": 1, // needs wire's floor of a window
	"pkg/session/internal/share":  1,
	"pkg/control":                 1,
	"pkg/host":                    1, // needs wire to clean texts

	"pkg/link":    2,
	"pkg/config":  2,
	"pkg/session": 2,

	"pkg/link/linktest": 3, // for tests
	"pkg/uplink":        3,
	"pkg/ledger":        3, // what client and server share
	"pkg/bind":          3, // what client and daemon share: the sockets of what the config names

	"pkg/client": 4,
	"pkg/relay":  4,
	"pkg/server": 4,

	"pkg/daemon": 5,

	"cmd/ptthqd":       6,
	"bench":            6, // measures the other two
	"bench/plainchain": 6,

	"test/e2e": 7, // for tests of whole processes
}

// knows says which packages may import what; a name ending in "/" stands for all below it.
var knows = []struct {
	what string
	who  []string
	why  string
}{
	{"github.com/quic-go/quic-go/quicvarint", []string{"pkg/wire", "pkg/link"}, "the encoding is wire's"},
	{"github.com/quic-go/quic-go/testutils/simnet", []string{"pkg/link/linktest"}, "only link's tests simulate networks"},
	{"github.com/quic-go/quic-go/", []string{"pkg/link", "bench/plainchain"}, "only link knows quic-go"},
	{"github.com/coreos/go-systemd/", []string{"pkg/host"}, "only host knows systemd"},
	{"github.com/fsnotify/fsnotify", []string{"pkg/daemon"}, "only the daemon knows files that change"},
	{"os/signal", []string{"pkg/daemon", "cmd/ptthqd", "bench"}, "only the daemon knows signals"},
	{"github.com/prometheus/", []string{"pkg/daemon"}, "only the daemon knows Prometheus"},
	{"github.com/BurntSushi/toml", []string{"pkg/config"}, "only config knows TOML"},
	{"github.com/spf13/", []string{"cmd/ptthqd"}, "only the command knows the command line"},
	{"os/exec", []string{"cmd/ptthqd", "bench", "test/e2e"}, "nothing that speaks to a network starts programs"},
	{"unsafe", []string{"pkg/nowait", "pkg/carrier", "pkg/host"}, "what foreign bytes reach is memory-safe"},
}

// relayMayNot lists what would let the relay dial: it is a security boundary, and its imports show it.
var relayMayNot = []string{
	"net", "net/http", "net/rpc", "net/smtp", "net/textproto", "os/exec", "syscall", "plugin",
	"golang.org/x/sys/", "golang.org/x/net/", "github.com/",
}

var platforms = []string{"linux", "darwin", "windows"}

type goPackage struct {
	ImportPath string
	Imports    []string
	GoFiles    []string // none where there are only tests
}

func TestFloors(t *testing.T) {
	for _, goos := range platforms {
		for _, p := range list[goPackage](t, goos, "list", "-json=ImportPath,Imports,GoFiles", "./...") {
			if len(p.GoFiles) == 0 {
				continue
			}
			name := strings.TrimPrefix(p.ImportPath, module+"/")
			height, ok := floors[name]
			if !ok {
				t.Errorf("%s stands on no floor: say which in architecture_test.go", name)
				continue
			}
			for _, imported := range p.Imports {
				below, ours := strings.CutPrefix(imported, module+"/")
				if ours && floors[below] >= height {
					t.Errorf("%s: %s (floor %d) imports %s (floor %d): imports point down only", goos, name, height, below, floors[below])
				}
			}
		}
	}
}

func TestWhoKnowsWhat(t *testing.T) {
	for _, goos := range platforms {
		for _, p := range list[goPackage](t, goos, "list", "-json=ImportPath,Imports,GoFiles", "./...") {
			name := strings.TrimPrefix(p.ImportPath, module+"/")
			for _, imported := range p.Imports {
				for _, k := range knows {
					if !matches(imported, k.what) {
						continue
					}
					if !slices.Contains(k.who, name) {
						t.Errorf("%s: %s imports %s: %s", goos, name, imported, k.why)
					}
					break
				}
				if name == "pkg/relay" && slices.ContainsFunc(relayMayNot, func(not string) bool { return matches(imported, not) }) {
					t.Errorf("%s: the relay imports %s: it must be plain from its imports that it cannot dial", goos, imported)
				}
			}
		}
	}
}

// matches reports whether the import path is the pattern or, where the pattern ends in "/", stands below it.
func matches(path, pattern string) bool {
	below, tree := strings.CutSuffix(pattern, "/")
	return path == below || tree && strings.HasPrefix(path, pattern)
}

// list runs the go command, as on the given platform, and decodes the JSON values that it prints.
func list[T any](t *testing.T, goos string, args ...string) []T {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED=0")
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, complaint.Bytes())
	}
	var values []T
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var v T
		if err := d.Decode(&v); errors.Is(err, io.EOF) {
			return values
		} else if err != nil {
			t.Fatalf("go %s: %v", strings.Join(args, " "), err)
		}
		values = append(values, v)
	}
}
