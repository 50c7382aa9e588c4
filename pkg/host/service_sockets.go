package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// systemd hands sockets over by name, never by order: those of socket units under their
// FileDescriptorName=, those that it kept over a restart under storeName.

const storePrefix = "ptthqd-"

// storeName returns the FDNAME of a socket of ours. It is a hash, as an FDNAME can't hold a colon.
func storeName(network, address string) string {
	sum := sha256.Sum256([]byte(network + " " + address))
	return storePrefix + hex.EncodeToString(sum[:8])
}

// IsStored reports whether an FDNAME is that of a socket that was kept over a restart, and not that
// of a socket unit.
func IsStored(name string) bool {
	return strings.HasPrefix(name, storePrefix) && len(name) == len(storePrefix)+16
}

// OfUnit reports whether a place is a socket unit's, "systemd:NAME".
func OfUnit(place string) bool { return strings.HasPrefix(place, "systemd:") }

// FDName returns the FDNAME under which a socket that listens at a place is inherited. network is
// "stream" or "udp"; place is an address, "unix:NAME" or "systemd:NAME".
func FDName(network, place string) string {
	if name, ok := strings.CutPrefix(place, "systemd:"); ok {
		return name
	}
	return storeName(network, place)
}

// Streams returns the inherited listeners of a place. The error says which can't be used.
func (s *Service) Streams(place string) (listeners []net.Listener, err error) {
	files, err := s.take(FDName("stream", place))
	for _, f := range files {
		l, failed := net.FileListener(f)
		_ = f.Close()
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("inherited socket %s: %w", f.Name(), failed))
			continue
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		listeners = append(listeners, l)
	}
	return listeners, err
}

// Packets returns the inherited UDP sockets of a place. The error says which can't be used.
func (s *Service) Packets(place string) (conns []net.PacketConn, err error) {
	files, err := s.take(FDName("udp", place))
	for _, f := range files {
		conn, failed := net.FilePacketConn(f)
		_ = f.Close()
		if failed != nil {
			err = errors.Join(err, fmt.Errorf("inherited socket %s: %w", f.Name(), failed))
			continue
		}
		conns = append(conns, conn)
	}
	return conns, err
}

// Discard closes the inherited sockets of a name.
func (s *Service) Discard(name string) error {
	files, err := s.take(name)
	closeAll(files)
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
