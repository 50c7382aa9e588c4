//go:build unix

package nowait_test

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/nowait"
)

func TestSockets(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range pair {
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SetNonblock(fd, true); err != nil {
			t.Fatal(err)
		}
	}
	from, to := uintptr(pair[0]), uintptr(pair[1])
	b := make([]byte, 64<<10)
	if n, err := nowait.Read(to, b); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Error(n, err)
	}
	if n, err := nowait.Write(from, nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	total := 0
	for {
		n, err := nowait.Write(from, sent[total%len(sent):])
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil || n <= 0 || total > 64<<20 {
			t.Fatal(n, err)
		}
		total += n
	}
	for got := 0; got < total; {
		n, err := nowait.Read(to, b[:1000])
		if err != nil || n <= 0 {
			t.Fatal(n, err)
		}
		for i, c := range b[:n] {
			if c != sent[(got+i)%16] {
				t.Fatalf("byte %d is %q", got+i, c)
			}
		}
		got += n
	}
	_ = unix.Shutdown(pair[0], unix.SHUT_WR)
	if n, err := nowait.Read(to, b); n != 0 || err != nil {
		t.Error(n, err)
	}
	if n, err := nowait.Write(from, b); n != 0 || !errors.Is(err, unix.EPIPE) {
		t.Error(n, err)
	}
	if n, err := nowait.Read(1<<30, b); n != 0 || !errors.Is(err, unix.EBADF) {
		t.Error(n, err)
	}
}
