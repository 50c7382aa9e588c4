package session

import (
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/nowait"
)

// A keeper keeps the last byte of what a Unix socket's peer has sent unread in the socket,
// though it is forwarded. There is no reset on Unix sockets; but where one is closed with
// something unread, or its process dies, the peer's next read fails with ECONNRESET
// instead of finding an end. It reads by peeking behind what is kept (SO_PEEK_OFF).
type keeper struct {
	mu   sync.Mutex // of letGo against a read; nobody else may wait for it
	kept bool
	came int // how much has come since nothing was there; of more than keepMost nothing is kept
}

// keepMost is how much may have come at once for its last byte to be kept, in bytes. The
// kernel counts all that was sent in one piece against the sender's buffer until the last
// byte is read, and lets poll wait for three quarters of that to be free.
const keepMost = 1 << 10

// newKeeper returns nil where the kernel can't do it.
func newKeeper(conn syscall.RawConn) *keeper {
	var err error
	if e := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0) }); e != nil || err != nil {
		return nil
	}
	return new(keeper)
}

// read reads what is there, as nowait.Read does, but for what is kept.
func (k *keeper) read(fd uintptr, p []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	look := nowait.Peek
	if k.came > keepMost {
		look = nowait.Read
	}
	n, err := look(fd, p)
	switch {
	case err != nil:
		k.came = 0 // as a rule, nothing is there
		return n, err
	case k.came > keepMost:
		return n, nil
	}
	if k.kept { // what has come, or the end, takes its place
		var old [1]byte
		if err := take(fd, old[:]); err != nil {
			return 0, err
		}
		k.kept = false
	}
	k.came += n
	k.kept = n > 0 && k.came <= keepMost
	if k.kept {
		return n, take(fd, p[:n-1])
	}
	return n, take(fd, p[:n])
}

// take reads all of p, which is there.
func take(fd uintptr, p []byte) error {
	for len(p) > 0 {
		n, err := nowait.Read(fd, p)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return unix.EIO
		}
		p = p[n:]
	}
	return nil
}

// letGo takes what is kept.
func (k *keeper) letGo(fd uintptr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept {
		var old [1]byte
		_ = take(fd, old[:])
		k.kept = false
	}
}
