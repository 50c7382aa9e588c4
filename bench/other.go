//go:build !linux

// Command bench measures ptthqd. It reads processor time and memory from /proc, so it is for Linux.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: it needs Linux, for its /proc")
	os.Exit(1)
}
