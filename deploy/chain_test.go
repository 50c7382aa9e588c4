package deploy_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// A chain is three hosts with the service of one role each.
type chain struct {
	lab                   *lab
	relay, client, server *host
}

// serverName succeeds at the client when ssh reaches the server through the chain.
const serverName = "ssh server hostname | grep -x server"

// TestThreeHosts installs the package on three hosts, and sets them up as the README says. Client and
// server have no network in common: the relay is in the networks of both.
func TestThreeHosts(t *testing.T) {
	onEach(t, func(t *testing.T, base string) {
		l := newLab(t, base, []string{"relay", "client", "server"}, "--link", "west:relay,client", "--link", "east:relay,server")
		relay, client, server := l.host("relay"), l.host("client"), l.host("server")
		for _, h := range []*host{relay, client, server} {
			h.run("dpkg -i /debs/1.deb >/dev/null 2>&1")
		}
		if _, code := client.try("ping -c 1 -W 1 10.99.1.3 || nc -z -w 1 10.99.1.3 22"); code == 0 {
			t.Fatal("the client reaches the server without the relay: this tests nothing")
		}

		// The client comes first: that no relay is there holds up neither it nor a boot.
		relay.run("ptthqd init relay --address relay")
		key := relay.run("ptthqd pubkey /etc/ptthq.key")
		peers := peersBlock(t, client.run("ptthqd init client --id client --relay relay --relay-key "+key+" --mapping 2200=server:22"))
		peers += peersBlock(t, server.run("ptthqd init server --id server --relay relay --relay-key "+key+" --service ssh=22 --client client"))
		client.run("systemctl enable --now ptthqd")
		client.says("relay", "systemctl show -P StatusText ptthqd")
		relay.run("systemctl enable --now ptthqd")
		server.run("systemctl enable --now ssh ptthqd")
		relay.run("cat >> /etc/ptthq.toml <<'END'\n\n" + peers + "END")

		client.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
		server.run("install -d -m 0700 /root/.ssh && echo '" + client.run("cat /root/.ssh/id_ed25519.pub") + "' > /root/.ssh/authorized_keys")
		client.run("printf 'Host server\nHostName localhost\nPort 2200\nStrictHostKeyChecking accept-new\nServerAliveInterval 0\n' > /root/.ssh/config")
		client.soon(serverName)

		c := &chain{l, relay, client, server}
		l.sub("one ID finds a connection in all three journals", c.oneID)
		l.sub("STATUS tells how it stands", c.statusText)
		l.sub("sessions survive the relay's restart and upgrade", c.relayRestarts)
		l.sub("the server is upgraded over the tunnel", c.serverUpgrades)
		l.sub("nobody is refused while the client restarts", c.clientRestarts)
		l.sub("a stop has the time that draining takes", c.slowStop)
		l.sub("all of it comes back after a reboot", c.reboots)
	})
}

// oneID finds one connection by its ID in the journals of all three.
func (c *chain) oneID(t *testing.T) {
	id := c.client.run("journalctl -o json -u ptthqd MESSAGE_ID=b1222b89133afac84429fd16d7b95172 | sed -n '$s/.*\"PTTHQ_CONNECTION\":\"\\([a-z0-9]*\\)\".*/\\1/p'")
	for _, h := range []*host{c.client, c.relay, c.server} {
		h.soon("journalctl -u ptthqd PTTHQ_CONNECTION=" + id + " -o cat | grep " + id)
	}
	c.relay.soon("journalctl -u ptthqd PTTHQ_PEER=client -o cat | grep 'link up'")
}

// statusText has the units' status texts tell the links and the connections.
func (c *chain) statusText(t *testing.T) {
	check := count(t, c.client)
	for h, want := range map[*host]string{
		c.client: "connected to relay:30380 .*; 1 mapping, 1 connection",
		c.server: "connected to relay:30380 .*; 1 service, 1 connection",
		c.relay:  "2 of 2 peers.* 1 connection",
	} {
		h.soon("systemctl show -P StatusText ptthqd | grep -E '" + want + "'")
	}
	check()
	c.client.soon("systemctl show -P StatusText ptthqd | grep '0 connections'")
}

// relayRestarts restarts and upgrades the relay under a session.
func (c *chain) relayRestarts(t *testing.T) {
	check := count(t, c.client)
	c.relay.run("systemctl restart ptthqd")
	c.relay.soon("systemctl show -P StatusText ptthqd | grep '2 of 2 peers'")
	c.relay.run("dpkg -i /debs/2.deb")
	c.relay.run("pid=$(systemctl show -P MainPID ptthqd); ! ls -l /proc/$pid/exe | grep deleted")
	check()
}

// serverUpgrades upgrades the server over its own tunnel: the upgrade restarts nothing, and says so.
func (c *chain) serverUpgrades(t *testing.T) {
	pid := c.server.run("systemctl show -P MainPID ptthqd")
	said := c.client.run("ssh server dpkg -i /debs/2.deb 2>&1")
	if !strings.Contains(said, "systemctl restart ptthqd") {
		t.Errorf("the upgrade does not say what is left to do:\n%s", said)
	}
	c.server.is(pid, "systemctl show -P MainPID ptthqd")
	// And again, since the first one may have been the last of the old.
	c.client.run("ssh server dpkg -i /debs/2.deb")
	c.server.run("systemctl restart ptthqd")
	c.client.soon(serverName)
}

// clientRestarts restarts the client three times under knocks: each knock is served.
func (c *chain) clientRestarts(t *testing.T) {
	// Not at sshd, which punishes those who leave without a word.
	c.server.run(`cat > /etc/systemd/system/greet.socket <<'END'
[Socket]
ListenStream=127.0.0.1:7777
Accept=yes
MaxConnections=1000
TriggerLimitIntervalSec=0
END
cat > /etc/systemd/system/greet@.service <<'END'
[Unit]
CollectMode=inactive-or-failed
StartLimitIntervalSec=0
[Service]
ExecStart=/bin/echo hello
StandardOutput=socket
END
systemctl daemon-reload && systemctl start greet.socket
printf '\n[[services]]\nname = "greet"\ntarget = "7777"\nclients = ["client"]\n' >> /etc/ptthq.toml && systemctl reload ptthqd`)
	c.relay.run(`sed -i 's/"server:22"/"server"/' /etc/ptthq.toml && systemctl reload ptthqd`)
	c.client.run(`printf '\n[[mappings]]\nlisten = "127.0.0.1:7700"\nserver = "server"\ntarget = "7777"\n' >> /etc/ptthq.toml && systemctl reload ptthqd`)
	c.client.run(`cat > /root/knock <<'END'
end=$((SECONDS + 20))
while [ ! -e /root/enough ] && [ $SECONDS -lt $end ]; do
	if ! exec 3<>/dev/tcp/127.0.0.1/7700; then echo refused; sleep 0.05; continue; fi
	read -t 15 -u 3 greeting && [ "$greeting" = hello ] && echo served || echo unserved
	exec 3>&- 3<&-
done 2>/dev/null
END
systemd-run --quiet --unit=knock --property=StandardOutput=file:/root/knocked bash /root/knock`)
	for range 3 {
		served := strings.TrimSpace(c.client.run("cat /root/knocked | grep -cx served || :"))
		c.client.soon("[ $(cat /root/knocked | grep -cx served) -gt " + served + " ]")
		c.client.run("systemctl restart ptthqd")
	}
	c.client.run("touch /root/enough")
	c.client.soon("! systemctl is-active --quiet knock")
	said := c.client.run("sort /root/knocked | uniq -c")
	t.Logf("knocked:\n%s", said)
	if strings.Contains(said, "refused") || strings.Contains(said, "unserved") || !regexp.MustCompile(`\d served`).MatchString(said) {
		t.Errorf("of those that knocked during three restarts:\n%s", said)
	}
}

// slowStop stops a client whose systemd has less patience than its drain.
func (c *chain) slowStop(t *testing.T) {
	// systemd's patience is shorter than the drain, which asks for more.
	c.client.run(`mkdir -p /run/systemd/system/ptthqd.service.d && printf '[Service]\nTimeoutStopSec=2\n' > /run/systemd/system/ptthqd.service.d/impatient.conf && systemctl daemon-reload`)
	c.client.run(`sed -i '1i drain_timeout = "7s"' /etc/ptthq.toml && systemctl reload ptthqd`)
	// A connection in which data goes by: for others nothing is waited.
	c.client.run("systemd-run --quiet --unit=held --setenv=HOME=/root --property=StandardOutput=null ssh server 'while sleep 0.2; do echo x; done'")
	c.client.soon("ptthqd status --json | grep -F '\"state\": \"attached\"'")
	said := c.client.run(`systemctl stop --no-block ptthqd; sleep 4
		systemctl is-active ptthqd || true; systemctl show -P StatusText ptthqd
		while [ "$(systemctl is-active ptthqd)" = deactivating ]; do sleep 0.2; done`)
	if !strings.HasPrefix(said, "deactivating\nstopping: waiting for 1 connection") {
		t.Errorf("4 s after the stop began: %s", said)
	}
	var from, to int64 // µs, by systemd's clock
	said = c.client.run("for at in ActiveExit InactiveEnter; do systemctl show -P ${at}TimestampMonotonic ptthqd; done; systemctl show -P Result ptthqd")
	if _, err := fmt.Sscan(said, &from, &to); err != nil || to-from < 7e6 || to-from > 14e6 || !strings.HasSuffix(said, "success") {
		t.Errorf("the stop took %d µs, with a drain of 7 s: %s, %v", to-from, said, err)
	}
	c.client.run("systemctl stop held; rm -r /run/systemd/system/ptthqd.service.d; systemctl daemon-reload; sed -i 1d /etc/ptthq.toml; systemctl start ptthqd")
	c.client.soon(serverName)
}

// reboots reboots each host.
func (c *chain) reboots(t *testing.T) {
	for _, name := range []string{"relay", "server", "client"} {
		c.lab.reboot(name)
		c.client.soon(serverName)
	}
}

var peersPattern = regexp.MustCompile(`(?ms)^\[\[peers\]\]\n.*?\n\n`)

// peersBlock finds the block for the relay's config in what init prints.
func peersBlock(t *testing.T, said string) string {
	t.Helper()
	block := peersPattern.FindString(said)
	if block == "" {
		t.Fatalf("init prints no [[peers]]:\n%s", said)
	}
	return block
}

// count starts an ssh session through the chain that counts until the returned function stops it, which checks that no
// number is missing.
func count(t *testing.T, client *host) (check func()) {
	t.Helper()
	const unit = "counting"
	client.run(`rm -f /root/counted; systemd-run --quiet --unit=` + unit + ` --setenv=HOME=/root --property=StandardOutput=file:/root/counted \
		ssh server 'rm -f stop; i=0; while [ ! -e stop ]; do i=$((i+1)); echo $i; sleep 0.02; done; echo end'`)
	client.soon("test -s /root/counted")
	return func() {
		t.Helper()
		client.run("ssh server touch stop")
		client.soon("! systemctl is-active --quiet " + unit)
		lines := strings.Fields(client.run("cat /root/counted"))
		for i, line := range lines[:len(lines)-1] {
			if line != fmt.Sprint(i+1) {
				t.Fatalf("the session was to say %d, and said %q", i+1, line)
			}
		}
		if last := lines[len(lines)-1]; last != "end" {
			t.Errorf("the session ended with %q after %d lines", last, len(lines))
		}
	}
}
