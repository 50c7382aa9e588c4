//go:build unix && !linux

package session

// peerGone tells why the peer is gone, as far as the socket's pending error says so.
func peerGone(fd uintptr) error { return socketError(fd) }

func (*rawEnd) unacknowledged() unacknowledged { return unacknowledged{} }
