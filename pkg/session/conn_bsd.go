//go:build unix && !linux

package session

import "syscall"

// A keeper is never made here: these systems can't keep a byte in a socket.
type keeper struct{}

func newKeeper(syscall.RawConn) *keeper { return nil }

func (*keeper) read(uintptr, []byte) (int, error) { panic("internal error: no keeper here") }
func (*keeper) letGo(uintptr)                     { panic("internal error: no keeper here") }

// peerGone returns why the peer is gone, as far as the socket's pending error says so.
func peerGone(fd uintptr) error { return socketError(fd) }

func (*rawEnd) unacknowledged() unacknowledged { return unacknowledged{} }
