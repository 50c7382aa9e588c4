//go:build linux

// Command bench measures ptthqd. For each tunnel it starts a chain of three processes, client,
// relay and server, with fresh keys and configs, and sends load through it. Direct TCP, the plain
// chain (bench/plainchain) and any other tunnel are measured in the same run. Rounds are
// interleaved, so that other work of the machine falls on all tunnels alike. Figures are medians,
// with the least and the greatest.
//
//	make bench                                # about ten minutes
//	make bench BENCHFLAGS='-quick'            # under one, as a smoke test
//	make bench BENCHFLAGS='-full -o bench.json bench/tunnels/ssh'
//	bin/bench -rows rtt,open-16 -rounds 9
//
// The arguments are definition directories of further tunnels. Such a directory has three
// executables: relay, server and client. The bench starts them in this order in one scratch
// directory. They stay in the foreground and end on SIGTERM. Their environment says what to do:
//
//	BENCH_RELAY_ADDRESS, BENCH_RELAY_PORT   where the relay listens, TCP or UDP
//	BENCH_TARGET_PORT                       the port to which the server connects, on its 127.0.0.1
//	BENCH_LISTEN_PORT                       where the client listens, on its 127.0.0.1
//	BENCH_TUNNEL                            the definition directory
//
// An executable named setup, if there is one, runs to its end before them, to make keys and
// configs. tunnels/ptthqd and tunnels/plain are such definitions.
//
// Three more forms are for the bench itself, and for measuring by hand: `bench serve` is the server
// behind a tunnel, `bench load MODE` the load in front of it, and `bench peers` connects idle
// peers.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	var err error
	switch verb := append(os.Args, "", "")[1]; verb {
	case "serve":
		err = errors.Join(manyFiles(), runServe(os.Args[2:]))
	case "load":
		_ = manyFiles()
		err = runLoad(os.Args[2:])
	case "peers":
		_ = manyFiles()
		err = runPeers(os.Args[2:])
	default:
		err = run(os.Args[1:], os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options holds the values of the flags.
type options struct {
	rows       string
	rounds     int
	wideRounds int
	seconds    float64
	wide       float64
	idle       int
	peers      int
	settle     time.Duration
	wan        string
	output     string
	quick      bool
	full       bool
	programs   string
	ours       string
	plain      string
}

func (o *options) flags(set *flag.FlagSet) {
	set.StringVar(&o.rows, "rows", "all",
		"comma-separated `ROWS` to measure, as listed below; a * at the end stands for any rest")
	set.IntVar(&o.rounds, "rounds", 3, "rounds, whose medians are reported")
	set.IntVar(&o.wideRounds, "wide-rounds", 1, "rounds of the wide-area rows")
	set.Float64Var(&o.seconds, "seconds", 1, "how long one measurement takes")
	set.Float64Var(&o.wide, "wide-seconds", 4, "how long one of a wide-area row takes")
	set.IntVar(&o.idle, "idle", 1000, "idle connections to hold for their memory")
	set.IntVar(&o.peers, "peers", 1000, "idle peers to connect to the relay for their memory")
	set.DurationVar(&o.settle, "settle", 45*time.Second,
		"how long connections and peers are idle before memory is read")
	set.StringVar(&o.wan, "wan", "../shared/tools/wan",
		"`DIRECTORY` of the emulator of wide-area networks; it needs root")
	set.StringVar(&o.output, "o", "", "write all figures to `FILE`, as JSON")
	set.BoolVar(&o.quick, "quick", false,
		"a smoke test: one short round of each row, no wide area, few idle connections")
	set.BoolVar(&o.full, "full", false,
		"five rounds of two seconds, 10,000 idle connections, 5,000 idle peers")
	set.StringVar(&o.programs, "programs", "bin", "`DIRECTORY` of ptthqd and plainchain")
	set.StringVar(&o.ours, "ptthqd", "bench/tunnels/ptthqd", "definition `DIRECTORY` of ptthqd")
	set.StringVar(&o.plain, "plain", "bench/tunnels/plain", "definition `DIRECTORY` of the plain chain")
	set.Usage = func() {
		fmt.Fprintf(set.Output(), "usage: bench [flags] [DEFINITION DIRECTORY...]\n\nflags:\n")
		set.PrintDefaults()
		fmt.Fprintf(set.Output(), "\nrows:\n")
		for _, r := range allRows {
			fmt.Fprintf(set.Output(), "  %-14s %s\n", r.name, r.about)
		}
	}
}

// preset applies -quick and -full to the flags that were not given.
func (o *options) preset(set *flag.FlagSet) {
	given := map[string]bool{}
	set.Visit(func(f *flag.Flag) { given[f.Name] = true })
	preset := func(name, value string) {
		if !given[name] {
			_ = set.Set(name, value)
		}
	}
	if o.quick {
		preset("rows", "bulk*,rtt,loaded,open*,idle,peers,crowded")
		preset("rounds", "1")
		preset("seconds", "0.3")
		preset("idle", "200")
		preset("peers", "50")
		preset("settle", "500ms")
	}
	if o.full {
		preset("rounds", "5")
		preset("wide-rounds", "3")
		preset("seconds", "2")
		preset("wide-seconds", "8")
		preset("idle", "10000")
		preset("peers", "5000")
		preset("settle", "60s")
	}
}

// A bench is one run.
type bench struct {
	options
	self     string // this program
	scratch  string
	programs string
	tunnels  []tunnel
	ours     tunnel
	results  results
}

func run(args []string, stdout io.Writer) error {
	b := new(bench)
	set := flag.NewFlagSet("bench", flag.ExitOnError)
	b.flags(set)
	_ = set.Parse(args)
	b.preset(set)
	if err := manyFiles(); err != nil {
		b.say("%v", err)
	}
	rows, err := chooseRows(b.rows)
	if err != nil {
		return err
	}
	if err := b.prepare(set.Args()); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if b.scratch, err = os.MkdirTemp("", "ptthqd-bench-"); err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(b.scratch) }()

	began := time.Now()
	b.results.begin(b.tunnels, b.options)
	err = b.measure(ctx, rows)
	b.results.Seconds = time.Since(began).Seconds()
	b.results.judge(b.ours.name)
	b.results.markdown(stdout)
	if b.output != "" {
		err = errors.Join(err, b.write())
	}
	if failed := len(b.results.Failures); err == nil && failed > 0 {
		err = fmt.Errorf("%d measurements failed; they are listed above", failed)
	}
	return err
}

// prepare finds the programs and opens the tunnels.
func (b *bench) prepare(dirs []string) (err error) {
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.programs, err = filepath.Abs(b.options.programs); err != nil {
		return err
	}
	for _, program := range []string{"ptthqd", "plainchain"} {
		if !executable(filepath.Join(b.programs, program)) {
			return fmt.Errorf("%s is missing: `make bench` builds it", filepath.Join(b.programs, program))
		}
	}
	if b.ours, err = openTunnel(b.options.ours); err != nil {
		return err
	}
	b.tunnels = []tunnel{direct}
	for _, dir := range append([]string{b.plain, b.options.ours}, dirs...) {
		t, err := openTunnel(dir)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(b.tunnels, func(other tunnel) bool { return other.name == t.name }) {
			return fmt.Errorf("two tunnels are named %s", t.name)
		}
		b.tunnels = append(b.tunnels, t)
	}
	return nil
}

func (b *bench) write() error {
	text, err := json.MarshalIndent(&b.results, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(b.output, append(text, '\n'), 0o644)
}

// say prints progress to standard error.
func (b *bench) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// machine describes the machine: processor, cores, kernel, Go and the limit of receive buffers.
func machine() string {
	var parts []string
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if name, model, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				parts = append(parts, strings.TrimSpace(model))
				break
			}
		}
	}
	parts = append(parts, fmt.Sprintf("%d cores", runtime.NumCPU()))
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		parts = append(parts, "Linux "+strings.TrimSpace(string(release)))
	}
	parts = append(parts, runtime.Version())
	if most, err := os.ReadFile("/proc/sys/net/core/rmem_max"); err == nil {
		parts = append(parts, "rmem_max "+strings.TrimSpace(string(most)))
	}
	return strings.Join(parts, ", ")
}
