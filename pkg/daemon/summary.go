package daemon

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/uplink"
)

// summary says in one line how the process stands: for the status, and for the service manager,
// which is told every few seconds. It looks at counters, not at each connection.
func (d *daemon) summary() string {
	text := d.role.Summary()
	if err := d.scraped.problem(); err != nil {
		problem, _ := bind.Problem(err)
		text += "; metrics: " + problem
	}
	if r := d.lastReload.Load(); r != nil && !r.OK {
		text += "; the config in the file is not in force: " + r.Error
	}
	return text
}

// linkSummary says in a few words how the links stand.
func linkSummary(links []uplink.State) string {
	var up, down []string
	for _, l := range links {
		if l.Up {
			up = append(up, fmt.Sprintf("%s (%s)", l.Address, roundTrip(l.Stats.RTT)))
			continue
		}
		down = append(down, l.Address+": "+cmp.Or(l.LastError, "being dialled"))
	}
	switch {
	case len(down) == 0:
		return "connected to " + strings.Join(up, ", ")
	case len(up) == 0:
		return "not connected: " + strings.Join(down, "; ")
	}
	return "connected to " + strings.Join(up, ", ") + ", not to " + strings.Join(down, "; ")
}

// failedSummary names the first of the listeners that are not bound, and counts the others.
func failedSummary(failed []string) string {
	switch len(failed) {
	case 0:
		return ""
	case 1:
		return "; " + failed[0]
	}
	return fmt.Sprintf("; %s; and %d more", failed[0], len(failed)-1)
}

func roundTrip(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

func connectionSummary(all, detached int) string {
	text := plural(all, "connection")
	if detached > 0 {
		text += fmt.Sprintf(" (%d waiting for a link)", detached)
	}
	return text
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
