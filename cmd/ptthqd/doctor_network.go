package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
	"ptthqd/pkg/daemon"
	"ptthqd/pkg/link"
	"ptthqd/pkg/wire"
)

const (
	smallMTU  = 1280 // below it, QUIC's packets are as small as they may be
	lossyLink = 0.05 // of the packets
	fewLost   = 1000 // packets that must have been sent before their loss says anything
)

// examineRelays probes each relay.
func (d *doctor) examineRelays(ctx context.Context) {
	d.at(len(d.config.Relays), func(i int) []finding {
		found := d.probe(ctx, d.config.Relays[i])
		reached := !slices.ContainsFunc(found,
			func(f finding) bool { return f.Result == isFailure })
		return append(found, d.examineLink(d.config.Relays[i], reached)...)
	})
}

// probe makes a handshake with a relay. It returns a finding for each thing that this takes.
func (d *doctor) probe(ctx context.Context, r config.Relay) []finding {
	if d.key == nil {
		return []finding{{
			Name: "relay", Subject: r.Address, Result: isSkipped,
			Detail: "no handshake without the key",
		}}
	}
	dialer := &link.Dialer{Address: r.Address, Keys: r.Keys, Identity: *d.key}
	p := dialer.Probe(ctx)
	var found []finding
	if p.Resolve > 0 && len(p.Addresses) > 0 {
		var addresses []string
		for _, a := range p.Addresses {
			addresses = append(addresses, a.Addr().String())
		}
		found = append(found,
			finding{
				Name: "name", Subject: r.Address, Result: isOK,
				Detail: strings.Join(addresses, ", "), Took: control.Seconds(p.Resolve),
			})
	}
	if known := d.linkTo(r); p.Reason == link.DialRefused && known != nil &&
		known.LastReason == string(link.DialUnknownKey) {
		p.Reason, p.Error = link.DialUnknownKey, known.LastError // for which the relay lets nobody in from here for a while
	}
	if p.Reason != "" {
		return append(found,
			finding{
				Name: "relay", Subject: r.Address, Result: isFailure, Detail: p.Error,
				Remedy: remedyOf(p.Reason, r),
			})
	}
	found = append(found, finding{
		Name: "relay", Subject: r.Address, Result: isOK, Took: control.Seconds(p.Handshake),
		Detail: fmt.Sprintf("handshake with %v in %v, round trip %v", p.Remote,
			roundTrip(p.Handshake), roundTrip(p.RTT)),
	})
	if p.MTU > 0 {
		c := finding{
			Name: "mtu", Subject: r.Address, Result: isOK,
			Detail: fmt.Sprintf("packets of %d bytes pass", p.MTU),
		}
		if p.MTU < smallMTU {
			c.Result, c.Detail = isWarning, c.Detail+", larger ones don't"
			c.Remedy = "raise the MTU of the tunnel or interface on the way (`ip link`, " +
				"`tracepath`), or let ICMP \"fragmentation needed\" pass: small packets cost " +
				"throughput, and less than this breaks the link"
		}
		found = append(found, c)
	}
	offload := finding{
		Name: "offload", Subject: r.Address, Result: isOK,
		Detail: "GSO and GRO are in use",
	}
	if !p.GSO || !p.Socket.GRO {
		var missing []string
		if !p.GSO {
			missing = append(missing, "GSO (sending in segments)")
		}
		if !p.Socket.GRO {
			missing = append(missing, "GRO (receiving in segments)")
		}
		offload.Result, offload.Detail = isNote, "this host doesn't offer "+strings.Join(missing,
			" and ")+" for UDP: it costs processor time, and nothing else"
	}
	found = append(found, offload)
	if d.status == nil && p.Socket.ReceiveBuffer > 0 {
		found = append(found, bufferCheck(r.Address, p.Socket.ReceiveBuffer))
	}
	return found
}

// remedyOf says what to do about a handshake that failed.
func remedyOf(reason link.Reason, r config.Relay) string {
	_, port, err := net.SplitHostPort(r.Address)
	if err != nil {
		port = fmt.Sprint(wire.DefaultPort)
	}
	switch reason {
	case link.DialUnresolved:
		return fmt.Sprintf("mend the address at %v, or this host's name resolution "+
			"(/etc/resolv.conf, `getent hosts`)", r.Source)
	case link.DialNoAnswer:
		return fmt.Sprintf("let UDP port %s pass in the firewalls of this host, of the network "+
			"and of the relay's host; see there whether it runs (`systemctl status ptthqd`, `ss "+
			"-lun`)", port)
	case link.DialUnsent:
		return fmt.Sprintf("connect this host to a network with a route to the relay (`ip route "+
			"get`), and let it send UDP to port %s", port)
	case link.DialSandbox:
		return "let the call pass in the seccomp profile of the container, or in " +
			"SystemCallFilter= and RestrictAddressFamilies= of the service"
	case link.DialUnfinished:
		return "raise the MTU of the tunnel or interface on the way (`ip link`, `tracepath`), or " +
			`let ICMP "fragmentation needed" pass`
	case link.DialWrongKey:
		return fmt.Sprintf("ask the relay's administrator what `ptthqd pubkey` prints there: if "+
			"it is the key found, write it as public_key at %v; if not, somebody else answers at "+
			"this address", r.Source)
	case link.DialUnknownKey:
		return "have the relay's administrator add this key to a [[peers]] there, with the right " +
			"role: `ptthqd init` prints the block"
	case link.DialVersion:
		return "upgrade the older of the two"
	case link.DialContested:
		return daemon.OwnKeyHint
	case link.DialRefused:
		return "try again; the relay's log says what it is short of"
	default:
		return "the relay's log may say more: `journalctl -u ptthqd` there"
	}
}

// examineLink checks the running daemon's own link. reached is whether the handshake with the relay
// has just succeeded: if it has failed, the link is down for the same reason.
func (d *doctor) examineLink(r config.Relay, reached bool) []finding {
	l := d.linkTo(r)
	if l == nil {
		return nil
	}
	c := finding{Name: "link", Subject: r.Address, Result: isOK}
	f := l.Figures
	switch {
	case l.Problem != "":
		c.Result, c.Detail, c.Remedy = isFailure, l.Problem, daemon.OwnKeyHint
	case (l.State != control.LinkConnected || f == nil) && !reached:
		c.Result, c.Detail = isSkipped, "the daemon is not connected; see the handshake above"
	case l.State != control.LinkConnected || f == nil:
		c.Result, c.Detail = isFailure, "the daemon is not connected: "+l.LastError
		c.Remedy = "if the handshake above works, the daemon will be connected within a minute; " +
			"else mend that first"
	case l.Name != "" && l.Name != d.status.ID:
		c.Result, c.Detail, c.Remedy = isWarning, daemon.OtherName(l.Name,
			d.status.ID), daemon.OwnNameHint(l.Name)
	case f.PacketsSent >= fewLost && f.Loss > lossyLink:
		c.Result, c.Detail = isWarning, fmt.Sprintf("connected for %s, but %.0f%% of the packets "+
			"are lost", span(time.Since(l.Since)), f.Loss*100)
		c.Remedy = "look for the lossy part of the way (`mtr -u`), Wi-Fi and overloaded lines first"
	default:
		c.Detail = fmt.Sprintf("connected for %s, round trip %v, %.2g%% lost, %s",
			span(time.Since(l.Since)), roundTrip(time.Duration(f.RTT)), f.Loss*100, count(l.Connections, "connection"))
	}
	return []finding{c}
}

// linkTo returns the running daemon's link to a relay; nil if there is no daemon, or if it runs
// with another config, which examineDaemon has reported.
func (d *doctor) linkTo(r config.Relay) *control.Link {
	if d.status == nil {
		return nil
	}
	for i, l := range d.status.Links {
		if l.Relay == r.Address {
			return &d.status.Links[i]
		}
	}
	return nil
}

// examineMappings traces each mapping to its target.
func (d *doctor) examineMappings(ctx context.Context) {
	var mappings []config.Mapping
	for _, m := range d.config.Mappings {
		if m.Enabled {
			mappings = append(mappings, m)
		}
	}
	running := make(map[string]control.Mapping)
	if d.status != nil {
		for _, m := range d.status.Mappings {
			running[m.Name] = m
		}
	}
	d.at(len(mappings), func(i int) []finding {
		m := mappings[i]
		c := finding{Name: "mapping", Subject: m.Name, Result: isSkipped}
		switch {
		case d.status == nil:
			c.Detail = "the way to the target is tried by the running daemon"
		case running[m.Name].Problem != "":
			c.Result, c.Detail, c.Remedy = isFailure, running[m.Name].Problem, running[m.Name].Hint
		case running[m.Name].Connections >= d.config.Limits.SessionsPerMapping:
			c.Result, c.Detail = isFailure, fmt.Sprintf("it is full: %s, and new ones wait",
				count(running[m.Name].Connections, "connection"))
			c.Remedy = "find what opens them (`ptthqd status`), or raise sessions_per_mapping in " +
				"[limits]"
		case !d.connected():
			c.Detail = "no relay is connected; see above"
		case d.noTargets:
			c.Detail = "no connection was made (--no-targets)"
		default:
			d.trace(ctx, &c, control.TraceQuestion{Mapping: m.Name}, d.config.ID, m.Server,
				m.Target.String())
		}
		return []finding{c}
	})
}

// connected reports whether the running daemon has a link.
func (d *doctor) connected() bool {
	return slices.ContainsFunc(d.status.Links,
		func(l control.Link) bool { return l.State == control.LinkConnected })
}

// examineTargets dials the targets of a server's services.
func (d *doctor) examineTargets(ctx context.Context) {
	d.at(len(d.config.Services), func(i int) []finding {
		v := d.config.Services[i]
		c := finding{Name: "service", Subject: v.Target.String(), Result: isSkipped}
		if v.Name != "" {
			c.Subject = v.Name + " (" + c.Subject + ")"
		}
		target, single := v.Target.Single()
		switch {
		case d.status == nil:
			c.Detail = "targets are tried by the running daemon"
		case !single:
			c.Detail = "a range isn't tried"
		case d.noTargets:
			c.Detail = "no connection was made (--no-targets)"
		default:
			d.trace(ctx, &c, control.TraceQuestion{Target: target.String()}, "", d.config.ID,
				target.String())
			if path, ok := strings.CutPrefix(target.String(), "unix:"); ok &&
				c.Result == isFailure && d.unit.name != "" && !d.unit.user && isTemporary(path) {
				c.Remedy = fmt.Sprintf("the service has directories /tmp and /var/tmp of its own "+
					"(PrivateTmp=): put the socket below /run, or write a drop-in with "+
					"PrivateTmp=no (`systemctl edit %s`)", d.unit.name)
			}
		}
		return []finding{c}
	})
}

// isTemporary reports whether a path is below the directories that PrivateTmp= hides.
func isTemporary(path string) bool {
	return strings.HasPrefix(path, "/tmp/") || strings.HasPrefix(path, "/var/tmp/")
}

// trace has the daemon trace a way, and fills in the result.
func (d *doctor) trace(ctx context.Context, c *finding, q control.TraceQuestion, client, server, target string) {
	began := time.Now()
	t, err := d.daemon.Trace(ctx, q)
	c.Took = control.Seconds(time.Since(began))
	if errors.Is(err, control.ErrForbidden) {
		c.Result, c.Detail = isSkipped, "no connection was made: "+err.Error()
		return
	}
	if err != nil {
		c.Result, c.Detail = isFailure, err.Error()
		return
	}
	c.Hops = t.Hops
	var way []string
	for i, hop := range t.Hops {
		if i == 0 || t.Hops[i-1].To != hop.From {
			way = append(way, hop.From)
		}
		if hop.OK {
			way = append(way, fmt.Sprintf("-%v-> %s", roundTrip(time.Duration(hop.Took)), hop.To))
			continue
		}
		c.Result = isFailure
		by := ""
		if hop.By != "" {
			by = " by " + hop.By
		}
		way = append(way, fmt.Sprintf("-x %s (%d%s: %s)", hop.To, hop.Code, by, hop.Error))
		c.Remedy = remedyOfRefusal(hop, client, server, target)
	}
	c.Detail = strings.Join(way, " ")
	if t.OK && c.Result != isFailure {
		c.Result = isOK
	}
	if t.OK && c.Result == isFailure { // one relay of several
		c.Result = isWarning
	}
}

// remedyOfRefusal says what to do about a hop that has failed.
func remedyOfRefusal(hop control.Hop, client, server, target string) string {
	switch wire.Status(hop.Code) {
	case wire.StatusNotAllowed:
		if hop.By == server {
			return fmt.Sprintf("let %s in at %s, in the clients of a [[services]] with this "+
				"target; `ptthqd explain %s %s %s` there tells the rule", client, server, client, server, target)
		}
		return fmt.Sprintf("name %s in allowed_servers of %s in the relay's [[peers]]; `ptthqd "+
			"explain %s %s %s` there tells the rule", server, client, client, server, target)
	case wire.StatusNotConnected:
		if hop.By == "" {
			return "see what is said of the relays above"
		}
		return fmt.Sprintf("start ptthqd at %s, with this relay in its config; `ptthqd doctor` "+
			"there says what keeps it from being connected", server)
	case wire.StatusRefused, wire.StatusTimeout:
		return fmt.Sprintf("see at %s whether anything listens at %s (`ss -ltn`), and whether a "+
			"firewall lets it be reached", server, target)
	case wire.StatusTooMany:
		return "raise the limit in [limits] of the node that says so, or find who uses it up: " +
			"`ptthqd status` there"
	case wire.StatusLoop:
		return "give the mapping another `listen`, or another target: this target is where the " +
			"mapping itself listens"
	case wire.StatusVersion:
		return "upgrade the older of the two"
	default:
		return "the log of the node that says so tells more"
	}
}

// examineListeners checks a relay's sockets and peers.
func (d *doctor) examineListeners(ctx context.Context) {
	if d.status == nil {
		for _, l := range d.config.Listen {
			d.examinePort(ctx, l)
		}
		return
	}
	s := d.status
	connected := 0
	var away []string
	for _, p := range s.Peers {
		if p.Connected {
			connected++
			continue
		}
		away = append(away, p.ID)
	}
	for _, l := range s.Listeners {
		if l.Problem != "" {
			d.add(finding{
				Name: "listener", Subject: l.Listen, Result: isFailure, Detail: l.Problem,
				Remedy: l.Hint,
			})
			continue
		}
		c := finding{
			Name: "listener", Subject: l.Address, Result: isOK,
			Detail: fmt.Sprintf("%d packets received, %d dropped", l.Packets, l.Dropped),
		}
		_, port, err := net.SplitHostPort(l.Address)
		switch {
		case l.Packets == 0 && connected == 0 && len(s.Peers) > 0 &&
			time.Duration(s.Uptime) > time.Minute && err == nil:
			c.Result, c.Detail = isWarning, fmt.Sprintf("nothing has arrived for %s",
				span(time.Duration(s.Uptime)))
			c.Remedy = fmt.Sprintf("open UDP port %[1]s: `nft add rule inet filter input udp "+
				"dport %[1]s accept`, `ufw allow %[1]s/udp` or `firewall-cmd "+
				"--add-port=%[1]s/udp`; and in the provider's firewall", port)
		case l.Dropped > 0 && l.Dropped*1000 > l.Packets:
			c.Result, c.Detail = isWarning, c.Detail+": the receive buffer was full"
			c.Remedy = "raise net.core.rmem_max, or use ptthqd.socket"
		}
		d.add(c)
	}
	for _, node := range s.Waiting {
		d.add(finding{
			Name: "peers", Subject: node.Address, Result: isNote,
			Detail: fmt.Sprintf("it has come %d times with a key that the config does not name: %s",
				node.Tries, node.Key),
			Remedy: "if it is one of yours, add a [[peers]] with this public_key; if not, " +
				"nothing: it is not let in",
		})
	}
	c := finding{
		Name: "peers", Result: isOK,
		Detail: fmt.Sprintf("%d of %d connected", connected, len(s.Peers)),
	}
	if len(away) > 0 {
		c.Result = isNote
		c.Detail += "; not " + strings.Join(away, ", ")
	}
	d.add(c)
}

// examinePort checks whether a relay could bind its port.
func (d *doctor) examinePort(ctx context.Context, l config.Listen) {
	if l.Kind == config.Systemd {
		return // it comes with the service
	}
	c := finding{Name: "listener", Subject: l.String(), Result: isOK, Detail: "the port is free"}
	bound, err := new(bind.Binder).ListenPacket(ctx, l)
	for _, s := range bound {
		_ = s.Socket.Close()
	}
	if e, ok := errors.AsType[*bind.Error](err); ok {
		c.Result, c.Detail, c.Remedy = isFailure, e.Short(), e.Hint
	}
	d.add(c)
}
