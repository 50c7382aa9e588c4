//go:build !linux

package host

import (
	"context"
	"net"
	"os"
	"syscall"
	"time"
)

// Service is the service manager of this process. On this system there is none: methods do nothing.
type Service struct{}

// NewService returns no service manager.
func NewService() *Service { return &Service{} }

// Listens is false.
func (*Service) Listens() bool { return false }

// Ready does nothing.
func (*Service) Ready(string) {}

// Status does nothing.
func (*Service) Status(string) {}

// Reloading does nothing.
func (*Service) Reloading() {}

// Stopping does nothing.
func (*Service) Stopping(string) {}

// Extend does nothing.
func (*Service) Extend(time.Duration) {}

// Failed does nothing.
func (*Service) Failed(error) {}

// Feed does nothing.
func (*Service) Feed() {}

// Watchdog returns 0: there is none.
func (*Service) Watchdog() time.Duration { return 0 }

// Left returns nothing.
func (*Service) Left() []string { return nil }

// Keep does nothing.
func (*Service) Keep(context.Context, map[string][]syscall.Conn) error { return nil }

// Drop does nothing.
func (*Service) Drop(context.Context, []string) error { return nil }

func (*Service) take(string) ([]*os.File, error) { return nil, nil }

// RaiseFileLimit returns 0: the limit is unknown.
func RaiseFileLimit() uint64 { return 0 }

// OpenFiles returns 0: their number is unknown.
func OpenFiles() int { return 0 }

// PeerOf returns no user: the system can't say.
func PeerOf(net.Conn) User { return User{} }
