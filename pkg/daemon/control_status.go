package daemon

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/control"
	"ptthqd/pkg/host"
)

// Status implements control.Backend.
func (d *daemon) Status() *control.Status {
	s := d.describe()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	s.Process.Goroutines = runtime.NumGoroutine()
	s.Process.HeapBytes = memory.HeapAlloc
	s.Process.Files, s.Process.FilesLimit = host.OpenFiles(), d.files
	s.Process.GroupMemory, s.Process.GoMemoryLimit = d.memory, host.GoMemoryLimit()
	s.Process.LogDropped = d.logs.Dropped()
	s.Warnings = d.warnings(s)
	return s
}

// describe returns the status without warnings and figures of the process, which take time.
func (d *daemon) describe() *control.Status {
	l := d.loaded.Load()
	s := &control.Status{
		Role:      string(l.config.Role),
		ID:        l.config.ID,
		PublicKey: d.identity.Public().String(),
		Version:   d.options.Version,
		PID:       os.Getpid(),
		State:     d.state.Load().(string),
		Started:   d.started,
		Uptime:    control.Seconds(time.Since(d.started)),
		Config: control.Config{
			File:     l.config.Path,
			Files:    l.config.Files,
			Hash:     l.config.Hash,
			Loaded:   l.at,
			LogLevel: d.LogLevel().Level,
			Reload:   d.lastReload.Load(),
		},
	}
	d.role.View().status(s)
	s.Counters.Reloads, s.Counters.BadReload = d.reloads.Load(), d.badReloads.Load()
	s.Summary = d.summary()
	return s
}

// warnings returns what an administrator should act on.
func (d *daemon) warnings(s *control.Status) []control.Warning {
	var list []control.Warning
	warn := func(hint, format string, args ...any) {
		list = append(list, control.Warning{Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	if r := s.Config.Reload; r != nil && !r.OK {
		hint := "mend it, and it is taken over by itself, or by `ptthqd reload`"
		switch {
		case r.Cause == control.CauseRestart:
			hint = "restart the daemon, or undo the change"
		case r.Cause == control.CauseHost && !r.Retrying:
			hint = "mend it, then `ptthqd reload`: it is not tried again by itself, as that " +
				"would interrupt listeners that are in use"
		}
		warn(hint, "the config in the file is not in force: %s", r.Error)
	}
	if stale := d.staleKey(); stale != "" {
		warn(staleKeyHint, "%s", stale)
	}
	for _, l := range s.Links {
		if l.Problem != "" {
			warn(OwnKeyHint, "relay %s: %s", l.Relay, l.Problem)
		}
	}
	for _, l := range s.Links {
		if l.Name != "" && l.Name != s.ID {
			warn(OwnNameHint(l.Name), "relay %s: %s", l.Relay, OtherName(l.Name, s.ID))
		}
	}
	for _, reason := range lostLinks(s.Links) {
		warn("", "%s", reason)
	}
	for _, p := range s.Peers {
		if p.Problem != "" {
			warn(OwnKeyHint+"; one node that is restarted again and again without a word looks the same",
				"peer %s: %s", p.ID, p.Problem)
		}
	}
	for _, m := range s.Mappings {
		if m.Problem != "" {
			warn(m.Hint, "mapping %s: %s", m.Name, m.Problem)
		}
	}
	if err := d.scraped.problem(); err != nil {
		problem, hint := bind.Problem(err)
		warn(hint, "metrics: %s", problem)
	}
	for _, l := range s.Listeners {
		if l.Problem != "" {
			warn(l.Hint, "listener %s: %s", l.Listen, l.Problem)
		}
		if l.Dropped > 0 {
			warn("raise net.core.rmem_max, or use the socket unit",
				"the kernel has dropped %d packets as the receive buffer of %s was full", l.Dropped, l.Address)
		}
	}
	for _, short := range s.Shortages {
		warn(fmt.Sprintf("see what it leaves unread; or raise limits.%s", short.Limit),
			"limits.%s: each connection with %s goes on with 64 KiB a round trip, as together "+
				"they hold %d MiB, of which %d are left for all others",
			short.Limit, short.Peer, short.Held>>20, short.Free>>20)
	}
	if s.Process.FilesLimit > 0 && uint64(s.Process.Files) > s.Process.FilesLimit/10*9 {
		warn("raise LimitNOFILE= of the service", "%d of %d files are open", s.Process.Files,
			s.Process.FilesLimit)
	}
	if trouble := d.logs.Trouble(); trouble != "" {
		warn("lines wait and are then dropped; look after what stderr is connected to, or "+
			"systemd-journald", "%s: %d lines are missing", trouble, s.Process.LogDropped)
	}
	for _, w := range d.loaded.Load().config.Warnings() {
		warn(w.Hint, "%s:%d: %s: %s", w.File, w.Line, w.Key, w.Message)
	}
	return list
}

// OtherName says that a relay calls this node by another name than its own config.
func OtherName(name, id string) string {
	return fmt.Sprintf("it calls this node %q, and the config here has id = %q", name, id)
}

// OwnNameHint says what to do about OtherName.
func OwnNameHint(name string) string {
	return fmt.Sprintf("write id = %q here when it is restarted next, as a reload can't take "+
		"that over, or have the relay's administrator change the id in its [[peers]]: all goes "+
		"on meanwhile", name)
}

// lostLinks says why links are down: each reason once, with all its relays.
func lostLinks(links []control.Link) (reasons []string) {
	relays := make(map[string][]string)
	var order []string
	for _, l := range links {
		if l.State == control.LinkConnected || l.LastError == "" || l.Problem != "" {
			continue
		}
		if relays[l.LastError] == nil {
			order = append(order, l.LastError)
		}
		relays[l.LastError] = append(relays[l.LastError], l.Relay)
	}
	for _, reason := range order {
		if these := relays[reason]; len(these) == 1 {
			reasons = append(reasons,
				fmt.Sprintf("relay %s is not connected: %s", these[0], reason))
		} else {
			reasons = append(reasons,
				fmt.Sprintf("the relays %s are not connected: %s", strings.Join(these, ", "),
					reason))
		}
	}
	return reasons
}
