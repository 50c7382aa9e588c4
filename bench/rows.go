//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// A row is one measurement.
type row struct {
	name  string
	about string
	// through measures once through a running chain; nil for rows that start chains of their own.
	through func(context.Context, *bench, *chain, recorder) error
	skip    func(tunnel) bool // reports whether the row leaves a tunnel out; nil for never
}

// A recorder takes a figure of the present row.
type recorder func(metric, unit string, value float64)

func noProcesses(t tunnel) bool { return t.dir == "" }

// The rows with chains of their own.
const (
	rowIdle    = "idle"
	rowPeers   = "peers"
	rowCrowded = "crowded"
	rowWide    = "wide-"
)

var allRows = []row{
	{"bulk-1-up", "bulk, 1 stream from P1 to P5", bulkRow(1, false), nil},
	{"bulk-1-down", "bulk, 1 stream from P5 to P1", bulkRow(1, true), nil},
	{"bulk-8-up", "bulk, 8 streams up", bulkRow(8, false), nil},
	{"bulk-8-down", "bulk, 8 streams down", bulkRow(8, true), nil},
	{"bulk-1000-up", "bulk, 1,000 streams up", bulkRow(1000, false), noProcesses},
	{"rtt", "round trip of 64 bytes over an idle tunnel", pingRow, nil},
	{"loaded", "the same beside 4 uploads, and what it leaves of their rate", loadedRow, nil},
	{"open-1", "new connections with their first byte, one after another", openRow(1), nil},
	{"open-16", "the same, 16 at once", openRow(16), nil},
	{"open-64", "the same, 64 at once", openRow(64), nil},
	{rowIdle, "memory of each process per idle connection", nil, noProcesses},
	{rowPeers, "memory of ptthqd's relay per idle peer", nil, noProcesses},
	{
		rowCrowded,
		"ptthqd's new connections, 16 at once, with none and with all idle connections and peers there",
		nil, noProcesses,
	},
	{rowWide + "40", "wide area: 200 Mbit/s, 40 ms", nil, nil},
	{rowWide + "40-loss", "the same with 1 % loss on each link", nil, nil},
	{rowWide + "100-loss", "100 ms with 0.1 % loss", nil, nil},
}

// chooseRows returns the rows that flag -rows names.
func chooseRows(text string) (chosen []row, err error) {
	patterns := strings.Split(text, ",")
	used := make([]bool, len(patterns))
	for _, r := range allRows {
		for i, p := range patterns {
			prefix, wild := strings.CutSuffix(p, "*")
			if p == "all" || p == r.name || wild && strings.HasPrefix(r.name, prefix) {
				used[i] = true
				chosen = append(chosen, r)
				break
			}
		}
	}
	for i, p := range patterns {
		if !used[i] {
			err = errors.Join(err, fmt.Errorf("there is no row %q; bench -h lists them", p))
		}
	}
	return chosen, err
}

// measure measures all rows: those that share chains in interleaved rounds, then the others.
func (b *bench) measure(ctx context.Context, rows []row) error {
	var shared, own, wide []row
	for _, r := range rows {
		switch {
		case r.through != nil:
			shared = append(shared, r)
		case strings.HasPrefix(r.name, rowWide):
			wide = append(wide, r)
		default:
			own = append(own, r)
		}
	}
	if err := b.measureShared(ctx, shared); err != nil {
		return err
	}
	for _, r := range own {
		var err error
		switch r.name {
		case rowIdle:
			err = b.measureIdle(ctx, r)
		case rowPeers:
			err = b.measurePeers(ctx, r)
		case rowCrowded:
			err = b.measureCrowded(ctx, r)
		}
		if err != nil {
			return err
		}
	}
	return b.measureWide(ctx, wide)
}

func (b *bench) measureShared(ctx context.Context, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	chains, stop := b.launchAll(ctx, loopback)
	defer stop()
	return b.interleave(ctx, rows, chains, b.rounds)
}

// launchAll starts a chain of each tunnel. It records a failure for a tunnel that does not start,
// and leaves it out.
func (b *bench) launchAll(ctx context.Context, s *site) (chains []*chain, stop func()) {
	for _, t := range b.tunnels {
		c, err := b.launch(ctx, s, t, nil)
		if err != nil {
			b.results.fail("start", t, err)
			continue
		}
		chains = append(chains, c)
	}
	return chains, func() {
		for _, c := range chains {
			c.stop()
		}
	}
}

// interleave measures each row through each chain, round by round. Each round begins with another
// chain.
func (b *bench) interleave(ctx context.Context, rows []row, chains []*chain, rounds int) error {
	for round := range rounds {
		for _, r := range rows {
			for i := range chains {
				c := chains[(i+round)%len(chains)]
				if r.skip != nil && r.skip(c.tunnel) {
					continue
				}
				b.say("round %d of %d: %s, %s", round+1, rounds, r.name, c.tunnel.name)
				if err := r.through(ctx, b, c, b.results.recorder(r, c.tunnel)); err != nil {
					b.results.fail(r.name, c.tunnel, err)
				}
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
			}
		}
	}
	return nil
}

// Metrics that more than one row has.
const (
	metricRate    = "rate"
	metricP50     = "p50"
	metricP99     = "p99"
	metricCPU     = "CPU, "    // and the role
	metricMemory  = "memory, " // and the role
	metricOpens   = "opened"
	metricFirst50 = "first byte, p50"
	metricFirst99 = "first byte, p99"
	metricAlone   = "rate without it"
	metricBeside  = "rate beside it"

	unitRate = "MiB/s"
	unitTime = "ms"
	unitCPU  = "s/GiB"
	unitEach = "µs each"
	unitKiB  = "KiB"
	unitOpen = "1/s"
)

// settleTime is the pause after a measurement in which processes use up the time that belongs to
// it.
const settleTime = 100 * time.Millisecond

// fewStreams is the largest number of streams that send for a time. More streams send a fixed
// amount: the kernel's buffers for each would otherwise take many times as long to drain.
const fewStreams = 64

func bulkRow(streams int, down bool) func(context.Context, *bench, *chain, recorder) error {
	return func(ctx context.Context, b *bench, c *chain, record recorder) error {
		l := load{mode: "bulk", seconds: b.seconds, streams: streams, down: down}
		if streams > fewStreams {
			// Enough that the first growth of windows, and closing in the end, are a small part. A
			// quarter of it did not show a link that came to a standstill after two seconds.
			l.kib = max(64, int(1024*b.seconds))
		}
		return b.bulk(ctx, c, l, record)
	}
}

func (b *bench) bulk(ctx context.Context, c *chain, l load, record recorder) error {
	l.gate = true
	finish, err := b.begin(ctx, c, l, "ready")
	if err != nil {
		return err
	}
	before := c.cpu()
	f, err := finish()
	if err != nil {
		return err
	}
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	record(metricRate, unitRate, f.MiBRate)
	recordCPU(before, c.cpu(), 1024/f.MiB, unitCPU, record)
	return nil
}

// recordCPU records the processor time of each process, and of all, between two times. The factor
// turns seconds into the unit.
func recordCPU(before, after map[string]float64, factor float64, unit string, record recorder) {
	total := 0.0
	for _, role := range []string{clientHost, relayHost, serverHost} {
		if _, has := after[role]; has {
			spent := (after[role] - before[role]) * factor
			total += spent
			record(metricCPU+role, unit, spent)
		}
	}
	if len(after) > 0 {
		record(metricCPU+"all", unit, total)
	}
}

func pingRow(ctx context.Context, b *bench, c *chain, record recorder) error {
	f, err := b.load(ctx, c, load{mode: "ping", seconds: b.seconds})
	if err != nil {
		return err
	}
	record(metricP50, unitTime, f.P50)
	record(metricP99, unitTime, f.P99)
	return nil
}

func loadedRow(ctx context.Context, b *bench, c *chain, record recorder) error {
	l := load{mode: "loaded", seconds: 1.5 * b.seconds, warmup: min(0.5, b.seconds), streams: 4}
	return b.loaded(ctx, c, l, record)
}

// loaded measures the bulk alone, and then messages beside it.
func (b *bench) loaded(ctx context.Context, c *chain, l load, record recorder) error {
	alone := l
	alone.mode = "bulk"
	before, err := b.load(ctx, c, alone)
	if err != nil {
		return err
	}
	f, err := b.load(ctx, c, l)
	if err != nil {
		return err
	}
	record(metricP50, unitTime, f.P50)
	record(metricP99, unitTime, f.P99)
	record(metricAlone, unitRate, before.MiBRate)
	record(metricBeside, unitRate, f.MiBRate)
	return nil
}

func openRow(atOnce int) func(context.Context, *bench, *chain, recorder) error {
	return func(ctx context.Context, b *bench, c *chain, record recorder) error {
		before := c.cpu()
		f, err := b.load(ctx, c, load{mode: "connect", seconds: b.seconds, atOnce: atOnce})
		if err != nil {
			return err
		}
		if err := pause(ctx, settleTime); err != nil {
			return err
		}
		record(metricOpens, unitOpen, f.OpenedRate)
		record(metricFirst50, unitTime, f.P50)
		record(metricFirst99, unitTime, f.P99)
		recordCPU(before, c.cpu(), 1e6/float64(f.Opened), unitEach, record)
		return nil
	}
}

// measureIdle measures the memory of idle connections in a fresh chain of each tunnel.
func (b *bench) measureIdle(ctx context.Context, r row) error {
	for _, t := range b.tunnels {
		if r.skip(t) {
			continue
		}
		b.say("%s: %d connections through %s", r.name, b.idle, t.name)
		if err := b.idleOnce(ctx, r, t); err != nil {
			b.results.fail(r.name, t, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}

func (b *bench) idleOnce(ctx context.Context, r row, t tunnel) error {
	c, err := b.launch(ctx, loopback, t, nil)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := pause(ctx, settleTime); err != nil {
		return err
	}
	before := c.memory()
	release, err := b.hold(ctx, c, b.idle)
	if err != nil {
		return err
	}
	err = pause(ctx, b.settle)
	after := c.memory()
	record := b.results.recorder(r, t)
	for _, role := range []string{clientHost, relayHost, serverHost} {
		record(metricMemory+role, unitKiB, (after[role]-before[role])/float64(b.idle))
	}
	return errors.Join(err, release())
}

// measurePeers measures the memory of idle peers in a fresh relay.
func (b *bench) measurePeers(ctx context.Context, r row) error {
	b.say("%s: %d idle peers at the relay", r.name, b.peers)
	crowd, err := newCrowd(b.peers)
	if err != nil {
		return err
	}
	c, err := b.launch(ctx, loopback, b.ours, map[string]string{"peers.toml": crowd.config()})
	if err != nil {
		b.results.fail(r.name, b.ours, err)
		return nil
	}
	defer c.stop()
	before := c.memory()
	release, err := b.connect(ctx, c, crowd)
	if err != nil {
		b.results.fail(r.name, b.ours, err)
		return nil
	}
	err = pause(ctx, max(b.settle, busyTime))
	after := c.memory()
	record := b.results.recorder(r, b.ours)
	record(metricMemory+relayHost, unitKiB, (after[relayHost]-before[relayHost])/float64(b.peers))
	return errors.Join(err, release())
}

// measureCrowded measures opening through a chain that is empty, and through one that is full of
// idle connections and peers.
func (b *bench) measureCrowded(ctx context.Context, r row) error {
	b.say("%s: %d idle connections, %d idle peers", r.name, b.idle, b.peers)
	crowd, err := newCrowd(b.peers)
	if err != nil {
		return err
	}
	quiet, err := b.launch(ctx, loopback, b.ours, nil)
	if err != nil {
		b.results.fail(r.name, b.ours, err)
		return nil
	}
	defer quiet.stop()
	full, err := b.launch(ctx, loopback, b.ours, map[string]string{"peers.toml": crowd.config()})
	if err != nil {
		b.results.fail(r.name, b.ours, err)
		return nil
	}
	defer full.stop()
	leave, err := b.connect(ctx, full, crowd)
	if err != nil {
		b.results.fail(r.name, b.ours, err)
		return nil
	}
	release, err := b.hold(ctx, full, b.idle)
	if err != nil {
		b.results.fail(r.name, b.ours, errors.Join(err, leave()))
		return nil
	}
	err = pause(ctx, max(b.settle, busyTime))
	record := b.results.recorder(r, b.ours)
	opens := load{mode: "connect", seconds: b.seconds, atOnce: 16}
	for range b.rounds {
		if err != nil {
			break
		}
		var alone, beside figures
		if alone, err = b.load(ctx, quiet, opens); err != nil {
			break
		}
		if beside, err = b.load(ctx, full, opens); err != nil {
			break
		}
		record(metricAlone, unitOpen, alone.OpenedRate)
		record(metricBeside, unitOpen, beside.OpenedRate)
	}
	if err = errors.Join(err, release(), leave()); err != nil {
		b.results.fail(r.name, b.ours, err)
	}
	return nil
}
