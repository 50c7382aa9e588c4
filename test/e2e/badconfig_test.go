//go:build linux

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/test/testutil"
)

// badConfigs are the configs that pkg/config refuses, by name, each beside what
// it says of it; and one that is too large to be checked in.
const badConfigs = "../../pkg/config/testdata"

const (
	exitFailed = 1
	exitConfig = 78
)

// A badConfig is a file that no node may run by.
type badConfig struct {
	name string
	file string // absolute
	more string // the directory that it includes; empty if none
	want string // what is said of it, by the names in badConfigs
}

func readBadConfigs(t *testing.T) []badConfig {
	t.Helper()
	files, err := filepath.Glob(badConfigs + "/*.bad.toml")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d bad configs, %v", len(files), err)
	}
	var all []badConfig
	for _, file := range files {
		base := strings.TrimSuffix(file, ".toml")
		want, err := os.ReadFile(base + ".golden")
		if err != nil {
			t.Fatal(err)
		}
		file, err = filepath.Abs(file)
		if err != nil {
			t.Fatal(err)
		}
		bad := badConfig{name: filepath.Base(base), file: file, want: string(want)}
		if _, err := os.Stat(base + ".d"); err == nil {
			bad.more = strings.TrimSuffix(file, ".toml") + ".d"
		}
		all = append(all, bad)
	}
	big := filepath.Join(t.TempDir(), "big.bad.toml")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(100<<20), f.Close()); err != nil { // no block of it is on disk
		t.Fatal(err)
	}
	return append(all, badConfig{name: "big.bad", file: big, want: "testdata/big.bad.toml:1:1: too large"})
}

// says fails unless each line of what is to be said stands in the output, with
// the config's own name.
func (b badConfig) says(t *testing.T, output, file string) {
	t.Helper()
	names := strings.NewReplacer("testdata/"+b.name+".toml", file, "testdata/"+b.name+".d", strings.TrimSuffix(file, ".toml")+".d")
	for line := range strings.Lines(b.want) {
		if line = strings.TrimSpace(names.Replace(line)); !strings.Contains(output, line) {
			t.Errorf("%s: %q is missing in\n%s", b.name, line, output)
			return
		}
	}
}

// TestBadConfigsAtStart: no node starts with a bad config, and each says where
// the fault is.
func TestBadConfigsAtStart(t *testing.T) {
	for _, bad := range readBadConfigs(t) {
		t.Run(bad.name, func(t *testing.T) {
			out, code := runUntilItEnds(t, nil, bad.file)
			if code != exitConfig {
				t.Errorf("exit code %d, want %d:\n%s", code, exitConfig, out)
			}
			bad.says(t, out, bad.file)
		})
	}
}

// TestBadConfigsAtReload replaces the configs of running nodes by each bad one:
// nothing changes, and the reload tells the place.
func TestBadConfigsAtReload(t *testing.T) {
	s := newSite(t)
	open := s.mustDial()
	if _, err := open.Write(request{kind: kindEcho}.bytes()); err != nil {
		t.Fatal(err)
	}
	goesOn(t, open)
	nodes := []string{"relay", "nas", "laptop"}
	good, hashes := make(map[string]string), make(map[string]string)
	for _, node := range nodes {
		text, err := os.ReadFile(s.path(node, ".toml"))
		if err != nil {
			t.Fatal(err)
		}
		good[node], hashes[node] = string(text), s.status(node).Config.Hash
	}
	place := regexp.MustCompile(`\.toml:\d+:\d+: `)
	for i, bad := range readBadConfigs(t) {
		node := nodes[i%len(nodes)]
		if bad.more != "" {
			if err := os.CopyFS(s.path(node, ".d"), os.DirFS(bad.more)); err != nil {
				t.Fatal(err)
			}
		}
		draft := s.path(node, ".toml~")
		if err := errors.Join(copyFile(bad.file, draft), os.Rename(draft, s.path(node, ".toml"))); err != nil {
			t.Fatal(err)
		}
		out, code := s.askReload(node)
		if code != exitConfig || !place.MatchString(out) {
			t.Errorf("%s at %s: exit code %d:\n%s", bad.name, node, code, out)
		}
		bad.says(t, out, s.path(node, ".toml"))
		if now := s.status(node).Config; now.Hash != hashes[node] {
			t.Errorf("%s at %s has changed what runs: %+v", bad.name, node, now)
		}
		if err := os.RemoveAll(s.path(node, ".d")); err != nil {
			t.Fatal(err)
		}
		s.write(node, good[node])
	}
	for _, node := range nodes {
		if out, code := s.askReload(node); code != 0 {
			t.Errorf("%s doesn't take its own config back: exit code %d: %s", node, code, out)
		}
	}
	goesOn(t, open)
	finish(s.world, s.undisturbed)
}

// askReload types `ptthqd reload`.
func (w *world) askReload(node string) (output string, code int) {
	cmd := exec.Command(program, "reload", "--socket", filepath.Join(w.path(node, ".run"), "control.sock"))
	out, _ := cmd.CombinedOutput() // the exit code tells
	return string(out), cmd.ProcessState.ExitCode()
}

// copyFile keeps holes as holes.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.CopyN(out, in, min(info.Size(), 1<<20))
	return errors.Join(err, out.Truncate(info.Size()), out.Close())
}

// runUntilItEnds runs a config that keeps the node from starting; as somebody
// else with the program beside the config, and his runtime directory there.
func runUntilItEnds(t *testing.T, as *syscall.Credential, config string) (output string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "run", "-c", config)
	runtime := t.TempDir()
	if as != nil {
		runtime = filepath.Dir(config)
		cmd.Path = filepath.Join(runtime, "ptthqd")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	}
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "JOURNAL_STREAM=", "CREDENTIALS_DIRECTORY=", "RUNTIME_DIRECTORY="+runtime)
	out, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestHostFaults: what the host denies is told with the remedy, and the exit code
// says that another try may do.
func TestHostFaults(t *testing.T) {
	// A plain user's home, with a program that he may run.
	dir, err := os.MkdirTemp("", "ptthqd-e2e-user-") //nolint:usetesting // a plain user can't enter t.TempDir
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var user *syscall.Credential
	if os.Geteuid() == 0 {
		const nobody = 65534
		user = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o755), copyProgram(filepath.Join(dir, "ptthqd"))); err != nil {
		t.Fatal(err)
	}
	key := func(name string, mode os.FileMode, his bool) {
		t.Helper()
		k, err := ident.Generate()
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		err = errors.Join(ident.WritePrivateKey(file, k, true), os.Chmod(file, mode))
		if his && user != nil {
			err = errors.Join(err, os.Chown(file, int(user.Uid), int(user.Gid)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	key("his.key", 0o600, true)
	key("open.key", 0o644, true)
	key("closed.key", 0, false)
	if err := os.WriteFile(filepath.Join(dir, "closed.toml"), nil, 0); err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = udp.Close() }()

	relay := func(address string, more ...string) string {
		return "role = \"relay\"\nlisten = [\"" + address + "\"]\n" + strings.Join(more, "\n") + "\n"
	}
	free := fmt.Sprintf("127.0.0.1:%d", testutil.FreePort(t))
	for _, c := range []struct {
		name, key, config string
		want              []string
	}{
		{"UDP port in use", "", relay(udp.LocalAddr().String()), []string{udp.LocalAddr().String(), "address already in use", "ss -lunp"}},
		{"no such interface", "", relay("192.0.2.77:30380"), []string{"192.0.2.77:30380", "no interface of this host has the address"}},
		{"no key", "missing.key", relay(free), []string{"missing.key", "ptthqd keygen -o"}},
		{"key that others can read", "open.key", relay(free), []string{"open.key", "chmod 600"}},
		{"unreadable key", "closed.key", relay(free), []string{"closed.key", "permission denied", "chown"}},
		{"unreadable include", "", relay(free, `include = ["closed.toml"]`), []string{"closed.toml", "permission denied", "chmod"}},
		{"unreadable config", "", "", []string{"closed.toml", "permission denied", "chmod"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := filepath.Join(dir, "closed.toml")
			if c.config != "" {
				config = filepath.Join(dir, "node.toml")
				text := fmt.Sprintf("private_key_file = %q\n%s", filepath.Join(dir, cmp.Or(c.key, "his.key")), c.config)
				if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			out, code := runUntilItEnds(t, user, config)
			if code != exitFailed {
				t.Errorf("exit code %d, want %d", code, exitFailed)
			}
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("%q is missing in\n%s", want, out)
				}
			}
		})
	}
}

func copyProgram(to string) error {
	text, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o755)
}
