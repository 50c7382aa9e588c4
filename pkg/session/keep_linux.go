package session

import (
	"errors"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"ptthqd/pkg/nowait"
)

// A keeper leaves the last byte that a Unix socket's peer has sent unread in the socket, though the
// byte is forwarded. Unix sockets have no reset. But if one is closed with a byte unread, or its
// process dies, the peer's next read fails with ECONNRESET instead of finding an end. The keeper
// reads by peeking behind the byte that is kept (SO_PEEK_OFF).
type keeper struct {
	mu   sync.Mutex // for read and letGo alone
	kept bool
	came int // bytes that have come since nothing was there; above keepMost none is kept
}

// keepMost is how many bytes may have come at once for the last one to be kept. The kernel counts
// all that was sent in one piece against the sender's buffer until the last byte is read, and lets
// poll wait until three quarters of that buffer are free.
const keepMost = 1 << 10

// newKeeper returns nil if the kernel can't do it.
func newKeeper(conn syscall.RawConn) *keeper {
	var err error
	if e := conn.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0) }); e != nil || err != nil {
		return nil
	}
	return new(keeper)
}

// read reads what is there, as nowait.Read does, behind the byte that is kept.
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
	if k.kept { // the byte kept so far isn't needed: there are newer ones, or the end
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

// letGo reads the byte that is kept.
func (k *keeper) letGo(fd uintptr) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept {
		var old [1]byte
		_ = take(fd, old[:])
		k.kept = false
	}
}
