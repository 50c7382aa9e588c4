package deploy_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"ptthqd/test/testutil"
)

// A service is that of one host, and configs for it.
type service struct {
	*host
	other  string // a public key
	relay  string // a relay's config
	client string // a client's; the name of its relay does not even resolve
}

// fresh begins a part of the test with a config, and nothing that runs.
func (s *service) fresh(t *testing.T, config string) {
	t.Helper()
	s.run("systemctl stop 'ptthqd*.socket' 'ptthqd*.service'; systemctl reset-failed; rm -rf /etc/systemd/system/ptthqd*.d; systemctl daemon-reload")
	s.run("cat > /etc/ptthq.toml <<'END'\n" + config + "\nEND")
}

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
		other := h.run("cat /root/other.pub")
		s := &service{
			host: h, other: other,
			relay: "role = \"relay\"\n[[peers]]\nid = \"laptop\"\nrole = \"client\"\npublic_key = \"" + other + "\"\nallowed_servers = [\"nas\"]",
			client: "role = \"client\"\nid = \"laptop\"\n[[relays]]\naddress = \"relay.invalid:30380\"\npublic_key = \"" + other + "\"\n" +
				"[[mappings]]\nname = \"ssh\"\nlisten = \"127.0.0.1:2200\"\nserver = \"nas\"\ntarget = \"22\"",
		}
		l.sub("the sandbox holds", s.sandbox)
		l.sub("ready means that the sockets are bound", s.ready)
		l.sub("an unreachable relay holds nothing up", s.unreachableRelay)
		l.sub("a fault in the config's text ends it for good", s.configFault)
		l.sub("a fault of the host is tried again", s.hostFault)
		l.sub("a reload with a bad config fails and changes nothing", s.badReload)
		l.sub("the watchdog kills what hangs, and it serves again", s.watchdog)
		l.sub("the relay's socket is systemd's", s.relaySocket)
		l.sub("a privileged port needs no privilege where the socket is systemd's", s.privilegedPort)
		l.sub("an instance has a socket unit of its own", s.instanceSocket)
		l.sub("a user has a client of his own", s.userClient)
		l.sub("a bad config behind the socket ends in a failed socket", s.badConfigBehindSocket)
		l.sub("a mapping's socket is systemd's", s.mappingSocket)
		l.sub("a port below 1024 needs the drop-in", s.lowPort)
		l.sub("the key can be encrypted", s.encryptedKey)
		l.sub("a key that others can read is refused, as by check", s.readableKey)
		l.sub("another key in the file takes a restart", s.otherKey)
		l.sub("instances stand beside it", s.instances)
		l.sub("the journal has fields", s.journalFields)
	})
}

func (s *service) sandbox(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("systemctl start ptthqd")
	s.run("systemd-analyze security --no-pager --threshold=12 ptthqd.service")
	s.is("", "systemd-analyze verify --man=no ptthqd.service ptthqd@x.service ptthqd.socket ptthqd@x.socket 2>&1")
	s.is("", "XDG_RUNTIME_DIR=/tmp systemd-analyze verify --user --man=no /usr/lib/systemd/user/ptthqd.service 2>&1")
	s.run("pid=$(systemctl show -P MainPID ptthqd); grep -x 'NoNewPrivs:\t1' /proc/$pid/status; grep -x 'CapEff:\t0000000000000000' /proc/$pid/status; grep -x 'Seccomp:\t2' /proc/$pid/status")
}

func (s *service) ready(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("systemctl start ptthqd && ss -Hlun 'sport = 30380' | grep >/dev/null . && ptthqd status | grep >/dev/null .")
	s.is("660 ptthqd:ptthqd", "stat -c '%a %U:%G' /run/ptthqd/control.sock")
	s.run("usermod -aG ptthqd games && setpriv --reuid=games --regid=games --init-groups ptthqd status")
	if _, code := s.try("setpriv --reuid=nobody --regid=nogroup --clear-groups ptthqd status"); code == 0 {
		t.Error("a stranger may use the control socket")
	}
}

func (s *service) unreachableRelay(t *testing.T) {
	s.fresh(t, s.client)
	s.run("timeout 5 systemctl start ptthqd && ss -Hltn 'sport = 2200' | grep >/dev/null .")
	s.says("relay.invalid", "systemctl show -P StatusText ptthqd")
}

func (s *service) configFault(t *testing.T) {
	s.fresh(t, s.relay+"\nallowed_server = 1")
	if _, code := s.try("systemctl start ptthqd"); code == 0 {
		t.Error("it started")
	}
	s.is("0 78 failed", "sleep 2.5; systemctl show -P NRestarts -P ExecMainStatus -P ActiveState ptthqd | paste -sd ' '")
	s.says("/etc/ptthq.toml:7:1: ", "journalctl -o cat -u ptthqd -n 20")
}

func (s *service) hostFault(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("systemd-run --quiet --unit=squatter --collect nc -u -l -k -p 30380")
	s.soon("ss -Hlun 'sport = 30380' | grep >/dev/null .")
	s.try("systemctl start ptthqd")
	s.soon("test $(systemctl show -P NRestarts ptthqd) -ge 2")
	s.run("systemctl stop squatter")
	s.soon("systemctl is-active ptthqd")
}

func (s *service) badReload(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("systemctl start ptthqd")
	pid := s.run("systemctl show -P MainPID ptthqd")
	s.run("echo 'nonsense = 1' >> /etc/ptthq.toml")
	if _, code := s.try("systemctl reload ptthqd"); code == 0 {
		t.Error("systemctl reload says that all is well")
	}
	s.is(pid+" active", "systemctl show -P MainPID -P ActiveState ptthqd | paste -sd ' '")
	s.says("/etc/ptthq.toml:7:1: ", "journalctl -o cat -u ptthqd -n 20")
	s.says("/etc/ptthq.toml:7:1", "systemctl show -P StatusText ptthqd")
	if said, code := s.try("ptthqd reload"); code == 0 || !strings.Contains(said, "/etc/ptthq.toml:7:1: ") {
		t.Errorf("ptthqd reload: exit code %d\n%s", code, said)
	}
	s.run("sed -i '$d' /etc/ptthq.toml && systemctl reload ptthqd && systemctl reload ptthqd")
	s.is(pid+" active", "systemctl show -P MainPID -P ActiveState ptthqd | paste -sd ' '")
}

func (s *service) watchdog(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("mkdir -p /etc/systemd/system/ptthqd.service.d && printf '[Service]\nWatchdogSec=3\n' > /etc/systemd/system/ptthqd.service.d/hang.conf && systemctl daemon-reload")
	stood := testutil.WatchMachine()
	s.run("systemctl start ptthqd && kill -STOP $(systemctl show -P MainPID ptthqd)")
	s.soon("test $(systemctl show -P NRestarts ptthqd) -ge 1 && systemctl is-active ptthqd")
	// From start to start, by systemd's own clock. The process is stopped at once. The watchdog has 3 s,
	// and the restart 1 s and 2 s more.
	var was, is float64
	starts := s.run("journalctl -o short-unix UNIT=ptthqd.service | grep ': Started ptthqd' | tail -n 2 | cut -d ' ' -f 1")
	if _, err := fmt.Sscan(starts, &was, &is); err != nil || is-was < 3 {
		t.Errorf("it serves again %.3f s after it was started: %q, %v", is-was, starts, err)
	}
	if still := stood(); is-was > 6 {
		testutil.Broken(t, still, testutil.AtRest, "it serves again %.3f s after it was started; 6 s is the most", is-was)
	}
	t.Logf("it serves again %.3f s after it was started", is-was)
	s.run("journalctl -o cat -u ptthqd | grep 'Watchdog timeout' && journalctl -o cat -u ptthqd | grep '^goroutine 1 '")
}

func (s *service) relaySocket(t *testing.T) {
	s.fresh(t, strings.Replace(s.relay, "\n", "\nlisten = \"systemd:relay\"\n", 1))
	s.run("systemctl start ptthqd.socket")
	s.is("inactive", "systemctl is-active ptthqd")
	s.run("ss -Hlunm 'sport = 30380' | grep >/dev/null rb33554432") // 16 MiB, as the kernel counts
	s.run("echo knock > /dev/udp/127.0.0.1/30380")
	s.soon("systemctl is-active ptthqd")
	s.says("systemd:relay", "ptthqd status --json")
	s.run("systemctl stop ptthqd")
	s.is("inactive", "systemctl is-active ptthqd.socket")

	// Enabled, it comes up with the service, also on a restart of a service that runs without it.
	s.run("systemctl enable ptthqd.socket 2>/dev/null && systemctl restart ptthqd")
	s.is("active", "systemctl is-active ptthqd.socket")
	s.run("systemctl restart ptthqd && ss -Hlun 'sport = 30380' | grep >/dev/null .")
	s.is("active active", "systemctl is-active ptthqd ptthqd.socket | paste -sd ' '")
	s.run("systemctl disable ptthqd.socket 2>/dev/null")
}

func (s *service) privilegedPort(t *testing.T) {
	s.fresh(t, strings.Replace(s.relay, "\n", "\nlisten = \"systemd:relay\"\n", 1))
	s.run("mkdir -p /etc/systemd/system/ptthqd.socket.d && printf '[Socket]\nListenDatagram=\nListenDatagram=[::]:443\n' > /etc/systemd/system/ptthqd.socket.d/port.conf && systemctl daemon-reload")
	s.run("systemctl start ptthqd.socket ptthqd")
	s.run("ss -Hlunm 'sport = 443' | grep >/dev/null rb33554432 && ! ss -Hlun 'sport = 30380' | grep .")
	s.run("grep -x 'CapEff:\t0000000000000000' /proc/$(systemctl show -P MainPID ptthqd)/status")
	s.says("[::]:443", "ptthqd status --json")
}

func (s *service) instanceSocket(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("ptthqd keygen -o /etc/ptthq/edge.key && cat > /etc/ptthq/edge.toml <<'END'\n" + strings.Replace(s.relay, "\n", "\nlisten = \"systemd:relay\"\n", 1) + "\nEND")
	s.run("systemctl start ptthqd@edge.socket")
	s.is("inactive", "systemctl is-active ptthqd@edge")
	s.run("echo knock > /dev/udp/127.0.0.1/30380")
	s.soon("systemctl is-active ptthqd@edge && ptthqd status -c /etc/ptthq/edge.toml --json | grep systemd:relay")
	s.run("systemctl stop ptthqd@edge && rm /etc/ptthq/edge.*")
	s.is("inactive", "systemctl is-active ptthqd@edge.socket")
}

func (s *service) userClient(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("useradd --create-home --shell /bin/bash alice && loginctl enable-linger alice")
	s.soon("systemctl is-active user@$(id -u alice)")
	as := func(command string) string {
		return "runuser -u alice -- env -C /home/alice HOME=/home/alice XDG_RUNTIME_DIR=/run/user/$(id -u alice) bash -euo pipefail -c " + quoted(command)
	}
	s.run(as("systemctl --user start ptthqd && ! systemctl --user is-active ptthqd")) // without a key it is quiet
	said := s.run(as("ptthqd init client --id laptop --relay relay.invalid --relay-key " + s.other + " --mapping 2201=nas:22"))
	if !strings.Contains(said, "systemctl --user enable --now ptthqd") {
		t.Errorf("init does not say how to start it:\n%s", said)
	}
	s.run(as("systemctl --user enable --now ptthqd 2>/dev/null"))
	s.run("ss -Hltn 'sport = 2201' | grep >/dev/null .")
	s.says("relay.invalid", as("systemctl --user show -P StatusText ptthqd"))
	s.says("relay.invalid", as("ptthqd status"))
	s.is("700 alice", "stat -c '%a %U' /run/user/$(id -u alice)/ptthqd")
	s.run("pid=$(" + as("systemctl --user show -P MainPID ptthqd") + "); grep -x 'NoNewPrivs:\t1' /proc/$pid/status; grep -x 'Seccomp:\t2' /proc/$pid/status")
	s.soon("journalctl -o json _SYSTEMD_USER_UNIT=ptthqd.service | grep PTTHQ_RELAY")

	s.run(as("echo 'nonsense = 1' >> .config/ptthq.toml"))
	if _, code := s.try(as("systemctl --user reload ptthqd")); code == 0 {
		t.Error("systemctl reload says that all is well")
	}
	s.says("ptthq.toml:", as("systemctl --user show -P StatusText ptthqd"))
	s.run(as("sed -i '$d' .config/ptthq.toml && sed -i s/2201/2202/ .config/ptthq.toml && systemctl --user reload ptthqd"))
	s.run("ss -Hltn 'sport = 2202' | grep >/dev/null .")
	s.run(as("systemctl --user restart ptthqd") + " && ss -Hltn 'sport = 2202' | grep >/dev/null .")

	// It comes with the user's own systemd, and goes with it.
	s.run("systemctl stop user@$(id -u alice) && ! ss -Hltn 'sport = 2202' | grep .")
	s.run("systemctl start user@$(id -u alice)")
	s.soon("ss -Hltn 'sport = 2202' | grep >/dev/null .")
	s.run("loginctl disable-linger alice; systemctl stop user@$(id -u alice)")
}

func (s *service) badConfigBehindSocket(t *testing.T) {
	s.fresh(t, "nonsense")
	s.run("systemctl start ptthqd.socket")
	// One datagram is enough: nobody takes it out of the socket.
	s.run("echo knock > /dev/udp/127.0.0.1/30380")
	s.soon("systemctl is-failed ptthqd.socket")
	s.is("trigger-limit-hit", "systemctl show -P Result ptthqd.socket")
	s.is("78", "systemctl show -P ExecMainStatus ptthqd")
	s.run("cat > /etc/ptthq.toml <<'END'\n" + strings.Replace(s.relay, "\n", "\nlisten = \"systemd:relay\"\n", 1) + "\nEND")
	s.run("systemctl restart ptthqd.socket && systemctl start ptthqd")
}

func (s *service) mappingSocket(t *testing.T) {
	s.fresh(t, strings.Replace(s.client, "127.0.0.1:2200", "systemd:ssh", 1))
	s.run("cp /examples/ptthqd-ssh.socket /etc/systemd/system/ && systemctl daemon-reload && systemctl start ptthqd-ssh.socket")
	s.run("nc -w 1 127.0.0.1 2200 </dev/null || true")
	s.soon("systemctl is-active ptthqd")
	s.says("systemd:ssh", "ptthqd status --json")
	s.run("rm /etc/systemd/system/ptthqd-ssh.socket")
}

func (s *service) lowPort(t *testing.T) {
	s.fresh(t, strings.Replace(s.client, "127.0.0.1:2200", "127.0.0.1:443", 1))
	s.run("systemctl start ptthqd")
	s.says("privileged-ports.conf", "ptthqd status")
	if said, code := s.try("ptthqd status --check"); code == 0 || !strings.Contains(said, "mapping") {
		t.Errorf("status --check: exit code %d\n%s", code, said)
	}
	s.run("install -D -m 0644 /examples/privileged-ports.conf /etc/systemd/system/ptthqd.service.d/privileged-ports.conf && systemctl daemon-reload && systemctl restart ptthqd")
	s.soon("systemctl is-active ptthqd && ss -Hltn 'sport = 443' | grep >/dev/null .")
}

func (s *service) encryptedKey(t *testing.T) {
	s.fresh(t, s.relay)
	key := s.run("ptthqd pubkey /etc/ptthq.key")
	s.run("mkdir -p -m 0700 /etc/credstore.encrypted && systemd-creds encrypt --name=ptthq.key /etc/ptthq.key /etc/credstore.encrypted/ptthq.key && mv /etc/ptthq.key /root/")
	s.run("install -D -m 0644 /examples/encrypted-credential.conf /etc/systemd/system/ptthqd.service.d/encrypted-credential.conf && systemctl daemon-reload")
	s.run("systemctl start ptthqd")
	s.says(key, "ptthqd status --json")
	s.run("mv /root/ptthq.key /etc/ && rm -r /etc/credstore.encrypted")
}

func (s *service) readableKey(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("chmod 644 /etc/ptthq.key")
	if said, code := s.try("ptthqd check"); code == 0 || !strings.Contains(said, "open to other users") {
		t.Errorf("check: %d, %s", code, said)
	}
	if _, code := s.try("systemctl start ptthqd"); code == 0 {
		t.Error("the service starts with it")
	}
	s.says("open to other users", "journalctl -o cat -u ptthqd -n 20")
	s.run("chmod 600 /etc/ptthq.key")
	s.soon("systemctl is-active ptthqd")
}

func (s *service) otherKey(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("systemctl start ptthqd && systemctl reload ptthqd")
	s.run("cp -p /etc/ptthq.key /root/kept.key && sleep 0.1 && ptthqd keygen --force -o /etc/ptthq.key")
	if _, code := s.try("systemctl reload ptthqd"); code == 0 {
		t.Error("systemctl reload says that all is well")
	}
	if said, code := s.try("ptthqd reload"); code == 0 || !strings.Contains(said, "only a restart takes it over") {
		t.Errorf("ptthqd reload: exit code %d\n%s", code, said)
	}
	s.run("systemctl restart ptthqd && systemctl reload ptthqd && mv /root/kept.key /etc/ptthq.key")
}

func (s *service) instances(t *testing.T) {
	s.fresh(t, s.relay)
	s.run("ptthqd keygen -o /etc/ptthq/home.key && cat > /etc/ptthq/home.toml <<'END'\n" + s.client + "\nEND")
	s.run("systemctl start ptthqd ptthqd@home")
	s.says(`"relay"`, "ptthqd status --json")
	s.says(`"client"`, "ptthqd status --json -c /etc/ptthq/home.toml")
	s.run("systemctl reload ptthqd@home && systemctl stop ptthqd@home")
	s.is("active", "systemctl is-active ptthqd")
	s.run("rm /etc/ptthq/home.*")
}

func (s *service) journalFields(t *testing.T) {
	s.fresh(t, s.client)
	s.run("systemctl start ptthqd")
	s.run("nc -w 1 127.0.0.1 2200 </dev/null || true")
	s.soon("journalctl _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID ptthqd) PTTHQ_CODE=503 -o cat | grep 'connection refused'")
	fields := map[string]bool{}
	for line := range strings.Lines(s.run("journalctl -o json -u ptthqd -n 50")) {
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
}
