package daemon

import (
	"fmt"
	"os"
	"time"
)

// built is a time that every honest clock has passed: this program was not there before.
var built = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC) //nolint:forbidigo // it is compared with what the clock says, to judge the clock

// clockSlack is how far in the future a file may lie: clocks of a network file system's hosts differ a little.
const clockSlack = time.Hour

// ClockTrouble tells what is wrong with this host's clock, as far as it can be seen: it shows a time before this program was
// made, or before one of the files was written. It is empty if nothing is. Links don't mind, as no date in a certificate
// means anything; but the lines in the logs of several nodes can't be brought together.
func ClockTrouble(now time.Time, files ...string) string {
	if now.Before(built) {
		return fmt.Sprintf("this host's clock is wrong: it shows %s", now.Format(time.DateTime))
	}
	for _, name := range files {
		if info, err := os.Stat(name); err == nil && info.ModTime().Sub(now) > clockSlack {
			return fmt.Sprintf("this host's clock is behind: it shows %s, and %s was written at %s", now.Format(time.DateTime), name, info.ModTime().Format(time.DateTime))
		}
	}
	return ""
}

// ClockRemedy is what to do about ClockTrouble.
const ClockRemedy = "set it with `timedatectl set-ntp true`, or `date -s`; else the times in the logs of the nodes don't match"
