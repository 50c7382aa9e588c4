// Package testutil has what the tests of several packages need.
//
// Conn and Listener are TCP in memory. They are for tests inside a testing/synctest bubble, where
// real sockets don't work: Pair makes a connection, Listen a listener. Connections can be
// half-closed and reset, nothing takes time, and buffers are bounded.
//
// Log is a buffer for a logger's lines. FreePort, Listening and Accept are for tests over real
// sockets. Raced reports whether the race detector is on; SkipRaced skips for it.
//
// WatchMachine tells how busy the machine is. Broken and Unmeasured skip what a busy machine keeps
// from being measured.
//
// All of it may be used by several goroutines at once.
package testutil
