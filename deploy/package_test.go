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
		h.is("", "dpkg-query -W -f '${Conffiles}' ptthqd; ls /etc/ptthq.toml 2>/dev/null || true")
		for _, file := range []string{
			"man/man8/ptthqd.8.gz", "man/man5/ptthqd.toml.5.gz",
			"bash-completion/completions/ptthqd", "zsh/vendor-completions/_ptthqd", "fish/vendor_completions.d/ptthqd.fish",
			"ptthqd/privileged-ports.conf", "ptthqd/relay.toml", "doc/ptthqd/copyright",
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

		// An upgrade from a package that had the config as a conffile asks nothing, and leaves the administrator's file alone.
		h.run("dpkg -P ptthqd")
		h.run(`dpkg-deb -R /debs/1.deb /root/old && cd /root/old && sed -i 's/^Version: .*/Version: 0.5/' DEBIAN/control
			cp usr/share/ptthqd/ptthq.toml etc/ptthq.toml && echo /etc/ptthq.toml > DEBIAN/conffiles && dpkg-deb -b . /root/old.deb >/dev/null`)
		h.run("dpkg -i /root/old.deb && ptthqd init relay --address relay.example.com && echo '# mine' >> /etc/ptthq.toml")
		kept := h.run("sha256sum /etc/ptthq.toml")
		h.run("dpkg -i /debs/1.deb </dev/null && dpkg -i /debs/2.deb </dev/null")
		h.is(kept, "sha256sum /etc/ptthq.toml")
		// So does an install on a host to which the config was restored from a backup.
		h.run("cp /etc/ptthq.toml /root/backup.toml && dpkg -P ptthqd && ! test -e /etc/ptthq.toml")
		h.run("cp /root/backup.toml /etc/ptthq.toml && dpkg -i /debs/1.deb </dev/null")
		h.is(kept, "sha256sum /etc/ptthq.toml")
		h.run("rm -r /root/old /root/old.deb /root/backup.toml")

		// Purged, nothing is left but the user.
		h.run("dpkg -P ptthqd")
		h.is("", "find / -xdev \\( -path /proc -o -path /sys -o -path /debs -o -path /run/systemd-host -o -path /tmp \\) -prune -o -iname '*ptthq*' -print")
		h.is("", "systemctl list-units --failed --no-legend 'ptthqd*'")
		h.run("getent passwd ptthqd")
	})
}
