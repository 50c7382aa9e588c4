package host

import (
	"fmt"
	"os"
	"time"
)

// built is a time before this program was made: no clock that is right shows less.
var built = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC) //nolint:forbidigo // a date to judge the clock by

// clockSlack is how far ahead of the clock a file may be dated. Clocks of hosts that share a file
// system differ a little.
const clockSlack = time.Hour

// ClockTrouble says what is wrong with this host's clock; "" if nothing is. It notices a clock that
// shows a time before this program was made, or before one of the files was written. Links work
// with any clock, since dates in certificates mean nothing; but logs of several nodes can't be
// compared.
func ClockTrouble(now time.Time, files ...string) string {
	if now.Before(built) {
		return fmt.Sprintf("this host's clock is wrong: it shows %s", now.Format(time.DateTime))
	}
	for _, name := range files {
		if info, err := os.Stat(name); err == nil && info.ModTime().Sub(now) > clockSlack {
			return fmt.Sprintf("this host's clock is behind: it shows %s, and %s was written at %s",
				now.Format(time.DateTime), name, info.ModTime().Format(time.DateTime))
		}
	}
	return ""
}

// ClockRemedy says what to do about ClockTrouble.
const ClockRemedy = "set it with `timedatectl set-ntp true`, or `date -s`; " +
	"else the times in the logs of the nodes don't match"
