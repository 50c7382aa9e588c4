package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"ptthqd/pkg/control"
	"ptthqd/pkg/wire"
)

func newStatusCommand() *cobra.Command {
	var (
		socket string
		asJSON bool
		watch  bool
		check  bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the running daemon stands",
		Long: `Show how the running daemon stands: its links, mappings or services or peers, and the
connections that it carries; and above all that, what is wrong and what to do about it.

--json prints the same for programs, in a form that docs/control.md describes and that stays.
--check prints nothing where the daemon does its work, else what keeps it from it: it is for
scripts and health checks.

Exit codes: 0 shown; 1 no daemon answers. With --check: 0 the daemon runs, all its sockets are
bound, and a client or server is connected to a relay; 1 otherwise.`,
		Example: `  ptthqd status
  ptthqd status --watch
  ptthqd status --json | jq '.connections | length'`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client := daemonAt(socket)
			if check && (asJSON || watch) {
				return usageError("--check prints no status: leave out --json and --watch")
			}
			if check {
				return checkStatus(cmd, client)
			}
			show := func(ctx context.Context, w io.Writer) error {
				if asJSON {
					body, err := client.RawStatus(ctx)
					if err == nil {
						_, err = w.Write(body)
					}
					return err
				}
				status, err := client.Status(ctx)
				if err == nil {
					printStatus(w, status, time.Now())
				}
				return err
			}
			if watch {
				return showAgain(cmd, show)
			}
			return show(cmd.Context(), cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&check, "check", false,
		"print only what keeps the daemon from its work, and exit with 1 if anything does")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false,
		"show it again every two seconds, until interrupted")
	socketFlag(cmd, &socket)
	return cmd
}

// checkStatus fails, and prints why, if the daemon does not do its work.
func checkStatus(cmd *cobra.Command, client *control.Client) error {
	status, err := client.Status(cmd.Context())
	if err != nil {
		return err
	}
	troubles := statusTroubles(status)
	for _, trouble := range troubles {
		fmt.Fprintln(cmd.OutOrStdout(), trouble)
	}
	if len(troubles) > 0 {
		return &exitError{exitFailed, nil} // all has been said
	}
	return nil
}

// statusTroubles returns what keeps a daemon from its work.
func statusTroubles(s *control.Status) (troubles []string) {
	if s.State != "running" {
		troubles = append(troubles, "the daemon is "+s.State)
	}
	connected := len(s.Links) == 0
	for _, l := range s.Links {
		connected = connected || l.State == control.LinkConnected
	}
	if !connected {
		troubles = append(troubles, "no relay is connected")
	}
	for _, m := range s.Mappings {
		if m.Problem != "" {
			troubles = append(troubles, fmt.Sprintf("mapping %s: %s", m.Name, m.Problem))
		}
	}
	return troubles
}

const watchInterval = 2 * time.Second

// showAgain shows the status again and again until it is interrupted; on a terminal always at the
// top of the screen. It goes on while the daemon is away.
func showAgain(cmd *cobra.Command, show func(context.Context, io.Writer) error) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt)
	defer stop()
	out := cmd.OutOrStdout()
	f, ok := out.(*os.File)
	onTerminal := ok && term.IsTerminal(int(f.Fd()))
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		var page bytes.Buffer
		if err := show(ctx, &page); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !errors.Is(err, control.ErrNotRunning) {
				return err
			}
			fmt.Fprintln(&page, err)
		}
		if onTerminal {
			page.WriteString("\x1b[J") // what is below is of before
			fmt.Fprint(out, "\x1b[H"+strings.ReplaceAll(page.String(), "\n", "\x1b[K\n"))
		} else {
			fmt.Fprintln(out, page.String())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// printStatus writes a status for people.
func printStatus(w io.Writer, s *control.Status, now time.Time) {
	w = cleanWriter{w}
	fmt.Fprintf(w, "%s: %s\n", strings.TrimSpace(s.Role+" "+s.ID), headline(s))
	fmt.Fprintf(w, "%s for %s, pid %d, version %s\n", s.State, span(time.Duration(s.Uptime)), s.PID,
		s.Version)
	level := ""
	if s.Config.LogLevel != "info" && s.Config.LogLevel != "" {
		level = "; log level " + s.Config.LogLevel
	}
	fmt.Fprintf(w, "config %s, in force for %s%s%s\n", s.Config.File,
		span(now.Sub(s.Config.Loaded)), lastReload(s.Config.Reload, now), level)
	if refused := refusals(s.Counters.Refused); refused != "" {
		fmt.Fprintf(w, "refused since the start: %s\n", refused)
	}
	if hit := limitsHit(s.Counters.LimitsHit); hit != "" {
		fmt.Fprintf(w, "connections that a limit has kept out or made wait, since the start: %s\n",
			hit)
	}
	if len(s.Warnings) > 0 {
		fmt.Fprintln(w, "\nWhat to look at:")
		for _, warning := range s.Warnings {
			fmt.Fprintf(w, "  ! %s\n", warning.Text)
			if warning.Hint != "" {
				fmt.Fprintf(w, "    %s\n", warning.Hint)
			}
		}
	}
	printLinks(w, s.Links, now)
	printListeners(w, s.Listeners)
	printPeers(w, s.Peers, now)
	printWaiting(w, s.Waiting, now)
	printMappings(w, s.Mappings)
	printServices(w, s.Services)
	printConnections(w, s, now)
}

// headline returns the summary without the reasons that the warnings below repeat.
func headline(s *control.Status) string {
	text := s.Summary
	for _, l := range s.Links {
		if l.State != control.LinkConnected && l.LastError != "" {
			text = strings.ReplaceAll(text, l.Relay+": "+l.LastError, l.Relay)
		}
	}
	if r := s.Config.Reload; r != nil && r.Error != "" {
		text = strings.ReplaceAll(text, ": "+r.Error, "")
	}
	return text
}

// refusals lists how many connections were refused, by status code.
func refusals(counts map[string]uint64) string {
	var list []string
	for _, code := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[code]; n > 0 {
			status, _ := strconv.ParseUint(code, 10, 16)
			list = append(list, fmt.Sprintf("%d with %s (%s)", n, code, wire.Status(status)))
		}
	}
	if len(list) == 0 {
		return ""
	}
	return strings.Join(list, ", ") + "; `journalctl -u ptthqd PTTHQ_CODE=CODE` tells which"
}

// limitsHit lists the limits that were hit, in the order of their names.
func limitsHit(counts map[string]uint64) string {
	var all []string
	for _, limit := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%s %d", limit, counts[limit]))
	}
	return strings.Join(all, ", ")
}

func lastReload(r *control.Reload, now time.Time) string {
	switch {
	case r == nil:
		return ""
	case r.OK:
		return fmt.Sprintf("; last reload %s ago, by %s", span(now.Sub(r.At)), r.Trigger)
	}
	return fmt.Sprintf("; the last reload, %s ago, FAILED", span(now.Sub(r.At)))
}

// table writes rows in columns, below a blank line; nothing if there are none.
func table(w io.Writer, header string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	columns := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(columns, "\n%s\n", strings.ReplaceAll(header, " ", "\t"))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = cmp.Or(cell, "-")
		}
		fmt.Fprintln(columns, strings.Join(row, "\t"))
	}
	_ = columns.Flush() // as any print
}

func printLinks(w io.Writer, links []control.Link, now time.Time) {
	var rows [][]string
	for _, l := range links {
		state := fmt.Sprintf("down for %s, trying (%d)", span(now.Sub(l.Since)), l.Attempts)
		switch l.State {
		case control.LinkConnected:
			state = "connected for " + span(now.Sub(l.Since))
		case control.LinkWaiting:
			state = fmt.Sprintf("down for %s, next try in %s", span(now.Sub(l.Since)),
				span(l.NextAttempt.Sub(now)))
		}
		rows = append(rows,
			append([]string{l.Relay, state, l.Address},
				append(figureCells(l.Figures), fmt.Sprint(l.Connections))...))
	}
	table(w, "RELAY STATE ADDRESS RTT LOSS SENT RECEIVED CONNECTIONS", rows)
}

func figureCells(f *control.Figures) []string {
	if f == nil {
		return []string{"", "", "", ""}
	}
	return []string{
		roundTrip(time.Duration(f.RTT)), fmt.Sprintf("%.2g%%", f.Loss*100),
		size(f.BytesSent), size(f.BytesReceived),
	}
}

func printListeners(w io.Writer, listeners []control.Listener) {
	var rows [][]string
	for _, l := range listeners {
		if l.Problem != "" {
			rows = append(rows, []string{l.Listen, "FAILED", "", "", ""})
			continue
		}
		rows = append(rows,
			[]string{
				l.Listen, l.Address, size(uint64(max(l.ReceiveBuffer, 0))),
				fmt.Sprint(l.Packets), fmt.Sprint(l.Dropped),
			})
	}
	table(w, "LISTENER ADDRESS BUFFER PACKETS DROPPED", rows)
}

func printPeers(w io.Writer, peers []control.Peer, now time.Time) {
	var rows [][]string
	for _, p := range peers {
		state := "never seen"
		switch {
		case p.Connected:
			state = "connected for " + span(now.Sub(p.Since))
		case !p.LastSeen.IsZero():
			state = fmt.Sprintf("away, seen %s ago", span(now.Sub(p.LastSeen)))
		}
		name := p.ID
		if len(p.OtherNames) > 0 {
			name += " (" + strings.Join(p.OtherNames, ", ") + ")"
		}
		rows = append(rows,
			append([]string{name, p.Role, state, p.Address},
				append(figureCells(p.Figures), fmt.Sprint(p.Connections))...))
	}
	table(w, "PEER ROLE STATE ADDRESS RTT LOSS SENT RECEIVED CONNECTIONS", rows)
}

func printWaiting(w io.Writer, waiting []control.Waiting, now time.Time) {
	var rows [][]string
	for _, k := range waiting[:min(len(waiting), maxRows)] {
		rows = append(rows,
			[]string{
				k.Key, k.Address, "for " + span(now.Sub(k.Since)), fmt.Sprint(k.Tries),
				span(now.Sub(k.Last)) + " ago",
			})
	}
	table(w, "WAITING ADDRESS SINCE TRIES LAST", rows)
	if more := len(waiting) - len(rows); more > 0 {
		fmt.Fprintf(w, "and %d more; --json shows all\n", more)
	}
}

func printMappings(w io.Writer, mappings []control.Mapping) {
	var rows [][]string
	for _, m := range mappings {
		state := "listening"
		switch {
		case !m.Enabled:
			state = "disabled"
		case m.Problem != "":
			state = "FAILED"
		}
		rows = append(rows,
			[]string{m.Name, state, m.Listen, m.Server, m.Target, fmt.Sprint(m.Connections)})
	}
	table(w, "MAPPING STATE LISTEN SERVER TARGET CONNECTIONS", rows)
}

func printServices(w io.Writer, services []control.Service) {
	var rows [][]string
	for _, v := range services {
		rows = append(rows,
			[]string{v.Name, v.Target, strings.Join(v.Clients, ", "), fmt.Sprint(v.Connections)})
	}
	table(w, "SERVICE TARGET CLIENTS CONNECTIONS", rows)
}

// maxRows is how many connections are shown.
const maxRows = 50

func printConnections(w io.Writer, s *control.Status, now time.Time) {
	var rows [][]string
	for _, c := range s.Connections {
		if len(rows) == maxRows {
			break
		}
		state := c.State
		if !c.Since.Equal(c.Opened) {
			state += " for " + span(now.Sub(c.Since))
		}
		rows = append(rows, []string{
			c.ID, state, span(time.Duration(c.Age)), cmp.Or(c.Client,
				s.ID), c.Source, cmp.Or(c.Server, s.ID), c.Target,
			size(c.BytesUp), size(c.BytesDown), fmt.Sprint(c.Resumes), c.Relay,
		})
	}
	table(w, "CONNECTION STATE AGE CLIENT FROM SERVER TARGET UP DOWN RESUMES RELAY", rows)
	if more := len(s.Connections) - len(rows); more > 0 {
		fmt.Fprintf(w, "and %d more; --json shows all\n", more)
	}
}

// span returns a duration for people: 3s, 5m, 2h10m, 3d4h.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < day:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d/day), int(d%day/time.Hour))
}

func roundTrip(d time.Duration) string {
	if d < 10*time.Millisecond {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Millisecond).String()
}

// size returns a number of bytes for people.
func size(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefixes := float64(n)/unit, "KMGTPE"
	for value >= unit && len(prefixes) > 1 {
		value /= unit
		prefixes = prefixes[1:]
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %ciB", value, prefixes[0])
	}
	return fmt.Sprintf("%.0f %ciB", value, prefixes[0])
}
