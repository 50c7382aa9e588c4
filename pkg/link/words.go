package link

import (
	"cmp"
	"errors"
	"fmt"
	"net"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

// failure is why a dial failed, in words for people.
type failure struct {
	words string
	final bool // the relay has answered and said no: it won't change its mind within a second
}

func (d *Dialer) explain(err error) failure {
	if wrong, ok := errors.AsType[*ident.WrongKeyError](err); ok {
		return failure{fmt.Sprintf("the relay at %s presented the key %v, the config pins %v: ask the relay's administrator for its key "+
			"(`ptthqd pubkey`), and change the config only if he confirms it", d.Address, wrong.Got, wrong.Want), true}
	}
	if e, ok := errors.AsType[*resolveError](err); ok {
		return failure{fmt.Sprintf("cannot resolve %s: %v", d.host, cmp.Or(e.err, errors.New("it has no address"))), false}
	}
	if e, ok := errors.AsType[*quic.TransportError](err); ok {
		return d.explainTransport(e)
	}
	if e, ok := errors.AsType[*quic.ApplicationError](err); ok {
		switch wire.CloseCode(e.ErrorCode) {
		case wire.CloseRevoked:
			return failure{d.unknownKey(), true}
		case wire.CloseClosing:
			return failure{fmt.Sprintf("the relay at %s is stopping", d.Address), false}
		case wire.CloseSuperseded, wire.CloseProtocol:
		}
		return failure{fmt.Sprintf("the relay at %s ended the link at once: %v", d.Address, linkError(e)), true}
	}
	if _, ok := errors.AsType[*quic.VersionNegotiationError](err); ok {
		return failure{fmt.Sprintf("what answers at %s does not speak QUIC version 1: is it a ptthqd relay?", d.Address), true}
	}
	if errors.Is(err, errNoAnswer) || isTimeout(err) {
		return failure{fmt.Sprintf("no answer over UDP to %s; UDP may be blocked on the way, or the relay is not running", d.target()), false}
	}
	if errors.Is(err, errTooSlow) {
		return failure{fmt.Sprintf("the relay at %s answers, but no link comes about within %v; large packets may be lost on the way", d.Address, dialAnswered), false}
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return failure{fmt.Sprintf("cannot send to %s: %v", d.target(), e.Err), false}
	}
	return failure{fmt.Sprintf("dial the relay at %s: %v", d.Address, err), false}
}

func (d *Dialer) explainTransport(e *quic.TransportError) failure {
	const noApplicationProtocol, protocolVersion = 120, 70 // TLS alerts, RFC 8446, section 6
	switch {
	case e.Remote && e.ErrorCode == quic.ConnectionRefused:
		return failure{fmt.Sprintf("the relay at %s takes no connections at the moment; it may be stopping, or overloaded", d.Address), false}
	case e.ErrorCode.IsCryptoError() && (e.ErrorCode&0xff == noApplicationProtocol || e.ErrorCode&0xff == protocolVersion):
		return failure{fmt.Sprintf("the relay at %s speaks another version of the protocol than %s: upgrade the older of the two", d.Address, wire.ALPN), true}
	case e.Remote && e.ErrorCode.IsCryptoError():
		return failure{d.unknownKey(), true}
	}
	return failure{fmt.Sprintf("the handshake with the relay at %s failed: %v", d.Address, e), true}
}

func (d *Dialer) unknownKey() string {
	return fmt.Sprintf("the relay at %s does not know this node's key, %v: have its administrator add it as public_key of one of the [[peers]] there",
		d.Address, d.Identity.Public())
}

// target is the relay's address with the IP address that was dialled first.
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
