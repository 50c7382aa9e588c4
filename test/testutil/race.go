//go:build race

package testutil

// Raced reports whether the race detector is on. It makes code about ten times slower, stack frames
// larger, and sync.Pool forget on purpose. `make test` runs such tests without it, too.
const Raced = true
