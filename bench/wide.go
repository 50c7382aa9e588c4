//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// conditions describes a wide area. Each link carries 200 Mbit/s with a queue of 50 ms in each
// direction.
type conditions struct {
	roundTrip time.Duration // between client and server, over the relay and directly
	loss      string        // of each link, in each direction
}

var wideConditions = map[string]conditions{
	rowWide + "40":       {40 * time.Millisecond, "0%"},
	rowWide + "40-loss":  {40 * time.Millisecond, "1%"},
	rowWide + "100-loss": {100 * time.Millisecond, "0.1%"},
}

// measureWide measures the wide-area rows. It skips them without an emulator or without root.
func (b *bench) measureWide(ctx context.Context, rows []row) error {
	if len(rows) == 0 {
		return nil
	}
	emulator, err := b.buildEmulator(ctx)
	if err != nil {
		b.results.skip("the wide-area rows are skipped: %v", err)
		return nil
	}
	for i, r := range rows {
		b.say("%s: %s", r.name, r.about)
		s, remove, err := b.wideArea(ctx, emulator, i, wideConditions[r.name])
		if err != nil {
			b.results.skip("%s is skipped: %v", r.name, err)
			continue
		}
		chains, stop := b.launchAll(ctx, s)
		r.through = wideRow
		err = b.interleave(ctx, []row{r}, chains, b.wideRounds)
		stop()
		if err = errors.Join(err, remove()); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) buildEmulator(ctx context.Context) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("network namespaces need root")
	}
	if _, err := os.Stat(filepath.Join(b.wan, "go.mod")); err != nil {
		return "", fmt.Errorf("the emulator of wide-area networks is not there (-wan): %w", err)
	}
	program := filepath.Join(b.scratch, "wan")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, ".")
	build.Dir = b.wan
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the emulator of wide-area networks: %w\n%s", err, out)
	}
	return program, nil
}

// wideArea makes a network of three hosts. remove takes it down.
func (b *bench) wideArea(
	ctx context.Context, emulator string, i int, c conditions,
) (_ *site, remove func() error, err error) {
	const tell = `echo $WAN_NS_client $WAN_IP_client $WAN_NS_relay $WAN_IP_relay \
		$WAN_NS_server $WAN_IP_server; exec cat`
	cmd := exec.CommandContext(ctx, emulator, "up",
		"-hosts", strings.Join([]string{clientHost, relayHost, serverHost}, ","),
		"-prefix", fmt.Sprintf("bench%d-%d-", os.Getpid(), i),
		"-subnet", fmt.Sprintf("10.%d.%d", 64+os.Getpid()%64, i),
		"-congestion", congestion(), "-rate", "200mbit", "-queue", "50ms", "-loss", c.loss,
		"-delay", (c.roundTrip / 4).String(),
		"-link", fmt.Sprintf("%s-%s:delay=%v", clientHost, serverHost, c.roundTrip/2),
		"--", "sh", "-c", tell)
	// On an interrupt the emulator takes the network down.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	var complaints strings.Builder
	cmd.Stderr = &complaints
	in, out, err := converse(cmd)
	if err != nil {
		return nil, nil, err
	}
	remove = func() error {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("the emulator of wide-area networks: %w\n%s", err, complaints.String())
		}
		return nil
	}
	line, err := out.ReadString('\n')
	words := strings.Fields(line)
	if err != nil || len(words) != 6 {
		return nil, nil, errors.Join(fmt.Errorf("it printed %q", line), remove())
	}
	s := &site{within: map[string][]string{}, address: map[string]string{}}
	for i, host := range []string{clientHost, relayHost, serverHost} {
		s.within[host] = []string{"ip", "netns", "exec", words[2*i]}
		s.address[host] = words[2*i+1]
	}
	return s, remove, nil
}

// congestion returns TCP's congestion control in a wide area: cubic, as most hosts have, or reno if
// namespaces may not use cubic.
func congestion() string {
	allowed, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
	if slices.Contains(strings.Fields(string(allowed)), "cubic") {
		return "cubic"
	}
	return "reno"
}

// Metrics of the wide-area rows.
const (
	metricUpload  = "1 stream up"
	metricIdleRTT = "round trip, p50"
	metricBusy50  = "round trip beside an upload, p50"
	metricBusy99  = "round trip beside an upload, p99"
)

// wideRow measures an upload, round trips alone and beside an upload, and openings.
func wideRow(ctx context.Context, b *bench, c *chain, record recorder) error {
	f, err := b.load(ctx, c, load{mode: "bulk", seconds: b.wide, streams: 1})
	if err != nil {
		return err
	}
	record(metricUpload, unitRate, f.MiBRate)
	if f, err = b.load(ctx, c, load{mode: "ping", seconds: 1}); err != nil {
		return err
	}
	record(metricIdleRTT, unitTime, f.P50)
	if f, err = b.load(ctx, c, load{mode: "loaded", seconds: b.wide, warmup: 1, streams: 1}); err != nil {
		return err
	}
	record(metricBusy50, unitTime, f.P50)
	record(metricBusy99, unitTime, f.P99)
	if f, err = b.load(ctx, c, load{mode: "connect", seconds: 1.5, atOnce: 1}); err != nil {
		return err
	}
	record(metricFirst50, unitTime, f.P50)
	return nil
}
