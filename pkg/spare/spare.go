// Package spare keeps some file descriptors free for what a process must always be able to do:
// accept a link, answer on its control socket, read its config.
//
// The one idea: a new descriptor is the lowest free number. If that number is close to the limit,
// all below are taken. So nothing is counted. A caller that accepts a connection asks [Reached],
// and refuses the connection if it took one of the last descriptors. A caller that is about to open
// one asks [Room].
package spare

import "syscall"

// Reached reports whether a new socket is one of the last n descriptors of the process. At most
// half of all descriptors are kept free.
func Reached(c syscall.RawConn, n int) bool {
	reached := false
	// A socket that is closed already has nothing to say.
	_ = c.Control(func(fd uintptr) { reached = last(fd, n) })
	return reached
}
