package daemon

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"

	"ptthqd/pkg/config"
)

// What systemd hands over comes by name, never by order: the sockets of socket units under their FileDescriptorName=, and
// those that it kept over a restart under storeName.

const storePrefix = "ptthqd-"

// storeName is the FDNAME of a socket of ours: the address itself may hold a colon, which an FDNAME can't.
func storeName(network, address string) string {
	sum := sha256.Sum256([]byte(network + " " + address))
	return storePrefix + hex.EncodeToString(sum[:8])
}

func isStoreName(name string) bool {
	return strings.HasPrefix(name, storePrefix) && len(name) == len(storePrefix)+16
}

// unitName is the FDNAME of "systemd:NAME".
func unitName(place string) (name string, ok bool) { return strings.CutPrefix(place, "systemd:") }

// fdName is the FDNAME under which a socket that listens at a place would have been inherited.
func fdName(network, place string) string {
	if name, ok := unitName(place); ok {
		return name
	}
	return storeName(network, place)
}

// taken are the inherited sockets of an FDNAME.
func (d *daemon) taken(name string) []*os.File {
	files, err := d.service.take(name)
	if err != nil {
		d.log.Warn("an inherited socket can't be used", slog.String("name", name), slog.Any("error", err))
	}
	return files
}

// inheritStreams gives the client its listeners of before: see client.Config.Inherit.
func (d *daemon) inheritStreams(place string) []net.Listener {
	var listeners []net.Listener
	for _, f := range d.taken(fdName("stream", place)) {
		l, err := net.FileListener(f)
		_ = f.Close()
		if err != nil {
			d.log.Warn("an inherited socket can't be used", slog.String("listener", place), slog.Any("error", err))
			continue
		}
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		listeners = append(listeners, l)
	}
	return listeners
}

// inheritPackets gives the relay its UDP sockets of before.
func (d *daemon) inheritPackets(place string) []net.PacketConn {
	var conns []net.PacketConn
	for _, f := range d.taken(fdName("udp", place)) {
		conn, err := net.FilePacketConn(f)
		_ = f.Close()
		if err != nil {
			d.log.Warn("an inherited socket can't be used", slog.String("listener", place), slog.Any("error", err))
			continue
		}
		conns = append(conns, conn)
	}
	return conns
}

// places are the names of all sockets that a config wants, by FDNAME.
func places(c *config.Config) map[string]string {
	wanted := make(map[string]string)
	enter := func(network string, l config.Listen) {
		switch l.Kind {
		case config.Unix, config.Systemd:
			wanted[fdName(network, l.String())] = l.String()
		case config.TCP, config.UDP:
			for _, addr := range l.Addrs() {
				wanted[fdName(network, addr.String())] = addr.String()
			}
		}
	}
	for _, l := range c.Listen {
		enter("udp", l)
	}
	for _, m := range c.Mappings {
		if m.Enabled {
			enter("stream", m.Listen)
		}
	}
	return wanted
}

// checkInherited drops what was kept and isn't wanted any more, so that it is in the way of nothing, and refuses a
// socket unit's socket that the config doesn't name: an administrator who made it believes that it is in use.
func (d *daemon) checkInherited(c *config.Config) error {
	wanted := places(c)
	var strangers, gone []string
	for _, name := range d.service.left() {
		if _, ok := wanted[name]; ok {
			continue
		}
		if !isStoreName(name) {
			strangers = append(strangers, name)
			continue
		}
		closeAll(d.taken(name))
		gone = append(gone, name)
	}
	if len(strangers) > 0 {
		slices.Sort(strangers)
		return fmt.Errorf("systemd hands over the socket %[1]s, which %[2]s doesn't name: write listen = \"systemd:%[1]s\" there, or stop and disable the socket unit",
			strings.Join(strangers, ", "), c.Path)
	}
	if err := d.service.drop(d.background, gone); err != nil {
		d.log.Warn("sockets of before may be in the way", "error", err)
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
