package daemon

import (
	"fmt"
	"strings"
	"time"
)

// MetricsTable is the list of metrics for the manual.
func MetricsTable() string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | |\n|---|---|---|---|\n")
	for _, f := range families {
		labels := "-"
		if len(f.labels) > 0 {
			labels = "`" + strings.Join(f.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.kind, labels, f.help)
	}
	return b.String()
}

// SetQueueBytes changes the bound of the log's queue.
func SetQueueBytes(n int) { queueBytes = n }

// Tidy is the loop that gives memory back.
var Tidy = tidy

// GroupMemory reads the memory limit of the process's control groups.
var GroupMemory = groupMemory

// FitMemory sets Go's memory limit.
var FitMemory = fitMemory

// FitProcessors is the loop that sets GOMAXPROCS.
var FitProcessors = fitProcessors

// Processors is how it decides.
type Processors struct{ p processors }

// NewProcessors has all there are.
func NewProcessors(most int) *Processors { return &Processors{processors{most: most, now: most}} }

// Use takes what was used.
func (p *Processors) Use(used, in time.Duration) { p.p.use(used, in) }

// Now is how many there are.
func (p *Processors) Now() int { return p.p.now }
