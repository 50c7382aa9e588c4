//go:build linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"
)

// The end server of these tests (P5) reads a request of 16 bytes: a kind, and
// two numbers. What follows depends on the kind.
const (
	kindEcho     = 'e' // echoes until the end, then closes
	kindExchange = 'x' // sends a pattern of b bytes while it checks one of a bytes; then closes
	kindSilent   = 's' // reads nothing, sends nothing, until the connection is reset
)

// A halfCloser is what TCP and Unix connections have in common beyond net.Conn.
type halfCloser interface{ CloseWrite() error }

type request struct {
	kind byte
	a, b uint64
}

func (r request) bytes() []byte {
	p := make([]byte, 17)
	p[0] = r.kind
	binary.BigEndian.PutUint64(p[1:], r.a)
	binary.BigEndian.PutUint64(p[9:], r.b)
	return p
}

// endServer is P5.
func endServer(c net.Conn) {
	defer func() { _ = c.Close() }()
	head := make([]byte, 17)
	if _, err := io.ReadFull(c, head); err != nil {
		return
	}
	a, b := binary.BigEndian.Uint64(head[1:]), binary.BigEndian.Uint64(head[9:])
	switch head[0] {
	case kindEcho:
		_, _ = io.Copy(c, struct{ io.Reader }{c})
		_ = c.(halfCloser).CloseWrite()
	case kindExchange:
		sent := make(chan error, 1)
		go func() { sent <- send(c, 2, b) }()
		err := check(c, 1, a, nil)
		if err == nil {
			err = <-sent
		}
		if err != nil {
			if tcp, ok := c.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0) // the other end is to see that it went wrong
			}
			return
		}
		_ = c.(halfCloser).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	case kindSilent:
		select {}
	}
}

// probe sends a few bytes through an echo and back, with the end.
func probe(c *net.TCPConn) error {
	if _, err := c.Write(append(request{kind: kindEcho}.bytes(), "hello"...)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != "hello" {
		return fmt.Errorf("echoed %q", got)
	}
	return nil
}

// pattern fills p with the bytes of a stream at an offset that is a multiple of
// 8: each word tells seed and place.
func pattern(p []byte, seed, offset uint64) {
	for i := 0; i+8 <= len(p); i += 8 {
		x := (offset+uint64(i))*0x9e3779b97f4a7c15 + seed
		x ^= x >> 29
		binary.LittleEndian.PutUint64(p[i:], x*0xbf58476d1ce4e5b9)
	}
}

// send writes n bytes (a multiple of 8) of the pattern.
func send(c io.Writer, seed, n uint64) error {
	p := make([]byte, 64<<10)
	for offset := uint64(0); offset < n; {
		part := p[:min(uint64(len(p)), n-offset)]
		pattern(part, seed, offset)
		if _, err := c.Write(part); err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", offset, n, err)
		}
		offset += uint64(len(part))
	}
	return nil
}

// A clock notes when bytes arrive, so that pauses can be measured.
type clock struct {
	last    atomic.Int64 // when the last bytes came, Unix nanoseconds
	bytes   atomic.Uint64
	since   atomic.Int64 // gaps count from here on
	longest atomic.Int64 // the longest gap, nanoseconds
}

func (k *clock) tick(n int) {
	if k == nil {
		return
	}
	now := time.Now().UnixNano()
	last := k.last.Swap(now)
	k.bytes.Add(uint64(n))
	since := k.since.Load()
	if since == 0 || last == 0 {
		return
	}
	if gap := now - max(last, since); gap > k.longest.Load() {
		k.longest.Store(gap)
	}
}

// from begins to count gaps, from now on.
func (k *clock) from(t time.Time) {
	k.longest.Store(0)
	k.since.Store(t.UnixNano())
}

// goesOn tells whether bytes have come since then.
func (k *clock) goesOn() bool { return k.last.Load() > k.since.Load() }

func (k *clock) pause() time.Duration { return time.Duration(k.longest.Load()) }

// check reads n bytes (a multiple of 8) of the pattern.
func check(c io.Reader, seed, n uint64, k *clock) error {
	p, want := make([]byte, 64<<10), make([]byte, 64<<10)
	for offset := uint64(0); offset < n; {
		part := p[:min(uint64(len(p)), n-offset)]
		for got := 0; got < len(part); {
			m, err := c.Read(part[got:])
			got += m
			k.tick(m)
			if err != nil && got < len(part) {
				if errors.Is(err, io.EOF) {
					err = io.ErrUnexpectedEOF
				}
				return fmt.Errorf("after %d of %d bytes: %w", offset+uint64(got), n, err)
			}
		}
		pattern(want[:len(part)], seed, offset)
		if string(want[:len(part)]) != string(part) {
			return fmt.Errorf("the bytes between %d and %d are wrong", offset, offset+uint64(len(part)))
		}
		offset += uint64(len(part))
	}
	return nil
}

// exchange is P1 of a kindExchange: up bytes up while down bytes come down.
func exchange(c net.Conn, up, down uint64, k *clock) error {
	if _, err := c.Write(request{kindExchange, up, down}.bytes()); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		err := send(c, 1, up)
		if err == nil {
			err = c.(halfCloser).CloseWrite()
		}
		sent <- err
	}()
	if err := check(c, 2, down, k); err != nil {
		return fmt.Errorf("down: %w", err)
	}
	if err := <-sent; err != nil {
		return fmt.Errorf("up: %w", err)
	}
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("instead of the end: %d bytes, %w", n, err)
	}
	return nil
}
