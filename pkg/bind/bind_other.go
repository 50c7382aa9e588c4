//go:build !linux

package bind

import (
	"io/fs"
	"net"
	"syscall"
)

func deepen(net.Listener) {}

func bornWithMode(fs.FileMode) func(string, string, syscall.RawConn) error { return nil }
