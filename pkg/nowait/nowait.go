// Package nowait reads and writes sockets that Go's runtime polls, by system calls that it isn't told of.
//
// They never wait, but often last for longer than 20 µs, after which the runtime takes a call that it knows of for one that
// waits, and gives the processor to another of its threads: the rawUDP of pkg/link tells what that costs. On anything
// that isn't polled, a pipe or a file, they would keep the processor from all others while they wait.
package nowait
