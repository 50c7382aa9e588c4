//go:build !linux

// Command bench measures ptthqd. It needs Linux, as it reads processor time and memory from /proc.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "bench: it needs Linux, for its /proc")
	os.Exit(1)
}
