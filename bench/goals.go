//go:build linux

package main

import "fmt"

// A verdict compares a figure with a goal.
type verdict struct {
	Goal    string  `json:"goal"`
	Bound   string  `json:"bound"` // "at least" or "at most"
	Wanted  float64 `json:"wanted"`
	Is      float64 `json:"is"`
	Reached bool    `json:"reached"`
}

// goals compares the results with the goals. A ratio is the median of the ratios of each round: two
// figures of one round were measured side by side.
type goals struct {
	results *results
	ours    string
}

const (
	plain   = "plain"
	atLeast = "at least"
	atMost  = "at most"
)

// judge compares the figures with the goals. It leaves out goals whose rows were not measured.
func (r *results) judge(ours string) {
	g := goals{r, ours}
	for _, direction := range []string{"up", "down"} {
		row := "bulk-1-" + direction
		g.ratio("bulk, 1 stream "+direction+", of the plain chain's", atLeast, 1.3,
			g.own(row, metricRate), g.of(plain, row, metricRate))
	}
	g.ratio("relay's CPU per GiB, 1 stream up, of the plain chain's", atMost, 0.8,
		g.own("bulk-1-up", metricCPU+relayHost), g.of(plain, "bulk-1-up", metricCPU+relayHost))
	for _, row := range []string{"open-16", "open-64"} {
		g.ratio("new connections, "+row+", of the plain chain's", atLeast, 1.6,
			g.own(row, metricOpens), g.of(plain, row, metricOpens))
	}
	g.ratio("round trip, p50, of the plain chain's", atMost, 1.15,
		g.own("rtt", metricP50), g.of(plain, "rtt", metricP50))
	g.value("round trip beside 4 uploads, p50, ms", atMost, 4, g.own("loaded", metricP50))
	g.value("round trip beside 4 uploads, p99, ms", atMost, 10, g.own("loaded", metricP99))
	g.ratio("what it leaves of the uploads' rate", atLeast, 0.9,
		g.own("loaded", metricBeside), g.own("loaded", metricAlone))
	for _, role := range []string{clientHost, relayHost, serverHost} {
		goal := fmt.Sprintf("memory of the %s per idle connection, %d of them, KiB", role, r.options.idle)
		g.value(goal, atMost, 22, g.own(rowIdle, metricMemory+role))
	}
	g.value(fmt.Sprintf("memory of the relay per idle peer, %d of them, KiB", r.options.peers), atMost, 90,
		g.own(rowPeers, metricMemory+relayHost))
	g.ratio("CPU per GiB, 1,000 streams to 8", atMost, 1.3,
		g.own("bulk-1000-up", metricCPU+"all"), g.own("bulk-8-up", metricCPU+"all"))
	crowded := fmt.Sprintf("new connections with %d idle connections and %d peers, to those with none",
		r.options.idle, r.options.peers)
	g.ratio(crowded, atLeast, 0.8, g.own(rowCrowded, metricBeside), g.own(rowCrowded, metricAlone))

	g.value("40 ms, 200 Mbit/s, 1 stream up, MiB/s", atLeast, 21.5, g.own(rowWide+"40", metricUpload))
	g.value("40 ms, round trip beside that upload, p50, ms", atMost, 90, g.own(rowWide+"40", metricBusy50))
	g.value("40 ms, first byte of a new connection, p50, ms", atMost, 45, g.own(rowWide+"40", metricFirst50))
	g.value("100 ms, first byte of a new connection, p50, ms", atMost, 106, g.own(rowWide+"100-loss", metricFirst50))
	g.value("40 ms, 1 % loss, 1 stream up, MiB/s", atLeast, 1.0, g.own(rowWide+"40-loss", metricUpload))
	g.value("100 ms, 0.1 % loss, 1 stream up, MiB/s", atLeast, 2.7, g.own(rowWide+"100-loss", metricUpload))
	for _, row := range []string{rowWide + "40-loss", rowWide + "100-loss"} {
		g.ratio(row+", round trip beside the upload, p50, to idle", atMost, 1.3,
			g.own(row, metricBusy50), g.own(row, metricIdleRTT))
	}
}

func (g goals) own(row, metric string) *figure { return g.of(g.ours, row, metric) }

func (g goals) of(tunnel, row, metric string) *figure { return g.results.find(row, metric, tunnel) }

func (g goals) value(goal, bound string, wanted float64, f *figure) {
	if f != nil {
		g.add(goal, bound, wanted, f.Median)
	}
}

func (g goals) ratio(goal, bound string, wanted float64, a, b *figure) {
	if a == nil || b == nil {
		return
	}
	var ratios []float64
	for i := range min(len(a.Values), len(b.Values)) {
		if b.Values[i] > 0 {
			ratios = append(ratios, a.Values[i]/b.Values[i])
		}
	}
	if len(ratios) > 0 {
		g.add(goal, bound, wanted, median(ratios))
	}
}

func (g goals) add(goal, bound string, wanted, is float64) {
	reached := is >= wanted
	if bound == atMost {
		reached = is <= wanted
	}
	g.results.Goals = append(g.results.Goals, verdict{goal, bound, wanted, is, reached})
}
