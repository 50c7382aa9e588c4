//go:build !linux && !darwin

package spare

// Room is always true: there is no limit to speak of.
func Room(int) bool { return true }

func last(uintptr, int) bool { return false }
