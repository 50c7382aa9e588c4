package session

import (
	"testing"
	"time"
)

// SetUnheardTime makes the time shorter after which a host that acknowledges nothing is given up.
func SetUnheardTime(t testing.TB, d time.Duration) {
	was := unheardTime
	unheardTime = d
	t.Cleanup(func() { unheardTime = was })
}

// AwaitGone is what waits for the end of an idle TCP side that has ended its half.
func AwaitGone(c Conn) error {
	why, _ := newTCPSide(c).awaitGone()
	return why
}

func init() { strict = true }
