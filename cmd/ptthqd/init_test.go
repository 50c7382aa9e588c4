package main

import (
	"runtime"
	"testing"
)

func TestInitNamesTheUnitThatReadsTheConfig(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("systemd is Linux's")
	}
	for path, want := range map[string]string{
		"/etc/ptthq.toml":       "systemctl enable --now ptthqd",
		"/etc/ptthq/nas.toml":   "systemctl enable --now ptthqd@nas",
		"/etc/ptthq/nas.conf":   "ptthqd -c /etc/ptthq/nas.conf",
		"/srv/ptthq/relay.toml": "ptthqd -c /srv/ptthq/relay.toml",
	} {
		if got := startCommand(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
