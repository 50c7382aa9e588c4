//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// results holds all that a run has measured. Flag -o writes it as JSON.
type results struct {
	When     string    `json:"when"`
	Machine  string    `json:"machine"`
	Settings string    `json:"settings"`
	Seconds  float64   `json:"seconds"`
	Tunnels  []string  `json:"tunnels"`
	Figures  []*figure `json:"figures"`
	Goals    []verdict `json:"goals"`
	Failures []string  `json:"failures"`
	Skipped  []string  `json:"skipped"`

	options options
}

// A figure is one metric of one row through one tunnel, with its value in each round.
type figure struct {
	Row    string    `json:"row"`
	Metric string    `json:"metric"`
	Unit   string    `json:"unit"`
	Tunnel string    `json:"tunnel"`
	Values []float64 `json:"values"`
	Median float64   `json:"median"`
	Min    float64   `json:"min"`
	Max    float64   `json:"max"`

	about string // the row's
}

func (r *results) begin(tunnels []tunnel, o options) {
	r.When = time.Now().UTC().Format(time.DateTime)
	r.Machine = machine()
	r.Settings = fmt.Sprintf("%d rounds of %g s, wide area %d of %g s with TCP's %s, "+
		"%d idle connections, %d idle peers", o.rounds, o.seconds, o.wideRounds, o.wide, congestion(), o.idle, o.peers)
	r.options = o
	for _, t := range tunnels {
		r.Tunnels = append(r.Tunnels, t.name)
	}
}

func (r *results) recorder(of row, t tunnel) recorder {
	return func(metric, unit string, value float64) {
		f := r.find(of.name, metric, t.name)
		if f == nil {
			f = &figure{Row: of.name, Metric: metric, Unit: unit, Tunnel: t.name, about: of.about}
			r.Figures = append(r.Figures, f)
		}
		f.Values = append(f.Values, value)
		f.Median, f.Min, f.Max = median(f.Values), slices.Min(f.Values), slices.Max(f.Values)
	}
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func (r *results) find(row, metric, tunnel string) *figure {
	for _, f := range r.Figures {
		if f.Row == row && f.Metric == metric && f.Tunnel == tunnel {
			return f
		}
	}
	return nil
}

func (r *results) fail(row string, t tunnel, err error) {
	text := fmt.Sprintf("%s, %s: %v", row, t.name, err)
	fmt.Fprintln(os.Stderr, "FAILED:", text)
	r.Failures = append(r.Failures, text)
}

func (r *results) skip(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintln(os.Stderr, "SKIPPED:", text)
	r.Skipped = append(r.Skipped, text)
}

// markdown prints the tables for people.
func (r *results) markdown(w io.Writer) {
	fmt.Fprintf(w, "%s: %s. Each figure is the median (least–greatest).\n", r.Machine, r.Settings)
	type line struct{ row, metric string }
	var lines []line
	for _, f := range r.Figures {
		if l := (line{f.Row, f.Metric}); !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	order := func(l line) int {
		return slices.IndexFunc(allRows, func(r row) bool { return r.name == l.row })
	}
	slices.SortStableFunc(lines, func(a, b line) int { return order(a) - order(b) })
	section := ""
	for _, l := range lines {
		cells := make([]string, len(r.Tunnels))
		var any *figure
		for i, t := range r.Tunnels {
			if f := r.find(l.row, l.metric, t); f != nil {
				cells[i] = cell(f)
				any = f
			}
		}
		if l.row != section {
			section = l.row
			fmt.Fprintf(w, "\n%s: %s\n\n| | %s |\n|---|%s\n", l.row, any.about,
				strings.Join(r.Tunnels, " | "), strings.Repeat("---|", len(r.Tunnels)))
		}
		fmt.Fprintf(w, "| %s, %s | %s |\n", l.metric, any.Unit, strings.Join(cells, " | "))
	}
	if len(r.Goals) > 0 {
		fmt.Fprintf(w, "\n| goal | wanted | is | |\n|---|---|---|---|\n")
		for _, g := range r.Goals {
			word := "falls short"
			if g.Reached {
				word = "reached"
			}
			fmt.Fprintf(w, "| %s | %s %s | %s | %s |\n", g.Goal, g.Bound, number(g.Wanted), number(g.Is), word)
		}
	}
	for _, s := range r.Skipped {
		fmt.Fprintf(w, "\nSKIPPED: %s\n", s)
	}
	for _, f := range r.Failures {
		fmt.Fprintf(w, "\nFAILED: %s\n", f)
	}
}

func cell(f *figure) string {
	if len(f.Values) == 1 {
		return number(f.Median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(f.Median), number(f.Min), number(f.Max))
}

// number prints three significant digits.
func number(v float64) string {
	switch {
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
