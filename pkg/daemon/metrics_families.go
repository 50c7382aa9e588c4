package daemon

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A new metric is declared here, and printed by the measure method of a role's view.
// docs/metrics.md is made from this list.
//
// Labels are few and bounded: names in the config (relays, peers, mappings, listeners), and words
// and codes of fixed sets. They never hold an address, an ID or a text that a connection brings.

// family is a metric with all of its label values.
type family struct {
	name, help string
	kind       string // counter, gauge or histogram
	labels     []string
	desc       *prometheus.Desc
}

// families are all metrics, in the order of the manual.
var families []*family

func newFamily(kind, name, help string, labels []string) *family {
	f := &family{name: "ptthqd_" + name, help: help, kind: kind, labels: labels}
	f.desc = prometheus.NewDesc(f.name, help, labels, nil)
	families = append(families, f)
	return f
}

func gauge(name, help string, labels ...string) *family {
	return newFamily("gauge", name, help, labels)
}

func counter(name, help string, labels ...string) *family {
	return newFamily("counter", name, help, labels)
}

func histogram(name, help string, labels ...string) *family {
	return newFamily("histogram", name, help, labels)
}

var (
	buildInfo = gauge("build_info", "The program that runs; always 1.", "version", "goversion")
	nodeInfo  = gauge("node_info", "What the config makes of it; always 1. A relay has no id.",
		"role", "id")
	startTime = gauge("start_time_seconds", "When the process began, in Unix time.")
	readiness = gauge("ready",
		"Whether the config is valid and all own sockets are bound: 1; or 0 while it starts or "+
			"stops, or while a listener can't be bound.")

	configInfo = gauge("config_info",
		"The config in force, by the beginning of the hash that the status shows; always 1.",
		"hash")
	configTime = gauge("config_load_time_seconds",
		"When the config in force was loaded, in Unix time.")
	configGood = gauge("config_last_reload_successful",
		"Whether the config in the files is in force: 0 after a reload that failed.")
	configDuration = gauge("config_last_reload_duration_seconds",
		"How long the last reload took, from reading to being in force; 0 before the first.")
	configReloads = counter("config_reloads_total", "Reloads, by result: success or failure.",
		"result")

	logDropped = counter("log_lines_dropped_total",
		"Lines of the log that are missing in it, as nobody read it in time or it could not be "+
			"written.")

	connections = gauge("connections",
		"Forwarded connections, by state as in the status. At a relay, where each attempt to "+
			"resume is one more for a moment, the mapping is empty; at a server too.",
		"mapping", "state")
	connectionsOpened = counter("connections_opened_total",
		"Connections that their server has granted.", "mapping")
	connectionsRefused = counter("connections_refused_total",
		"Connections that were refused, by status code (docs/ends.md). At a relay requests to "+
			"resume are counted too.",
		"mapping", "code")
	connectionsEnded = counter("connections_ended_total",
		"Connections that have ended or were refused, by how (docs/ends.md). Not at a relay.", "mapping",
		"end")
	connectionsResumed = counter("connections_resumed_total",
		"Times that a connection has gone on over another stream.", "mapping")
	connectionsHeld = gauge("connections_held",
		"Connections that a client has accepted and that wait for a link.")
	connectionsDialling = gauge("connections_dialling",
		"Targets that a server is dialling, or that wait for their turn.")
	forwardedBytes = counter("forwarded_bytes_total",
		"Bytes forwarded, by direction: up is from the TCP client towards its target. At a relay "+
			"with the framing of sessions.",
		"mapping", "direction")
	openDuration = histogram("open_duration_seconds",
		"From a connection's arrival until its server has granted it: at a client from accepting "+
			"it, the wait for a link included; at a relay from its request.",
		"mapping")
	dialDuration = histogram("dial_duration_seconds",
		"How long a server's dials of targets took, by the status code that they came to: 200, "+
			"502, 504, or 429 without a turn.", "code")
	limitsHit = counter("limits_hit_total",
		"Connections that a limit has kept out or made wait, by its name in [limits]; of "+
			"session_memory and retained_memory, that have had to do with 64 KiB a round trip.",
		"limit")
	parked = counter("resumes_parked_total",
		"Requests, to resume a connection or for a new one, that have waited at a relay for "+
			"their server's link.")
	stalled = counter("streams_stalled_total",
		"Streams that a relay has reset as they held up all others of their link.")

	budgetUsed = gauge("budget_used_bytes",
		"What connections and links take of a budget of [limits]: session_memory is promised to "+
			"be received, retained_memory is kept until it is acknowledged, link_memory is what "+
			"the windows of links have grown by. Each connection has 64 KiB in each direction "+
			"besides.",
		"budget")
	budgetLimit = gauge("budget_limit_bytes", "The budgets, from [limits].", "budget")

	linkUp = gauge("link_up",
		"Whether there is a link: at a client or server to a relay, at a relay to a peer.", "relay",
		"peer")
	linkConnections = gauge("link_connections", "Connections that the link carries.", "relay",
		"peer")
	linkRTT = gauge("link_rtt_seconds",
		"The link's smoothed round-trip time. Absent while it is down.", "relay", "peer")
	linkGSO = gauge("link_gso",
		"Whether packets leave in segments (UDP GSO), which spares processor time. Absent while "+
			"the link is down.", "relay", "peer")
	linkBytes = counter("link_bytes_total",
		"Bytes over all links to this neighbour, with QUIC's overhead, by direction: sent or "+
			"received.", "relay", "peer", "direction")
	linkPackets = counter("link_packets_sent_total",
		"Packets sent over all links to this neighbour.", "relay", "peer")
	linkLost = counter("link_packets_lost_total", "Packets of those that were lost.",
		"relay", "peer")
	linkParity = counter("link_parity_sent_total",
		"Packets of parity sent besides: they make up for loss that is not congestion.", "relay",
		"peer")
	linkRestored = counter("link_packets_restored_total",
		"Packets that were lost on their way to this end, and made again from the neighbour's "+
			"parity. The sender's count of lost ones has few of them.", "relay", "peer")
	linkEnded = counter("link_ended_total",
		"Links that have ended, by reason (docs/metrics.md).", "relay", "peer", "reason")
	dialsFailed = counter("link_dials_failed_total",
		"Dials of a relay that failed, by reason (docs/metrics.md).", "relay", "reason")

	peersKnown     = gauge("peers_known", "Peers that a relay's config names, by role.", "role")
	peersConnected = gauge("peers_connected", "Peers of those that have a link.", "role")

	listenerBound = gauge("listener_bound",
		"Whether a listener of the config is bound: a client's with its mapping, a relay's "+
			"without. 0 while it is tried again.",
		"mapping", "listener")
	keysWaiting = gauge("keys_waiting",
		"Nodes that knock at a relay with a key that its config does not name: WAITING in the "+
			"status.")
	keysRefused = counter("keys_refused_total",
		"Handshakes at a relay that have proved a key that its config does not name.")

	udpPackets = counter("udp_packets_received_total",
		"Packets received at a relay's listener.", "socket")
	udpDropped = counter("udp_packets_dropped_total",
		"Packets that the kernel dropped because the receive buffer was full.", "socket")
	udpSendFailures = counter("udp_send_failures_total",
		"Packets that the kernel refused to send. QUIC takes them as lost.", "socket")
	udpReceiveBuffer = gauge("udp_receive_buffer_bytes",
		"The socket's receive buffer, as the kernel counts.", "socket")
	udpGRO = gauge("udp_gro",
		"Whether the kernel coalesces what arrives (UDP GRO), which spares processor time.",
		"socket")
)

// latencyBuckets are in seconds. A round trip takes 0.1 to 5 ms within a network and 300 ms around
// the world; a connection waits hold_timeout (5 s) for a link at most, a dial takes dial_timeout
// (10 s). Scrapers of native histograms get those instead.
var latencyBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

const nativeBucketFactor = 1.1

func (f *family) vec() *prometheus.HistogramVec {
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: f.name, Help: f.help, Buckets: latencyBuckets,
		NativeHistogramBucketFactor:     nativeBucketFactor,
		NativeHistogramMaxBucketNumber:  100,
		NativeHistogramMinResetDuration: time.Hour,
	}, f.labels)
}
