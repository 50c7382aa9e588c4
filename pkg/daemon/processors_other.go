//go:build !unix

package daemon

import "time"

func processorTime() (used time.Duration, known bool) { return 0, false }
