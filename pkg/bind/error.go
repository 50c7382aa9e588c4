package bind

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"ptthqd/pkg/config"
)

// An Error says which listener cannot be bound, why, and what to do.
type Error struct {
	Place string // "127.0.0.1:2200", "UDP [::]:30380", the path of a Unix socket
	Err   error
	Hint  string // what to do; empty if Err says it
	Final bool   // further tries of this process cannot succeed
}

func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Short()
	}
	return e.Short() + ": " + e.Hint
}

// Short returns the text without the hint.
func (e *Error) Short() string { return "listen on " + e.Place + ": " + e.Err.Error() }

// Unwrap returns the system's error.
func (e *Error) Unwrap() error { return e.Err }

// Problem returns, for people, why a listener is not bound, and what to do.
func Problem(err error) (problem, hint string) {
	e, ok := errors.AsType[*Error](err)
	switch {
	case !ok:
		return "failed: " + err.Error() + ", retrying", ""
	case e.Final:
		return "failed: " + e.Short(), e.Hint
	}
	return "failed: " + e.Short() + ", retrying", e.Hint
}

// hints has what to do about errors of the system.
var hints = []struct {
	err      error
	tcp, udp string
}{
	{
		syscall.EADDRINUSE,
		"another process listens there (ss -ltnp shows which): stop it, or choose another address",
		"another process listens there (ss -lunp shows which): stop it, or choose another address",
	},
	{
		syscall.EACCES,
		"ports below 1024 need a right that the service doesn't have by default: " +
			"see /usr/share/ptthqd/privileged-ports.conf, then restart it; or choose another port",
		"ports below 1024 need a right that the service doesn't have: " +
			`let the socket unit ptthqd.socket bind it, and write listen = "systemd:relay"; ` +
			"or choose another port",
	},
	{
		syscall.EADDRNOTAVAIL,
		"no interface of this host has the address",
		"no interface of this host has the address",
	},
}

func newError(kind config.Kind, place string, err error) *Error {
	e := &Error{Place: place, Err: err}
	if kind == config.UDP {
		e.Place = "UDP " + place
	}
	for _, h := range hints {
		if errors.Is(err, h.err) {
			e.Hint = h.tcp
			if kind == config.UDP {
				e.Hint = h.udp
			}
		}
	}
	if kind != config.Unix && sandboxed(place, err) {
		e.Hint = "a sandbox around this process (seccomp, SELinux) refuses the call: " +
			"let it pass in the seccomp profile of the container, " +
			"or in SystemCallFilter=, SocketBindDeny= and RestrictAddressFamilies= of the service"
	}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		e.Err = op.Err // without the address, which Place has
	}
	return e
}

// sandboxed reports whether the system refuses an IP socket that needs no right. Linux itself
// refuses only ports below 1024, with EACCES.
func sandboxed(place string, err error) bool {
	addr, _ := netip.ParseAddrPort(place)
	return errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) ||
		errors.Is(err, syscall.EACCES) && addr.Port() >= 1024
}
