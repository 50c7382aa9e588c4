//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// The load generator is both ends of a forwarded connection: P1 in front of a tunnel (`bench load`)
// and P5 behind it (`bench serve`). Each is a process of its own, so that it can run in the network
// namespace of another host, and so that its memory is not counted with another's.

// A connection begins with a request of requestSize bytes: an operation, and its time or amount.
//
//	echo      the server returns each byte
//	upload    the server answers with a byte; the client sends blocks; the server answers with the
//	          number of bytes that it has received
//	download  the server answers with a byte, waits for one, and sends blocks
//
// The first byte of a block is 1 in the last block, so that nothing depends on the tunnel's
// half-close.
const (
	opEcho     = 'E'
	opUpload   = 'U'
	opDownload = 'D'

	requestSize = 17
	receiptSize = 8
	blockSize   = 64 << 10
)

// An amount is what a transfer sends: blocks for a time or, if bytes is not 0, so many bytes in
// whole blocks.
type amount struct {
	time  time.Duration
	bytes uint64
}

func request(op byte, a amount) []byte {
	head := binary.BigEndian.AppendUint64([]byte{op}, uint64(a.time))
	return binary.BigEndian.AppendUint64(head, a.bytes)
}

// stall is the longest time that a connection may make no progress.
const stall = 2 * time.Minute

// sendBlocks sends the amount, at least one block.
func sendBlocks(conn net.Conn, a amount) error {
	block := make([]byte, blockSize)
	for i := range block {
		block[i] = byte(i * 7) // not checked here; tests check that all bytes arrive unchanged
	}
	end := time.Now().Add(a.time)
	for sent := uint64(blockSize); ; sent += blockSize {
		block[0] = 0
		last := !time.Now().Before(end)
		if a.bytes > 0 {
			last = sent >= a.bytes
		}
		if last {
			block[0] = 1
		}
		_ = conn.SetWriteDeadline(time.Now().Add(stall))
		if _, err := conn.Write(block); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		if last {
			return nil
		}
	}
}

// receiveBlocks reads blocks up to the last one and returns the number of bytes.
func receiveBlocks(conn net.Conn) (got uint64, err error) {
	block := make([]byte, blockSize)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(stall))
		n, err := io.ReadFull(conn, block)
		got += uint64(n)
		if err != nil {
			return got, fmt.Errorf("receive after %d bytes: %w", got, err)
		}
		if block[0] == 1 {
			return got, nil
		}
	}
}

// runServe is `bench serve`. It prints its port and answers connections for ever.
func runServe(args []string) error {
	flags := flag.NewFlagSet("bench serve", flag.ExitOnError)
	listen := flags.String("listen", "127.0.0.1:0", "`ADDRESS` to listen on")
	_ = flags.Parse(args)
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(conn)
	}
}

func answer(conn net.Conn) {
	defer conn.Close()
	head := make([]byte, requestSize)
	if _, err := io.ReadFull(conn, head); err != nil {
		return
	}
	switch head[0] {
	case opEcho:
		echo(conn)
	case opUpload:
		if _, err := conn.Write(head[:1]); err != nil {
			return
		}
		if got, err := receiveBlocks(conn); err == nil {
			_, _ = conn.Write(binary.BigEndian.AppendUint64(nil, got))
		}
	case opDownload:
		if exchange(conn, head[:1]) == nil {
			d, bytes := binary.BigEndian.Uint64(head[1:]), binary.BigEndian.Uint64(head[9:])
			_ = sendBlocks(conn, amount{time.Duration(d), bytes})
		}
	}
}

func echo(conn net.Conn) {
	buffer := make([]byte, 2048)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if _, err := conn.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// load is a measurement, as the flags of `bench load` describe it.
type load struct {
	to      string
	mode    string
	seconds float64 // how long to measure
	warmup  float64 // loaded: how long the bulk runs before the first message
	streams int     // bulk and loaded: at once
	kib     int     // bulk: what each stream sends, instead of sending for a time
	gate    bool    // bulk: print a line when all connections are open, and wait for one
	down    bool    // bulk and loaded: the server sends
	atOnce  int     // connect and hold: connections being opened at the same time
	count   int     // hold: connections to hold
}

func (l *load) flags(set *flag.FlagSet) {
	set.StringVar(&l.to, "to", "127.0.0.1:9000", "`ADDRESS` of the tunnel's client, or of bench serve itself")
	set.Float64Var(&l.seconds, "seconds", 2, "how long to measure")
	set.Float64Var(&l.warmup, "warmup", 0.5, "loaded: seconds of bulk before the first message")
	set.IntVar(&l.streams, "streams", 1, "bulk, loaded: streams at once")
	set.IntVar(&l.kib, "kib", 0, "bulk: KiB that each stream carries, instead of sending for a time")
	set.BoolVar(&l.gate, "gate", false, "bulk: print a line when all connections are open, "+
		"and begin when standard input has a line or ends")
	set.BoolVar(&l.down, "down", false, "bulk, loaded: towards this end")
	set.IntVar(&l.atOnce, "at-once", 16, "connect, hold: connections being opened at the same time")
	set.IntVar(&l.count, "count", 1000, "hold: connections to hold")
}

// args returns the arguments that make another process do this measurement.
func (l load) args() []string {
	return []string{
		"load", "-to", l.to, "-seconds", fmt.Sprint(l.seconds), "-warmup", fmt.Sprint(l.warmup),
		"-streams", fmt.Sprint(l.streams), "-kib", fmt.Sprint(l.kib),
		fmt.Sprintf("-gate=%t", l.gate), fmt.Sprintf("-down=%t", l.down),
		"-at-once", fmt.Sprint(l.atOnce), "-count", fmt.Sprint(l.count), l.mode,
	}
}

// figures is the result of `bench load`, which prints it as JSON. Rates are per second, times in
// milliseconds.
type figures struct {
	MiB        float64 `json:"mib,omitempty"`
	MiBRate    float64 `json:"mib_rate,omitempty"`
	Opened     int     `json:"opened,omitempty"`
	OpenedRate float64 `json:"opened_rate,omitempty"`
	Alive      int     `json:"alive,omitempty"`
	P50        float64 `json:"p50_ms,omitempty"` // round trip, or time to the first byte
	P99        float64 `json:"p99_ms,omitempty"`
	Failures   int     `json:"failures,omitempty"`
	Error      string  `json:"error,omitempty"` // the first one
}

// runLoad is `bench load`. It does one measurement and prints its figures.
func runLoad(args []string) error {
	var l load
	flags := flag.NewFlagSet("bench load", flag.ExitOnError)
	l.flags(flags)
	_ = flags.Parse(args)
	l.mode = flags.Arg(0)
	modes := map[string]func() figures{
		"probe": l.probe, "bulk": l.bulk, "ping": l.ping, "loaded": l.loaded,
		"connect": l.connect, "hold": l.hold,
	}
	measure, known := modes[l.mode]
	if !known {
		return fmt.Errorf("there is no mode %q: probe, bulk, ping, loaded, connect or hold", l.mode)
	}
	return json.NewEncoder(os.Stdout).Encode(measure())
}

func (l load) duration() time.Duration { return seconds(l.seconds) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// failed counts an error and keeps the first one.
func (f *figures) failed(err error) {
	f.Failures++
	if f.Error == "" {
		f.Error = err.Error()
	}
}

func (l load) dial(patience time.Duration) (net.Conn, error) {
	return (&net.Dialer{Timeout: patience}).DialContext(context.Background(), "tcp", l.to)
}

// open opens a connection, sends the opening, and waits for the first byte that comes back.
func (l load) open(opening []byte) (net.Conn, error) {
	conn, err := l.dial(stall)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(stall))
	if _, err = conn.Write(opening); err == nil {
		_, err = io.ReadFull(conn, opening[:1])
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// openEcho opens an echo connection and waits for one byte to come back.
func (l load) openEcho() (net.Conn, error) { return l.open(append(request(opEcho, amount{}), 1)) }

func exchange(conn net.Conn, message []byte) error {
	_ = conn.SetDeadline(time.Now().Add(stall))
	if _, err := conn.Write(message); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, message)
	return err
}

// probe tests whether a byte comes back through the tunnel within two seconds.
func (l load) probe() (f figures) {
	conn, err := l.dial(time.Second)
	if err == nil {
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
		message := append(request(opEcho, amount{}), 1)
		if _, err = conn.Write(message); err == nil {
			_, err = io.ReadFull(conn, message[:1])
		}
	}
	if err != nil {
		f.failed(err)
		return f
	}
	f.Opened = 1
	return f
}

// bulk measures the rate of transfers. It counts bytes that have reached their receiver, and the
// time from when all connections are open to the last byte.
func (l load) bulk() (f figures) {
	conns := make([]net.Conn, l.streams)
	defer func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	}()
	what := amount{l.duration(), uint64(l.kib) << 10}
	op, transfer := byte(opUpload), upload
	if l.down {
		op, transfer = opDownload, download
	}
	l.each(&f, func(i int) (err error) {
		conns[i], err = l.open(request(op, what))
		return err
	})
	if f.Error != "" {
		return f
	}
	if l.gate {
		fmt.Println("ready")
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
	var bytes atomic.Uint64
	start := time.Now()
	l.each(&f, func(i int) error {
		got, err := transfer(conns[i], what)
		bytes.Add(got)
		return err
	})
	f.MiB = float64(bytes.Load()) / (1 << 20)
	f.MiBRate = f.MiB / time.Since(start).Seconds()
	return f
}

// each calls do for all streams at once and waits for all calls.
func (l load) each(f *figures, do func(i int) error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range l.streams {
		all.Go(func() {
			if err := do(i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				f.failed(err)
			}
		})
	}
	all.Wait()
}

func upload(conn net.Conn, a amount) (uint64, error) {
	if err := sendBlocks(conn, a); err != nil {
		return 0, err
	}
	receipt := make([]byte, receiptSize)
	_ = conn.SetReadDeadline(time.Now().Add(stall))
	if _, err := io.ReadFull(conn, receipt); err != nil {
		return 0, fmt.Errorf("receipt: %w", err)
	}
	return binary.BigEndian.Uint64(receipt), nil
}

func download(conn net.Conn, _ amount) (uint64, error) {
	if _, err := conn.Write([]byte{opDownload}); err != nil {
		return 0, err
	}
	return receiveBlocks(conn)
}

// ping measures round trips of 64 bytes, one at a time.
func (l load) ping() (f figures) {
	conn, err := l.openEcho()
	if err != nil {
		f.failed(err)
		return f
	}
	defer conn.Close()
	message := make([]byte, 64)
	var samples []time.Duration
	for end := time.Now().Add(l.duration()); time.Now().Before(end); {
		start := time.Now()
		if err := exchange(conn, message); err != nil {
			f.failed(err)
			break
		}
		samples = append(samples, time.Since(start))
	}
	f.distribution(samples)
	return f
}

func (f *figures) distribution(samples []time.Duration) {
	if len(samples) == 0 {
		return
	}
	slices.Sort(samples)
	at := func(quantile float64) float64 {
		return samples[int(quantile*float64(len(samples)-1)+0.5)].Seconds() * 1000
	}
	f.P50, f.P99 = at(0.50), at(0.99)
}

// loaded measures round trips beside bulk transfers, which begin before and end after them.
func (l load) loaded() figures {
	background := l
	background.seconds = l.warmup + l.seconds + 0.2
	var transferred figures
	var work sync.WaitGroup
	work.Go(func() { transferred = background.bulk() })
	<-time.After(seconds(l.warmup))
	f := l.ping()
	work.Wait()
	f.MiB, f.MiBRate = transferred.MiB, transferred.MiBRate
	f.Failures += transferred.Failures
	if f.Error == "" {
		f.Error = transferred.Error
	}
	return f
}

// connect measures opening: a connection, one byte there and back, close.
func (l load) connect() (f figures) {
	var mu sync.Mutex
	var samples []time.Duration
	var all sync.WaitGroup
	start := time.Now()
	end := start.Add(l.duration())
	for range l.atOnce {
		all.Go(func() {
			for time.Now().Before(end) {
				began := time.Now()
				conn, err := l.openEcho()
				took := time.Since(began)
				mu.Lock()
				if err != nil {
					f.failed(err)
				} else {
					samples = append(samples, took)
				}
				mu.Unlock()
				if err == nil {
					conn.Close()
				}
			}
		})
	}
	all.Wait()
	f.Opened = len(samples)
	f.OpenedRate = float64(len(samples)) / time.Since(start).Seconds()
	f.distribution(samples)
	return f
}

// hold opens connections, prints a line, and holds them silent until it has read a line. Then it
// checks that each still echoes.
func (l load) hold() (f figures) {
	conns := l.openMany(&f)
	f.Opened = len(conns)
	fmt.Println("holding", len(conns))
	_, _ = os.Stdin.Read(make([]byte, 1))
	f.Alive = l.alive(conns)
	if f.Alive < f.Opened {
		f.failed(errors.New("some connections that were held have died"))
	}
	for _, conn := range conns {
		conn.Close()
	}
	return f
}

// openMany opens l.count connections. It stops at the first failure: a tunnel at its limit would
// make each further connection wait.
func (l load) openMany(f *figures) (conns []net.Conn) {
	var mu sync.Mutex
	var begun atomic.Int64
	var failed atomic.Bool
	var all sync.WaitGroup
	for range l.atOnce {
		all.Go(func() {
			for begun.Add(1) <= int64(l.count) && !failed.Load() {
				conn, err := l.openEcho()
				mu.Lock()
				if err != nil {
					failed.Store(true)
					f.failed(err)
				} else {
					conns = append(conns, conn)
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return conns
}

// alive returns the number of connections that echo a byte.
func (l load) alive(conns []net.Conn) int {
	var alive, next atomic.Int64
	var all sync.WaitGroup
	for range l.atOnce {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(conns); i = int(next.Add(1)) - 1 {
				if exchange(conns[i], []byte{1}) == nil {
					alive.Add(1)
				}
			}
		})
	}
	all.Wait()
	return int(alive.Load())
}
