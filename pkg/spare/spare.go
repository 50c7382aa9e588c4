// Package spare keeps some file descriptors free, for what a process must always be able to do: take a new link, answer
// on its control socket, read its config. New connections are what leaves them alone.
//
// It counts nothing. A descriptor is always the lowest number that is free, so one whose number is close to the limit says
// that all below it are taken.
package spare

import "syscall"

// Reached tells whether a socket that was just made is one of the last n descriptors that the process may have. Of no limit
// it can use more than half is kept.
func Reached(c syscall.RawConn, n int) bool {
	reached := false
	// A socket that is closed already has nothing to say.
	_ = c.Control(func(fd uintptr) { reached = last(fd, n) })
	return reached
}
