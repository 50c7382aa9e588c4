package testutil

import "testing"

// SkipRaced skips a test of rates, limits or sizes under the race detector, with which it would take
// minutes. Use it only in packages that the second stage of `make test` runs without the detector.
func SkipRaced(t testing.TB) {
	t.Helper()
	if Raced {
		t.Skip("too slow with the race detector; make test runs this without, too")
	}
}
