package link

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

// A failure is why a dial has failed.
type failure struct {
	reason Reason
	final  bool   // the relay has refused, and will not change its mind within a second
	words  string // for people
}

func fail(reason Reason, final bool, format string, args ...any) failure {
	return failure{reason, final, fmt.Sprintf(format, args...)}
}

// explain returns an error in words for people. The words may contain text of anyone who has
// answered at the address, so they are cleaned.
func (d *Dialer) explain(err error) failure {
	f := d.classify(err)
	f.words = wire.Clean(f.words)
	return f
}

func (d *Dialer) classify(err error) failure {
	if wrong, ok := errors.AsType[*ident.WrongKeyError](err); ok {
		return fail(DialWrongKey, true,
			"the relay at %s presented the key %v, the config pins %v: ask the relay's "+
				"administrator for its key (`ptthqd pubkey`), and change the config only if he confirms it",
			d.Address, wrong.Got, wrong.Pinned())
	}
	if e, ok := errors.AsType[*resolveError](err); ok {
		return fail(DialUnresolved, false, "cannot resolve %s: %v", d.host,
			cmp.Or(e.err, errors.New("it has no address")))
	}
	if e, ok := errors.AsType[*quic.TransportError](err); ok {
		return d.explainTransport(e)
	}
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		switch wire.CloseCode(e.ErrorCode) {
		case wire.CloseRevoked:
			return d.unknownKey()
		case wire.CloseClosing:
			return fail(DialRefused, false, "the relay at %s is stopping", d.Address)
		case wire.CloseContested:
			return fail(DialContested, true, contestedAway)
		case wire.CloseSuperseded, wire.CloseProtocol:
		}
		return fail(DialFailed, true, "the relay at %s ended the link at once: %v",
			d.Address, linkError(e))
	}
	if _, ok := errors.AsType[*quic.VersionNegotiationError](err); ok {
		return fail(DialVersion, true,
			"what answers at %s does not speak QUIC version 1: is it a ptthqd relay?", d.Address)
	}
	if errors.Is(err, errOnlySmall) {
		return fail(DialUnfinished, false,
			"the relay at %s answers small packets, but not QUIC's handshake: "+
				"packets of %d bytes are lost on the way. The path's MTU is too small, or a "+
				"firewall drops fragments and ICMP (a VPN or tunnel on the way? its MTU must be %d or more)",
			d.target(), leastPacket, leastMTU)
	}
	if errors.Is(err, errNoAnswer) || isTimeout(err) {
		return fail(DialNoAnswer, false,
			"no answer over UDP to %s; UDP may be blocked on the way, or the relay is not running",
			d.target())
	}
	if errors.Is(err, errTooSlow) {
		return fail(DialUnfinished, false,
			"the relay at %s answers, but no link comes about within %v; "+
				"large packets may be lost on the way", d.Address, dialAnswered)
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return d.explainSocket(e)
	}
	return fail(DialFailed, false, "dial the relay at %s: %v", d.Address, err)
}

// What QUIC needs of a path (RFC 9000, section 14), in bytes: packets of 1,200, and 48 more for the
// headers of UDP and IPv6.
const (
	leastPacket = 1200
	leastMTU    = leastPacket + 48
)

// explainSocket explains what this host's kernel refuses, or a sandbox around the process. Linux
// lets each process open a UDP socket and receive from it, so a refusal of those is a sandbox's. A
// refusal to send may be a firewall's.
func (d *Dialer) explainSocket(e *net.OpError) failure {
	is := func(errnos ...syscall.Errno) bool {
		return slices.ContainsFunc(errnos, func(no syscall.Errno) bool { return errors.Is(e.Err, no) })
	}
	sandbox := is(syscall.ENOSYS) ||
		e.Op != "write" && is(syscall.EPERM, syscall.EACCES, syscall.EAFNOSUPPORT)
	reason, hint := DialFailed, ""
	if sandbox {
		reason = DialSandbox
		hint = ": a sandbox around this process refuses the call: let it pass in the seccomp " +
			"profile of the container, or in SystemCallFilter= and RestrictAddressFamilies= of the service"
	}
	switch {
	case e.Op == "listen":
		return fail(reason, false, "dial the relay at %s: open a UDP socket: %v%s",
			d.Address, e, hint)
	case e.Op == "read":
		return fail(reason, false, "cannot receive from %s: %v%s", d.target(), e.Err, hint)
	case sandbox:
		return fail(reason, false, "cannot send to %s: %v%s", d.target(), e.Err, hint)
	}
	return fail(DialUnsent, false, "cannot send to %s: %v%s", d.target(), e.Err, sendHint(e.Err))
}

// sendHint says what to do when this host refuses to send.
func sendHint(err error) string {
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return ": a firewall of this host forbids it: let it send UDP to the relay " +
			"(`nft list ruleset` shows its rules; a service may have IPAddressDeny=)"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return ": this host has no route there: is it connected to a network?"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return ": this host has no address to send from: is it connected to a network?"
	}
	return ""
}

func (d *Dialer) explainTransport(e *quic.TransportError) failure {
	const noApplicationProtocol, protocolVersion = 120, 70 // TLS alerts, RFC 8446, section 6
	switch {
	case e.Remote && e.ErrorCode == quic.ConnectionRefused && d.unknown: // the penalty for that
		return d.unknownKey()
	case e.Remote && e.ErrorCode == quic.ConnectionRefused:
		return fail(DialRefused, false,
			"the relay at %s takes no connections at the moment; it may be stopping, or overloaded, "+
				"or refuse this address for a while as somebody there has come with an unknown key",
			d.Address)
	case e.ErrorCode.IsCryptoError() &&
		(e.ErrorCode&0xff == noApplicationProtocol || e.ErrorCode&0xff == protocolVersion):
		return fail(DialVersion, true,
			"the relay at %s speaks another version of the protocol than %s: "+
				"upgrade the older of the two", d.Address, wire.ALPN)
	case e.Remote && e.ErrorCode.IsCryptoError():
		return d.unknownKey()
	}
	return fail(DialFailed, true, "the handshake with the relay at %s failed: %v", d.Address, e)
}

func (d *Dialer) unknownKey() failure {
	return fail(DialUnknownKey, true,
		"the relay at %s does not know this node's key, %v: "+
			"have its administrator add it as public_key of one of the [[peers]] there",
		d.Address, d.Identity.Public())
}

// target returns the relay's address, with the IP address that is dialled first.
func (d *Dialer) target() string {
	if len(d.known) == 0 || d.known[0].Addr().String() == d.host {
		return d.Address
	}
	return fmt.Sprintf("%s (%v)", d.Address, d.known[0])
}

func isTimeout(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout()
}
