// Package e2e tests ptthqd as its users meet it: real processes, real sockets,
// real programs at both ends. It has tests alone.
//
// A world is a relay, a client and a server, each a process of its own with its
// key and its config file in a temporary directory. Readiness is learnt as
// systemd learns it, over NOTIFY_SOCKET.
package e2e
