//go:build !linux

package link

import "time"

// sinceBoot returns the wall clock. A clock that is set forward looks like a sleep, and causes a
// fresh link.
func sinceBoot() time.Duration { return time.Duration(time.Now().UnixNano()) }
