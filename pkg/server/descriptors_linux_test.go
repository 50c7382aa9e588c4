package server

import (
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/config"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

func TestDescriptorsAreSpared(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 128, Max: was.Max}); err != nil {
		t.Skip(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &was) }()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	settings := &config.Config{Role: config.RoleServer, ID: "nas", Limits: config.DefaultLimits()}
	settings.Limits.SpareDescriptors = 30
	s, err := New(Config{Settings: settings, Identity: key})
	if err != nil {
		t.Fatal(err)
	}
	if _, no := connect(t, &s.dialer, l.Addr().String()); no != nil {
		t.Fatal(no)
	}
	for { // up to the last 30
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		if f.Fd() >= 128-30 {
			break
		}
	}
	_, no := connect(t, &s.dialer, l.Addr().String())
	if no == nil || no.Status != wire.StatusTooMany {
		t.Errorf("refused with %v", no)
	}
	if n := s.Snapshot().LimitsHit["spare_descriptors"]; n < 1 { // one for each address
		t.Errorf("counted %d hits", n)
	}
}
