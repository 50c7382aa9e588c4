package deploy_test

import (
	"strings"
	"testing"
)

// TestPackage takes one host through the life of the package.
func TestPackage(t *testing.T) {
	onEach(t, func(t *testing.T, base string) {
		h := newLab(t, base, []string{"host"}).host("host")

		// A first install is quiet, and says how to go on.
		said := h.run("dpkg -i /debs/1.deb 2>&1")
		for _, want := range []string{"ptthqd init relay", "ptthqd init server", "ptthqd init client"} {
			if !strings.Contains(said, want) {
				t.Errorf("install does not say %q:\n%s", want, said)
			}
		}
		h.is("enabled", "systemctl is-enabled ptthqd.service")
		h.is("inactive", "systemctl is-active ptthqd.service")
		h.is("disabled", "systemctl is-enabled ptthqd.socket")
		h.is("", "systemctl list-units --failed --no-legend 'ptthqd*'")
		h.run("getent passwd ptthqd && getent group ptthqd")
		h.says("/etc/ptthq.toml", "dpkg-query -W -f '${Conffiles}' ptthqd")
		for _, file := range []string{
			"man/man8/ptthqd.8.gz", "man/man5/ptthqd.toml.5.gz",
			"bash-completion/completions/ptthqd", "zsh/vendor-completions/_ptthqd", "fish/vendor_completions.d/ptthqd.fish",
			"doc/ptthqd/examples/privileged-ports.conf", "doc/ptthqd/copyright",
		} {
			h.run("dpkg -L ptthqd | grep -x /usr/share/" + file)
		}
		h.run("ptthqd version | grep -F 'ptthqd 1.0.0, commit '")

		// It is set up as it says, and runs.
		h.run("ptthqd init relay --address relay.example.com && systemctl start ptthqd")
		h.is("active", "systemctl is-active ptthqd")
		h.run("echo '# the administrator was here' >> /etc/ptthq.toml")

		// An upgrade restarts a relay, and leaves its config alone.
		old := h.run("systemctl show -P MainPID ptthqd")
		h.run("dpkg -i /debs/2.deb")
		h.soon("systemctl is-active ptthqd && test $(systemctl show -P MainPID ptthqd) != " + old)
		h.run("ptthqd version | grep -F 'ptthqd 2.0.0, commit '")
		h.run("tail -n 1 /etc/ptthq.toml | grep -F 'the administrator was here'")

		// What the administrator has disabled and stopped stays so.
		h.run("systemctl disable --now ptthqd")
		h.run("dpkg -i /debs/1.deb")
		h.is("disabled", "systemctl is-enabled ptthqd")
		h.is("inactive", "systemctl is-active ptthqd")
		h.run("dpkg -i /debs/2.deb && systemctl enable --now ptthqd")

		// Removed, it is stopped and its config is there; installed again, it goes on.
		h.run("dpkg -r ptthqd")
		h.is("inactive", "systemctl is-active ptthqd")
		h.run("test -e /etc/ptthq.toml && test -e /etc/ptthq.key && ! test -e /run/ptthqd && ! test -e /usr/bin/ptthqd")
		h.run("dpkg -i /debs/1.deb")
		h.is("active", "systemctl is-active ptthqd")

		// Purged, nothing is left but the user.
		h.run("dpkg -P ptthqd")
		h.is("", "find / -xdev \\( -path /proc -o -path /sys -o -path /debs -o -path /run/systemd-host -o -path /tmp \\) -prune -o -iname '*ptthq*' -print")
		h.is("", "systemctl list-units --failed --no-legend 'ptthqd*'")
		h.run("getent passwd ptthqd")
	})
}
