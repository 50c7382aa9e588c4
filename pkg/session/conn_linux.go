package session

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// errClosedByPeer says that the peer of a Unix socket is gone, for which the kernel has no error.
var errClosedByPeer = errors.New("it has closed the connection")

// peerGone returns why the peer of a socket is gone: its host has reset the connection or answers
// no more, or the peer has closed its Unix socket. No half of the socket may have been ended here.
func peerGone(fd uintptr) error {
	fds := []unix.PollFd{{Fd: int32(fd)}}  // POLLERR and POLLHUP are always asked for
	if n, _ := unix.Poll(fds, 0); n <= 0 { // the only error is a signal's; the caller looks again
		return nil
	}
	if err := socketError(fd); err != nil {
		return err
	}
	return errClosedByPeer
}

func (e *rawEnd) unacknowledged() (u unacknowledged) {
	_ = e.conn.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil { // not TCP
			return
		}
		u = unacknowledged{
			some:   info.Unacked > 0 || info.Notsent_bytes > 0,
			silent: time.Duration(info.Last_ack_recv) * time.Millisecond,
			tries:  int(max(info.Retransmits, info.Probes)),
		}
	})
	return u
}
