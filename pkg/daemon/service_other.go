//go:build !linux

package daemon

import (
	"context"
	"net"
	"os"
	"syscall"
	"time"
)

// service is the service manager. There is none on this system that the daemon speaks to.
type service struct{}

func newService() *service { return &service{} }

func (*service) listens() bool                                         { return false }
func (*service) ready(string)                                          {}
func (*service) status(string)                                         {}
func (*service) reloading()                                            {}
func (*service) stopping(string)                                       {}
func (*service) extend(time.Duration)                                  {}
func (*service) failed(error)                                          {}
func (*service) feed()                                                 {}
func (*service) watchdog() time.Duration                               { return 0 }
func (*service) take(string) ([]*os.File, error)                       { return nil, nil }
func (*service) left() []string                                        { return nil }
func (*service) keeps() bool                                           { return false }
func (*service) keep(context.Context, map[string][]syscall.Conn) error { return nil }
func (*service) drop(context.Context, []string) error                  { return nil }

func raiseFileLimit() uint64 { return 0 }
func openFiles() int         { return 0 }
func caller(net.Conn) person { return person{} }
