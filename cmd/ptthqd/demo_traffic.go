package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// P5 of the demo is a small web server, so that curl can use it: GET / says hello, GET /N returns N
// bytes, and PUT returns its body.

// demoHead bounds the head of a request, in bytes.
const demoHead = 16 << 10

// serveDemo serves until l is closed, and returns when all its connections have ended.
func serveDemo(l net.Listener) {
	server := &http.Server{
		MaxHeaderBytes:    demoHead,
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch n, err := strconv.ParseInt(r.URL.Path[1:], 10, 64); {
			case r.Method == http.MethodPut:
				echo(w, r)
			case err == nil && n >= 0:
				w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
				_, _ = io.Copy(w, io.LimitReader(newNoise(), n))
			default:
				fmt.Fprintf(w, "Hello from P5, the TCP server, to %s.\nThese bytes came through "+
					"a server, a relay and a client of ptthqd.\n", r.RemoteAddr)
			}
		}),
	}
	_ = server.Serve(l) // until l is closed
	_ = server.Close()
}

// echo returns the body of a request while it arrives.
func echo(w http.ResponseWriter, r *http.Request) {
	// A client that can't do this only loses the echo.
	_ = http.NewResponseController(w).EnableFullDuplex()
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			_ = http.NewResponseController(w).Flush()
		}
		if err != nil {
			return
		}
	}
}

// noise is an endless sequence of bytes, the same each time. It has no period, so a lost or doubled
// piece changes the checksum.
type noise struct{ source *rand.ChaCha8 }

func newNoise() noise { return noise{rand.NewChaCha8([32]byte{30, 38, 0})} }

func (n noise) Read(p []byte) (int, error) { return n.source.Read(p) }

// roundTrips sends small requests over one connection and returns how long each took.
func roundTrips(ctx context.Context, address string, n int) ([]time.Duration, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	answers := bufio.NewReader(conn)
	trips := make([]time.Duration, 0, n)
	for range n {
		begun := time.Now()
		if _, err := io.WriteString(conn, "GET /16 HTTP/1.1\r\nHost: demo\r\n\r\n"); err != nil {
			return nil, fmt.Errorf("small messages: %w", err)
		}
		answer, err := http.ReadResponse(answers, nil)
		if err != nil {
			return nil, fmt.Errorf("small messages: %w", err)
		}
		if _, err := io.Copy(io.Discard, answer.Body); err != nil {
			return nil, fmt.Errorf("small messages: %w", err)
		}
		trips = append(trips, time.Since(begun))
	}
	return trips, nil
}

// transferred is the result of a transfer both ways.
type transferred struct {
	amount   int64
	took     time.Duration
	up, down time.Duration // until the last byte in each direction
	gap      time.Duration // the longest between two bytes that arrived, either way
}

func (t *transferred) String() string {
	rate := func(d time.Duration) string {
		return fmt.Sprintf("%.0f MiB/s", float64(t.amount)/(1<<20)/d.Seconds())
	}
	return fmt.Sprintf("%.1f s; up %s, down %s; both SHA-256 checksums are right", t.took.Seconds(),
		rate(t.up), rate(t.down))
}

// transferBoth sends amount bytes up over one connection and down over another, at once, and checks
// them. In the middle it calls interrupt.
func transferBoth(ctx context.Context, address string, amount int64, interrupt func(context.Context) error) (*transferred, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	want := sha256.New()
	if _, err := io.Copy(want, io.LimitReader(newNoise(), amount)); err != nil {
		return nil, err
	}
	var arrived, half atomic.Int64
	half.Store(amount / 2) // of the two together: a quarter of the way
	middle := make(chan struct{})
	progress := func(n int) {
		if all := arrived.Add(int64(n)); all >= half.Load() && all-int64(n) < half.Load() {
			close(middle)
		}
	}

	result := &transferred{amount: amount}
	begun := time.Now()
	var work sync.WaitGroup
	run := func(what, method, path string, took *time.Duration) *meter {
		m := &meter{hash: sha256.New(), progress: progress, last: begun}
		work.Go(func() {
			err := fetch(ctx, address, method, path, amount, m)
			*took = time.Since(begun)
			if err == nil && string(m.hash.Sum(nil)) != string(want.Sum(nil)) {
				err = errors.New("the checksum is wrong")
			}
			if err != nil {
				cancel(fmt.Errorf("%s: %w", what, err))
			}
		})
		return m
	}
	// The upload is measured where it comes back: P5 returns it.
	up := run("upload", http.MethodPut, "/", &result.up)
	down := run("download", http.MethodGet, "/"+strconv.FormatInt(amount, 10), &result.down)
	if interrupt != nil {
		select {
		case <-middle:
			if err := interrupt(ctx); err != nil {
				cancel(err)
			}
		case <-ctx.Done():
		}
	}
	work.Wait()
	result.took = time.Since(begun)
	result.gap = max(up.gap, down.gap)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return result, nil
}

// meter counts the bytes that arrive.
type meter struct {
	hash     hash.Hash
	progress func(n int)
	last     time.Time
	gap      time.Duration
}

func (m *meter) Write(p []byte) (int, error) {
	now := time.Now()
	m.gap, m.last = max(m.gap, now.Sub(m.last)), now
	m.progress(len(p))
	return m.hash.Write(p)
}

// fetch makes one request over a connection of its own; with PUT it sends amount bytes and takes
// their echo.
func fetch(ctx context.Context, address, method, path string, amount int64, into io.Writer) error {
	var body io.Reader
	if method == http.MethodPut {
		body = io.LimitReader(newNoise(), amount)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		request.ContentLength = amount
	}
	transport := &http.Transport{DisableKeepAlives: true}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	n, err := io.Copy(into, answer.Body)
	if err == nil && n != amount {
		err = fmt.Errorf("%d bytes arrived of %d", n, amount)
	}
	return err
}
