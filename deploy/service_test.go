package deploy_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// TestService tries the service of one host: how it starts, reloads, fails and is started.
func TestService(t *testing.T) {
	onEach(t, func(t *testing.T, base string) {
		examples, err := filepath.Abs(filepath.Join("systemd", "examples"))
		if err != nil {
			t.Fatal(err)
		}
		l := newLab(t, base, []string{"host"}, "--ro", examples+":/examples")
		h := l.host("host")
		h.run("dpkg -i /debs/1.deb >/dev/null 2>&1 && ptthqd keygen -o /etc/ptthq.key")
		h.run("echo " + h.run("ptthqd keygen | tee /root/other.key | ptthqd pubkey") + " > /root/other.pub")
		// fresh begins a test with a config, and nothing that runs.
		fresh := func(t *testing.T, config string) {
			t.Helper()
			h.run("systemctl stop 'ptthqd*.socket' 'ptthqd*.service'; systemctl reset-failed; rm -rf /etc/systemd/system/ptthqd*.d; systemctl daemon-reload")
			h.run("cat > /etc/ptthq.toml <<'END'\n" + config + "\nEND")
		}
		other := h.run("cat /root/other.pub")
		relay := "role = \"relay\"\n[[peers]]\nid = \"laptop\"\nrole = \"client\"\npublic_key = \"" + other + "\"\nallowed_servers = [\"nas\"]"
		// A relay that nobody is: the name does not even resolve.
		client := "role = \"client\"\nid = \"laptop\"\n[[relays]]\naddress = \"relay.invalid:30380\"\npublic_key = \"" + other + "\"\n" +
			"[[mappings]]\nname = \"ssh\"\nlisten = \"127.0.0.1:2200\"\nserver = \"nas\"\ntarget = \"22\""

		l.sub("the sandbox holds", func(t *testing.T) {
			fresh(t, relay)
			h.run("systemctl start ptthqd")
			h.run("systemd-analyze security --no-pager --threshold=12 ptthqd.service")
			h.is("", "systemd-analyze verify --man=no ptthqd.service ptthqd@x.service ptthqd.socket ptthqd@x.socket 2>&1")
			h.is("", "XDG_RUNTIME_DIR=/tmp systemd-analyze verify --user --man=no /usr/lib/systemd/user/ptthqd.service 2>&1")
			h.run("pid=$(systemctl show -P MainPID ptthqd); grep -x 'NoNewPrivs:\t1' /proc/$pid/status; grep -x 'CapEff:\t0000000000000000' /proc/$pid/status; grep -x 'Seccomp:\t2' /proc/$pid/status")
		})
		l.sub("ready means that the sockets are bound", func(t *testing.T) {
			fresh(t, relay)
			h.run("systemctl start ptthqd && ss -Hlun 'sport = 30380' | grep >/dev/null . && ptthqd status | grep >/dev/null .")
			h.is("660 ptthqd:ptthqd", "stat -c '%a %U:%G' /run/ptthqd/control.sock")
			h.run("usermod -aG ptthqd games && setpriv --reuid=games --regid=games --init-groups ptthqd status")
			if _, code := h.try("setpriv --reuid=nobody --regid=nogroup --clear-groups ptthqd status"); code == 0 {
				t.Error("a stranger may use the control socket")
			}
		})
		l.sub("an unreachable relay holds nothing up", func(t *testing.T) {
			fresh(t, client)
			h.run("timeout 5 systemctl start ptthqd && ss -Hltn 'sport = 2200' | grep >/dev/null .")
			h.says("relay.invalid", "systemctl show -P StatusText ptthqd")
		})
		l.sub("a fault in the config's text ends it for good", func(t *testing.T) {
			fresh(t, relay+"\nallowed_server = 1")
			if _, code := h.try("systemctl start ptthqd"); code == 0 {
				t.Error("it started")
			}
			h.is("0 78 failed", "sleep 2.5; systemctl show -P NRestarts -P ExecMainStatus -P ActiveState ptthqd | paste -sd ' '")
			h.says("/etc/ptthq.toml:7:1: ", "journalctl -o cat -u ptthqd -n 20")
		})
		l.sub("a fault of the host is tried again", func(t *testing.T) {
			fresh(t, relay)
			h.run("systemd-run --quiet --unit=squatter --collect nc -u -l -k -p 30380")
			h.soon("ss -Hlun 'sport = 30380' | grep >/dev/null .")
			h.try("systemctl start ptthqd")
			h.soon("test $(systemctl show -P NRestarts ptthqd) -ge 2")
			h.run("systemctl stop squatter")
			h.soon("systemctl is-active ptthqd")
		})
		l.sub("a reload with a bad config fails and changes nothing", func(t *testing.T) {
			fresh(t, relay)
			h.run("systemctl start ptthqd")
			pid := h.run("systemctl show -P MainPID ptthqd")
			h.run("echo 'nonsense = 1' >> /etc/ptthq.toml")
			if _, code := h.try("systemctl reload ptthqd"); code == 0 {
				t.Error("systemctl reload says that all is well")
			}
			h.is(pid+" active", "systemctl show -P MainPID -P ActiveState ptthqd | paste -sd ' '")
			h.says("/etc/ptthq.toml:7:1: ", "journalctl -o cat -u ptthqd -n 20")
			h.says("/etc/ptthq.toml:7:1", "systemctl show -P StatusText ptthqd")
			if said, code := h.try("ptthqd reload"); code == 0 || !strings.Contains(said, "/etc/ptthq.toml:7:1: ") {
				t.Errorf("ptthqd reload: exit code %d\n%s", code, said)
			}
			h.run("sed -i '$d' /etc/ptthq.toml && systemctl reload ptthqd && systemctl reload ptthqd")
			h.is(pid+" active", "systemctl show -P MainPID -P ActiveState ptthqd | paste -sd ' '")
		})
		l.sub("the watchdog kills what hangs, and it serves again", func(t *testing.T) {
			fresh(t, relay)
			h.run("mkdir -p /etc/systemd/system/ptthqd.service.d && printf '[Service]\nWatchdogSec=3\n' > /etc/systemd/system/ptthqd.service.d/hang.conf && systemctl daemon-reload")
			h.run("systemctl start ptthqd && kill -STOP $(systemctl show -P MainPID ptthqd)")
			h.soon("test $(systemctl show -P NRestarts ptthqd) -ge 1 && systemctl is-active ptthqd")
			// From start to start, by systemd's own clock. It is stopped at once, and has the watchdog's 3 s and 3 s more.
			var was, is float64
			starts := h.run("journalctl -o short-unix UNIT=ptthqd.service | grep ': Started ptthqd' | tail -n 2 | cut -d ' ' -f 1")
			if _, err := fmt.Sscan(starts, &was, &is); err != nil || is-was > 6 || is-was < 3 {
				t.Errorf("it serves again %.3f s after it was started: %q, %v", is-was, starts, err)
			}
			t.Logf("it serves again %.3f s after it was started", is-was)
			h.run("journalctl -o cat -u ptthqd | grep 'Watchdog timeout' && journalctl -o cat -u ptthqd | grep '^goroutine 1 '")
		})
		l.sub("the relay's socket is systemd's", func(t *testing.T) {
			fresh(t, strings.Replace(relay, "\n", "\nlisten = \"systemd:relay\"\n", 1))
			h.run("systemctl start ptthqd.socket")
			h.is("inactive", "systemctl is-active ptthqd")
			h.run("ss -Hlunm 'sport = 30380' | grep >/dev/null rb33554432") // 16 MiB, as the kernel counts
			h.run("echo knock > /dev/udp/127.0.0.1/30380")
			h.soon("systemctl is-active ptthqd")
			h.says("systemd:relay", "ptthqd status --json")
			h.run("systemctl stop ptthqd")
			h.is("inactive", "systemctl is-active ptthqd.socket")

			// Enabled, it comes up with the service, also on a restart of a service that runs without it.
			h.run("systemctl enable ptthqd.socket 2>/dev/null && systemctl restart ptthqd")
			h.is("active", "systemctl is-active ptthqd.socket")
			h.run("systemctl restart ptthqd && ss -Hlun 'sport = 30380' | grep >/dev/null .")
			h.is("active active", "systemctl is-active ptthqd ptthqd.socket | paste -sd ' '")
			h.run("systemctl disable ptthqd.socket 2>/dev/null")
		})
		l.sub("a privileged port needs no privilege where the socket is systemd's", func(t *testing.T) {
			fresh(t, strings.Replace(relay, "\n", "\nlisten = \"systemd:relay\"\n", 1))
			h.run("mkdir -p /etc/systemd/system/ptthqd.socket.d && printf '[Socket]\nListenDatagram=\nListenDatagram=[::]:443\n' > /etc/systemd/system/ptthqd.socket.d/port.conf && systemctl daemon-reload")
			h.run("systemctl start ptthqd.socket ptthqd")
			h.run("ss -Hlunm 'sport = 443' | grep >/dev/null rb33554432 && ! ss -Hlun 'sport = 30380' | grep .")
			h.run("grep -x 'CapEff:\t0000000000000000' /proc/$(systemctl show -P MainPID ptthqd)/status")
			h.says("[::]:443", "ptthqd status --json")
		})
		l.sub("an instance has a socket unit of its own", func(t *testing.T) {
			fresh(t, relay)
			h.run("ptthqd keygen -o /etc/ptthq/edge.key && cat > /etc/ptthq/edge.toml <<'END'\n" + strings.Replace(relay, "\n", "\nlisten = \"systemd:relay\"\n", 1) + "\nEND")
			h.run("systemctl start ptthqd@edge.socket")
			h.is("inactive", "systemctl is-active ptthqd@edge")
			h.run("echo knock > /dev/udp/127.0.0.1/30380")
			h.soon("systemctl is-active ptthqd@edge && ptthqd status -c /etc/ptthq/edge.toml --json | grep systemd:relay")
			h.run("systemctl stop ptthqd@edge && rm /etc/ptthq/edge.*")
			h.is("inactive", "systemctl is-active ptthqd@edge.socket")
		})
		l.sub("a user has a client of his own", func(t *testing.T) {
			fresh(t, relay)
			h.run("useradd --create-home --shell /bin/bash alice && loginctl enable-linger alice")
			h.soon("systemctl is-active user@$(id -u alice)")
			as := func(command string) string {
				return "runuser -u alice -- env -C /home/alice HOME=/home/alice XDG_RUNTIME_DIR=/run/user/$(id -u alice) bash -euo pipefail -c " + quoted(command)
			}
			h.run(as("systemctl --user start ptthqd && ! systemctl --user is-active ptthqd")) // without a key it is quiet
			said := h.run(as("ptthqd init client --id laptop --relay relay.invalid --relay-key " + other + " --mapping 2201=nas:22"))
			if !strings.Contains(said, "systemctl --user enable --now ptthqd") {
				t.Errorf("init does not say how to start it:\n%s", said)
			}
			h.run(as("systemctl --user enable --now ptthqd 2>/dev/null"))
			h.run("ss -Hltn 'sport = 2201' | grep >/dev/null .")
			h.says("relay.invalid", as("systemctl --user show -P StatusText ptthqd"))
			h.says("relay.invalid", as("ptthqd status"))
			h.is("700 alice", "stat -c '%a %U' /run/user/$(id -u alice)/ptthqd")
			h.run("pid=$(" + as("systemctl --user show -P MainPID ptthqd") + "); grep -x 'NoNewPrivs:\t1' /proc/$pid/status; grep -x 'Seccomp:\t2' /proc/$pid/status")
			h.soon("journalctl -o json _SYSTEMD_USER_UNIT=ptthqd.service | grep PTTHQ_RELAY")

			h.run(as("echo 'nonsense = 1' >> .config/ptthq.toml"))
			if _, code := h.try(as("systemctl --user reload ptthqd")); code == 0 {
				t.Error("systemctl reload says that all is well")
			}
			h.says("ptthq.toml:", as("systemctl --user show -P StatusText ptthqd"))
			h.run(as("sed -i '$d' .config/ptthq.toml && sed -i s/2201/2202/ .config/ptthq.toml && systemctl --user reload ptthqd"))
			h.run("ss -Hltn 'sport = 2202' | grep >/dev/null .")
			h.run(as("systemctl --user restart ptthqd") + " && ss -Hltn 'sport = 2202' | grep >/dev/null .")

			// It comes with the user's own systemd, and goes with it.
			h.run("systemctl stop user@$(id -u alice) && ! ss -Hltn 'sport = 2202' | grep .")
			h.run("systemctl start user@$(id -u alice)")
			h.soon("ss -Hltn 'sport = 2202' | grep >/dev/null .")
			h.run("loginctl disable-linger alice; systemctl stop user@$(id -u alice)")
		})
		l.sub("a bad config behind the socket ends in a failed socket", func(t *testing.T) {
			fresh(t, "nonsense")
			h.run("systemctl start ptthqd.socket")
			// One datagram is enough: nobody takes it out of the socket.
			h.run("echo knock > /dev/udp/127.0.0.1/30380")
			h.soon("systemctl is-failed ptthqd.socket")
			h.is("trigger-limit-hit", "systemctl show -P Result ptthqd.socket")
			h.is("78", "systemctl show -P ExecMainStatus ptthqd")
			h.run("cat > /etc/ptthq.toml <<'END'\n" + strings.Replace(relay, "\n", "\nlisten = \"systemd:relay\"\n", 1) + "\nEND")
			h.run("systemctl restart ptthqd.socket && systemctl start ptthqd")
		})
		l.sub("a mapping's socket is systemd's", func(t *testing.T) {
			fresh(t, strings.Replace(client, "127.0.0.1:2200", "systemd:ssh", 1))
			h.run("cp /examples/ptthqd-ssh.socket /etc/systemd/system/ && systemctl daemon-reload && systemctl start ptthqd-ssh.socket")
			h.run("nc -w 1 127.0.0.1 2200 </dev/null || true")
			h.soon("systemctl is-active ptthqd")
			h.says("systemd:ssh", "ptthqd status --json")
			h.run("rm /etc/systemd/system/ptthqd-ssh.socket")
		})
		l.sub("a port below 1024 needs the drop-in", func(t *testing.T) {
			fresh(t, strings.Replace(client, "127.0.0.1:2200", "127.0.0.1:443", 1))
			h.run("systemctl start ptthqd")
			h.says("privileged-ports.conf", "ptthqd status")
			if said, code := h.try("ptthqd status --check"); code == 0 || !strings.Contains(said, "mapping") {
				t.Errorf("status --check: exit code %d\n%s", code, said)
			}
			h.run("install -D -m 0644 /examples/privileged-ports.conf /etc/systemd/system/ptthqd.service.d/privileged-ports.conf && systemctl daemon-reload && systemctl restart ptthqd")
			h.soon("systemctl is-active ptthqd && ss -Hltn 'sport = 443' | grep >/dev/null .")
		})
		l.sub("the key can be encrypted", func(t *testing.T) {
			fresh(t, relay)
			key := h.run("ptthqd pubkey /etc/ptthq.key")
			h.run("mkdir -p -m 0700 /etc/credstore.encrypted && systemd-creds encrypt --name=ptthq.key /etc/ptthq.key /etc/credstore.encrypted/ptthq.key && mv /etc/ptthq.key /root/")
			h.run("install -D -m 0644 /examples/encrypted-credential.conf /etc/systemd/system/ptthqd.service.d/encrypted-credential.conf && systemctl daemon-reload")
			h.run("systemctl start ptthqd")
			h.says(key, "ptthqd status --json")
			h.run("mv /root/ptthq.key /etc/ && rm -r /etc/credstore.encrypted")
		})
		l.sub("a key that others can read is refused, as by check", func(t *testing.T) {
			fresh(t, relay)
			h.run("chmod 644 /etc/ptthq.key")
			if said, code := h.try("ptthqd check"); code == 0 || !strings.Contains(said, "open to other users") {
				t.Errorf("check: %d, %s", code, said)
			}
			if _, code := h.try("systemctl start ptthqd"); code == 0 {
				t.Error("the service starts with it")
			}
			h.says("open to other users", "journalctl -o cat -u ptthqd -n 20")
			h.run("chmod 600 /etc/ptthq.key")
			h.soon("systemctl is-active ptthqd")
		})
		l.sub("another key in the file takes a restart", func(t *testing.T) {
			fresh(t, relay)
			h.run("systemctl start ptthqd && systemctl reload ptthqd")
			h.run("cp -p /etc/ptthq.key /root/kept.key && sleep 0.1 && ptthqd keygen --force -o /etc/ptthq.key")
			if _, code := h.try("systemctl reload ptthqd"); code == 0 {
				t.Error("systemctl reload says that all is well")
			}
			if said, code := h.try("ptthqd reload"); code == 0 || !strings.Contains(said, "only a restart takes it over") {
				t.Errorf("ptthqd reload: exit code %d\n%s", code, said)
			}
			h.run("systemctl restart ptthqd && systemctl reload ptthqd && mv /root/kept.key /etc/ptthq.key")
		})
		l.sub("instances stand beside it", func(t *testing.T) {
			fresh(t, relay)
			h.run("ptthqd keygen -o /etc/ptthq/home.key && cat > /etc/ptthq/home.toml <<'END'\n" + client + "\nEND")
			h.run("systemctl start ptthqd ptthqd@home")
			h.says(`"relay"`, "ptthqd status --json")
			h.says(`"client"`, "ptthqd status --json -c /etc/ptthq/home.toml")
			h.run("systemctl reload ptthqd@home && systemctl stop ptthqd@home")
			h.is("active", "systemctl is-active ptthqd")
			h.run("rm /etc/ptthq/home.*")
		})
		l.sub("the journal has fields", func(t *testing.T) {
			fresh(t, client)
			h.run("systemctl start ptthqd")
			h.run("nc -w 1 127.0.0.1 2200 </dev/null || true")
			h.soon("journalctl _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID ptthqd) PTTHQ_CODE=503 -o cat | grep 'connection refused'")
			fields := map[string]bool{}
			for line := range strings.Lines(h.run("journalctl -o json -u ptthqd -n 50")) {
				var entry map[string]any
				if err := json.Unmarshal([]byte(line), &entry); err != nil {
					t.Fatal(err)
				}
				for name := range entry {
					fields[name] = true
				}
			}
			for _, want := range []string{"MESSAGE_ID", "PRIORITY", "PTTHQ_ROLE", "PTTHQ_RELAY", "PTTHQ_MAPPING", "PTTHQ_SOURCE", "PTTHQ_SERVER", "PTTHQ_CODE"} {
				if !fields[want] {
					t.Errorf("no line of the journal has %s", want)
				}
			}
		})
	})
}
