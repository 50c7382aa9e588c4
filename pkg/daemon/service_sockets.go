package daemon

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"

	"ptthqd/pkg/config"
	"ptthqd/pkg/host"
)

// inheritStreams returns the inherited listeners of a place, for client.Config.Inherit.
func (d *daemon) inheritStreams(place string) []net.Listener {
	listeners, err := d.service.Streams(place)
	d.warnInherited(place, err)
	return listeners
}

// inheritPackets returns the inherited UDP sockets of a place, for a relay.
func (d *daemon) inheritPackets(place string) []net.PacketConn {
	conns, err := d.service.Packets(place)
	d.warnInherited(place, err)
	return conns
}

func (d *daemon) warnInherited(place string, err error) {
	if err != nil {
		d.log.Warn("an inherited socket can't be used", slog.String("listener", place),
			slog.Any("error", err))
	}
}

// wantedSockets returns the places of all sockets that a config wants, by FDNAME.
func wantedSockets(c *config.Config) map[string]string {
	wanted := make(map[string]string)
	enter := func(network string, l config.Listen) {
		switch l.Kind {
		case config.Unix, config.Systemd:
			wanted[host.FDName(network, l.String())] = l.String()
		case config.TCP, config.UDP:
			for _, addr := range l.Addrs() {
				wanted[host.FDName(network, addr.String())] = addr.String()
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

// checkInherited closes kept sockets that the config does not want any more, as they would be in
// the way. It refuses a socket unit's socket that the config does not name: the administrator who
// made the unit believes that it is in use.
func (d *daemon) checkInherited(c *config.Config) error {
	wanted := wantedSockets(c)
	var strangers, gone []string
	for _, name := range d.service.Left() {
		if _, ok := wanted[name]; ok {
			continue
		}
		if !host.IsStored(name) {
			strangers = append(strangers, name)
			continue
		}
		d.warnInherited(name, d.service.Discard(name))
		gone = append(gone, name)
	}
	if len(strangers) > 0 {
		slices.Sort(strangers)
		return fmt.Errorf("systemd hands over the socket %[1]s, which %[2]s doesn't name: write "+
			`listen = "systemd:%[1]s" there, or stop and disable the socket unit`,
			strings.Join(strangers, ", "), c.Path)
	}
	if err := d.service.Drop(d.background, gone); err != nil {
		d.log.Warn("sockets of before may be in the way", "error", err)
	}
	return nil
}
