//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"ptthqd/pkg/control"
	"ptthqd/pkg/ident"
)

// diagnosis is what `ptthqd doctor --json` says.
type diagnosis struct {
	OK                 bool
	Failures, Warnings int
	Checks             []struct {
		Check, Subject, Result, Detail, Remedy string
		Hops                                   []control.Hop
	}
}

// found are the checks that didn't go well.
func (d diagnosis) found() (all []string) {
	for _, c := range d.Checks {
		if c.Result == "fail" || c.Result == "warn" {
			all = append(all, fmt.Sprintf("%s %s %s: %s > %s", c.Result, c.Check, c.Subject, c.Detail, c.Remedy))
		}
	}
	return all
}

// doctor looks at a node from where it runs, and returns the exit code too.
func (w *world) doctor(node string, args ...string) (diagnosis, int) {
	w.t.Helper()
	argv := append(append([]string{}, w.prefix[node]...), program, "doctor", "--json", "-c", w.path(node, ".toml"))
	cmd := exec.Command(argv[0], append(argv[1:], args...)...)
	cmd.Env = append(os.Environ(), "RUNTIME_DIRECTORY="+w.path(node, ".run"))
	out, err := cmd.Output()
	exit, failed := errors.AsType[*exec.ExitError](err)
	if err != nil && !failed {
		w.t.Fatal(err)
	}
	var d diagnosis
	if err := json.Unmarshal(out, &d); err != nil {
		w.t.Fatalf("doctor says %q: %v", out, err)
	}
	if failed {
		return d, exit.ExitCode()
	}
	return d, 0
}

// TestDoctorFindsNothing looks at each node of a healthy chain. Nothing is found, and the hops of a
// mapping have their times.
func TestDoctorFindsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, endServer).all()
	for _, node := range []string{"laptop", "nas", "relay"} {
		d, code := w.doctor(node)
		found := d.found()
		if len(found) == 1 && strings.Contains(found[0], "net.core.rmem_max") && os.Getenv("CI") == "" {
			t.Logf("this host's own fault: %s", found[0])
			found = nil
		}
		if code != 0 || !d.OK || len(found) > 0 {
			t.Errorf("%s: exit code %d, found %q", node, code, found)
		}
	}
	d, _ := w.doctor("laptop")
	last := d.Checks[len(d.Checks)-1]
	if last.Check != "mapping" || len(last.Hops) != 3 || last.Hops[0].Took <= 0 || last.Hops[2].To != fmt.Sprintf(":%d", w.ports["target"]) {
		t.Errorf("the mapping's way: %+v", last)
	}
	if d, _ := w.doctor("laptop", "--no-targets"); len(d.Checks[len(d.Checks)-1].Hops) > 0 {
		t.Error("--no-targets has connected")
	}
	// Nor does it connect by another name of the same config.
	cmd := exec.Command(program, "doctor", "-c", "laptop.toml", "--no-targets")
	cmd.Dir, cmd.Env = w.dir, append(os.Environ(), "RUNTIME_DIRECTORY="+w.path("laptop", ".run"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "FAIL") {
		t.Errorf("%v\n%s", err, out)
	}
	// It has disturbed no link.
	for _, node := range []string{"laptop", "nas"} {
		if strings.Contains(w.procs[node].output(), "link down") {
			t.Errorf("%s has lost its link", node)
		}
	}
}

// replace replaces a text in a node's config, which must have it.
func (w *world) replace(node, old, with string) {
	w.t.Helper()
	text, err := os.ReadFile(w.path(node, ".toml"))
	if err != nil || !strings.Contains(string(text), old) {
		w.t.Fatalf("%s has no %q: %v", node, old, err)
	}
	w.write(node, strings.ReplaceAll(string(text), old, with))
}

func (w *world) restart(node string) {
	w.t.Helper()
	w.procs[node].stop(w.t)
	w.start(node)
}

// newKeyFile gives a node another key.
func (w *world) newKeyFile(node string) {
	w.t.Helper()
	if err := ident.WritePrivateKey(w.path(node, ".key"), newKey(w.t), true); err != nil {
		w.t.Fatal(err)
	}
}

// A doctorFault breaks a healthy chain, and has what the doctor then says.
type doctorFault struct {
	name  string
	plant func(w *world)
	node  string // the one that the doctor looks at; laptop if empty
	code  int    // the exit code; 1 if 0
	check string
	says  string // a part of the detail
	mends string // a part of the remedy; empty where the detail has it too
	wants string // the result; "fail" if empty
}

var doctorFaults = []doctorFault{
	{
		name:  "a misspelt key in the config",
		plant: func(w *world) { w.replace("laptop", "listen = ", "lisen = ") },
		code:  78, check: "config", says: "lisen", mends: `did you mean "listen"`,
	},
	{
		name:  "a key that others can read",
		plant: func(w *world) { _ = os.Chmod(w.path("laptop", ".key"), 0o644) },
		check: "key", says: "chmod 600",
	},
	{
		name:  "no key",
		plant: func(w *world) { _ = os.Remove(w.path("laptop", ".key")) },
		check: "key", says: "ptthqd keygen -o",
	},
	{
		name:  "a new key, and no restart",
		plant: func(w *world) { w.newKeyFile("laptop") },
		check: "daemon", says: "another key than the file", mends: "restart",
	},
	{
		name:  "the daemon doesn't run",
		plant: func(w *world) { w.procs["laptop"].stop(w.t) },
		check: "daemon", says: "no ptthqd is running", mends: "starts it",
	},
	{
		name: "a config that is not in force",
		plant: func(w *world) {
			w.replace("laptop", `id = "laptop"`, `id = "desktop"`)
			w.procs["laptop"].says(w.t, "config not reloaded")
		},
		check: "daemon", says: "not in force: only a restart can change id", mends: "restart",
	},
	{
		name: "a name that is nobody's",
		plant: func(w *world) {
			w.replace("laptop", `address = "127.0.0.1:`, `address = "relay.invalid:`)
			w.restart("laptop")
		},
		check: "relay", says: "cannot resolve relay.invalid", mends: "resolv.conf",
	},
	{
		name:  "a relay that doesn't run",
		plant: func(w *world) { w.procs["relay"].kill() },
		check: "relay", says: "no answer over UDP", mends: "firewall",
	},
	{
		name: "another key of the relay",
		plant: func(w *world) {
			w.replace("laptop", w.keys["relay"].Public().String(), w.keys["nas"].Public().String())
			w.restart("laptop")
		},
		check: "relay", says: "presented the key", mends: "laptop.toml:",
	},
	{
		name: "a key that the relay doesn't know",
		plant: func(w *world) {
			w.replace("relay", w.keys["laptop"].Public().String(), newKey(w.t).Public().String())
			w.procs["laptop"].says(w.t, "does not know this node's key")
		},
		check: "relay", says: "does not know this node's key", mends: "[[peers]]",
	},
	{
		name:  "a server that is away",
		plant: func(w *world) { w.procs["nas"].stop(w.t) },
		check: "mapping", says: "(503 by relay: server nas is not connected", mends: "start ptthqd at nas",
	},
	{
		name: "a rule that is missing",
		plant: func(w *world) {
			w.replace("relay", `allowed_servers = ["nas"`, `allowed_servers = ["nas:22"`)
			w.procs["relay"].says(w.t, "config reloaded")
		},
		check: "mapping", says: "(403 by relay: ", mends: "allowed_servers",
	},
	{
		name: "a service for others",
		plant: func(w *world) {
			w.replace("nas", `clients = ["laptop"]`, `clients = ["ops-*"]`)
			w.procs["nas"].says(w.t, "config reloaded")
		},
		check: "mapping", says: "(403 by nas: ", mends: "[[services]]",
	},
	{
		name:  "a target that nobody listens at",
		plant: func(w *world) { _ = w.target.Close() },
		check: "mapping", says: "(502 by nas: port", mends: "ss -ltn",
	},
	{
		name:  "the same, seen from the server",
		plant: func(w *world) { _ = w.target.Close() },
		node:  "nas", check: "service", says: "connection refused", mends: "ss -ltn",
	},
	{
		name: "a clock that is behind",
		plant: func(w *world) {
			future := time.Now().AddDate(5, 0, 0)
			_ = os.Chtimes(w.path("laptop", ".key"), future, future)
		},
		check: "clock", says: "clock is behind", mends: "timedatectl",
	},
	{
		name: "a port that is taken",
		plant: func(w *world) {
			w.procs["relay"].kill()
			conn, err := net.ListenPacket("udp4", fmt.Sprintf("127.0.0.1:%d", w.ports["relay"]))
			if err != nil {
				w.t.Fatal(err)
			}
			w.t.Cleanup(func() { _ = conn.Close() })
		},
		node: "relay", check: "listener", says: "bind: address already in use", mends: "ss -lunp",
	},
	{
		name: "few files",
		plant: func(w *world) {
			w.prefix["laptop"] = []string{"prlimit", "--nofile=1024:1024"}
			w.restart("laptop")
		},
		check: "daemon", says: "1024 files open", mends: "LimitNOFILE", wants: "warn",
	},
	{
		name: "a server that there isn't",
		plant: func(w *world) {
			w.replace("relay", `allowed_servers = [`, `allowed_servers = ["nass", `)
			w.procs["relay"].says(w.t, "config reloaded")
		},
		node: "relay", check: "config", says: "nass", wants: "warn",
	},
}

// TestDoctorFindsFaults plants each fault into a chain that was healthy. The doctor names it, with
// what mends it, and its exit code says that there is one.
func TestDoctorFindsFaults(t *testing.T) {
	t.Parallel()
	for _, fault := range doctorFaults {
		t.Run(fault.name, func(t *testing.T) {
			w := newWorld(t, endServer).all()
			fault.plant(w)
			node, want := "laptop", "fail"
			if fault.node != "" {
				node = fault.node
			}
			code := 1
			if fault.wants != "" {
				want, code = fault.wants, 0
			}
			if fault.code != 0 {
				code = fault.code
			}
			d, got := w.doctor(node)
			if got != code {
				t.Errorf("exit code %d, want %d", got, code)
			}
			for _, c := range d.Checks {
				if c.Check == fault.check && c.Result == want && strings.Contains(c.Detail, fault.says) && strings.Contains(c.Remedy, fault.mends) {
					return
				}
			}
			t.Errorf("found %q; want %s of %s: %s > %s", d.found(), want, fault.check, fault.says, fault.mends)
		})
	}
}

// TestBlockedUDP drops UDP on the way, or large packets alone. The log, the status and the doctor
// give the advice.
func TestBlockedUDP(t *testing.T) {
	t.Parallel()
	w, lab := newLabWorld(t, endServer, "relay")
	w.all()
	lab.in("laptop", "nft", "add table inet f; add chain inet f out { type filter hook output priority 0; }")
	for _, block := range []struct {
		name, host, rule string
		advice, remedy   string
	}{
		{
			"every packet", "hub", "inet f in iifname to-laptop udp dport %d drop",
			"no answer over UDP to 10.91.0.1:%d; UDP may be blocked on the way", "let UDP port %d pass in the firewalls",
		},
		{
			"large packets", "hub", "inet f in iifname to-laptop udp dport %d udp length > 1100 drop",
			"the relay at 10.91.0.1:%d answers small packets, but not QUIC's handshake", "raise the MTU",
		},
		{
			"by the host itself", "laptop", "inet f out udp dport %d drop",
			"cannot send to 10.91.0.1:%d: sendmsg: operation not permitted: a firewall of this host forbids it", "let it send UDP to port %d",
		},
	} {
		port := w.ports["relay"]
		with := func(text string) string {
			if strings.Contains(text, "%d") {
				return fmt.Sprintf(text, port)
			}
			return text
		}
		lab.in(block.host, "nft", "add rule "+with(block.rule))
		if block.name == "large packets" { // a link that lives would go on with small packets
			w.procs["laptop"].stop(t)
			w.start("laptop")
		}
		w.procs["laptop"].says(t, strings.NewReplacer("(", `\(`, ")", `\)`, ".", `\.`, "?", `\?`).Replace(with(block.advice)))
		eventually(t, 15*time.Second, "the status gives the advice", func() error {
			s := w.status("laptop")
			if len(s.Links) == 1 && strings.Contains(s.Links[0].LastError, with(block.advice)) && strings.Contains(s.Summary, with(block.advice)) &&
				len(s.Warnings) > 0 && strings.Contains(s.Warnings[0].Text, with(block.advice)) {
				return nil
			}
			return fmt.Errorf("%s: %+v", s.Summary, s.Links)
		})
		d, code := w.doctor("laptop")
		advised := false
		for _, c := range d.Checks {
			advised = advised || c.Check == "relay" && c.Result == "fail" && strings.Contains(c.Detail, with(block.advice)) && strings.Contains(c.Remedy, with(block.remedy))
		}
		if code != 1 || !advised {
			t.Errorf("%s: exit code %d, found %q", block.name, code, d.found())
		}
		// What an open program hears: the connection waits for a while, and is then reset with the reason in the log.
		if c, err := w.dial(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		w.procs["laptop"].says(t, `connection refused .*end="no link to a relay" code=503 .*10\.91\.0\.1`)
		lab.in(block.host, "nft", "flush table inet f")
		w.carries(60 * time.Second)
	}

	// A path whose MTU has room for QUIC's least packets and no more works; the doctor tells.
	lab.in("laptop", "ip", "link", "set", "eth0", "mtu", "1260")
	w.procs["laptop"].stop(t)
	w.start("laptop")
	w.carries(20 * time.Second)
	d, code := w.doctor("laptop")
	told := false
	for _, c := range d.Checks {
		told = told || c.Check == "mtu" && c.Result == "warn" && strings.Contains(c.Detail, "larger ones don't")
	}
	if code != 0 || !told {
		t.Errorf("a small MTU: exit code %d, found %q, %+v", code, d.found(), d.Checks)
	}
}
