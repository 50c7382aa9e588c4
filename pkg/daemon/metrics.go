package daemon

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ptthqd/pkg/config"
	"ptthqd/pkg/link"
	"ptthqd/pkg/relay"
	"ptthqd/pkg/wire"
)

// Labels that are shown from the beginning, with 0: Prometheus sees no increase in a series that
// begins with 1.
var (
	refusals = []wire.Status{
		wire.StatusMalformed, wire.StatusNotAllowed, wire.StatusNotNewest, wire.StatusNoSession,
		wire.StatusTooMany, wire.StatusRefused, wire.StatusNotConnected, wire.StatusTimeout,
		wire.StatusVersion, wire.StatusLoop,
	}
	limitsOf = map[config.Role][]string{ // those whose hits a role counts
		config.RoleClient: {
			"held_connections", "pending_tips", "pending_tips_total", "retained_memory",
			"session_memory", "sessions", "sessions_per_mapping", "spare_descriptors",
		},
		config.RoleServer: {
			"detached_per_client", "dials", "dials_per_target", "opens_per_second", "pending_tips",
			"pending_tips_total", "retained_memory", "session_memory", "sessions",
			"sessions_per_client", "spare_descriptors",
		},
		config.RoleRelay: {
			"auth_penalty", "handshakes", "handshakes_per_source", "links", "opens_per_second",
			"parked_resumes", "pending_tips", "pending_tips_total", "retry_rate", "streams",
			"streams_per_peer",
		},
	}
)

// metrics collects the metrics of the process. A scrape reads the view of the role, and costs
// nothing else; only durations are observed as they pass.
type metrics struct {
	daemon   *daemon
	registry *prometheus.Registry
	opening  *prometheus.HistogramVec
	dialling *prometheus.HistogramVec

	mu      sync.Mutex
	highest map[string]float64 // value of each counter that was scraped
}

func newMetrics(d *daemon) *metrics {
	m := &metrics{
		daemon:   d,
		registry: prometheus.NewPedanticRegistry(),
		opening:  openDuration.vec(),
		dialling: dialDuration.vec(),
		highest:  make(map[string]float64),
	}
	m.registry.MustRegister(m, m.opening, m.dialling,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// opened observes a connection that a client or a relay has opened. A relay knows no mapping.
func (m *metrics) opened(mapping string, took time.Duration) {
	m.opening.WithLabelValues(mapping).Observe(took.Seconds())
}

// dialled observes a target that a server has dialled.
func (m *metrics) dialled(status wire.Status, took time.Duration) {
	m.dialling.WithLabelValues(code(status)).Observe(took.Seconds())
}

func code(s wire.Status) string { return fmt.Sprint(uint64(s)) }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, f := range families {
		if f.kind != "histogram" { // histograms describe themselves
			to <- f.desc
		}
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(to chan<- prometheus.Metric) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &sample{metrics: m, to: to}
	d := m.daemon
	l := d.loaded.Load()
	s.is(buildInfo, 1, d.options.Version, runtime.Version())
	s.is(nodeInfo, 1, string(l.config.Role), l.config.ID)
	s.is(startTime, unixTime(d.started))
	s.is(readiness, truth(d.state.Load() == stateRunning && len(d.role.Unbound()) == 0))

	s.is(configInfo, 1, shortHash(l.config.Hash))
	s.is(configTime, unixTime(l.at))
	last := d.lastReload.Load()
	s.is(configGood, truth(last == nil || last.OK))
	took := time.Duration(0)
	if last != nil {
		took = time.Duration(last.Took)
	}
	s.is(configDuration, took.Seconds())
	s.counts(configReloads, d.reloads.Load(), "success")
	s.counts(configReloads, d.badReloads.Load(), "failure")
	s.counts(logDropped, d.logs.Dropped())
	d.role.View().measure(s)
}

// sample is one scrape. Its methods need the lock of metrics.
type sample struct {
	*metrics
	to chan<- prometheus.Metric
}

// is prints a gauge.
func (s *sample) is(f *family, value float64, labels ...string) {
	s.to <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, value, labels...)
}

// counts prints a counter, which never falls. Some are sums over connections that have ended and
// that run; one that ends in between is in neither sum for a moment. Prometheus would take a lower
// value for a restart.
func (s *sample) counts(f *family, n uint64, labels ...string) {
	key := f.name + "\x00" + strings.Join(labels, "\x00")
	value := max(float64(n), s.highest[key])
	s.highest[key] = value
	s.to <- prometheus.MustNewConstMetric(f.desc, prometheus.CounterValue, value, labels...)
}

// budget prints a budget of memory, in bytes.
func (s *sample) budget(name string, used, limit int64) {
	s.is(budgetUsed, float64(used), name)
	s.is(budgetLimit, float64(limit), name)
}

// limits prints how often the limits of a role were hit.
func (s *sample) limits(of config.Role, hit map[string]uint64) {
	for _, limit := range limitsOf[of] {
		s.counts(limitsHit, hit[limit], limit)
	}
}

// live prints a link that is up.
func (s *sample) live(stats link.Stats, at, peer string) {
	s.is(linkRTT, stats.RTT.Seconds(), at, peer)
	s.is(linkGSO, truth(stats.GSO), at, peer)
}

// link prints what all links to a neighbour have counted.
func (s *sample) link(t relay.LinkTotals, at, peer string) {
	s.counts(linkBytes, t.BytesSent, at, peer, "sent")
	s.counts(linkBytes, t.BytesReceived, at, peer, "received")
	s.counts(linkPackets, t.PacketsSent, at, peer)
	s.counts(linkLost, t.PacketsLost, at, peer)
	s.counts(linkParity, t.ParitySent, at, peer)
	s.counts(linkRestored, t.Restored, at, peer)
	for _, reason := range link.EndReasons {
		s.counts(linkEnded, t.Ended[reason], at, peer, string(reason))
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// unixTime returns a time as Prometheus writes it, in seconds.
func unixTime(t time.Time) float64 {
	return float64(t.UnixMilli()) / 1000 //nolint:forbidigo // told, not decided by
}
