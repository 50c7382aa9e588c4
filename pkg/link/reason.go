package link

import (
	"errors"

	"ptthqd/pkg/wire"
)

// A Reason is why a link has ended or a dial has failed, in one word of a fixed set, for metrics.
// The words for people are those of errors.
type Reason string

// Why links end.
const (
	EndClosing    Reason = "closing"    // the other end stops, and will be back
	EndStopped    Reason = "stopped"    // this end stops, or has no more use for the link
	EndReplaced   Reason = "replaced"   // by a fresh link, after a change of address or a sleep
	EndSuperseded Reason = "superseded" // by a link of another process with the same key
	EndRevoked    Reason = "revoked"    // the key was taken out of the config
	EndProtocol   Reason = "protocol"   // one end broke the protocol
	EndSilent     Reason = "silent"     // an expected packet has not arrived
	EndStuck      Reason = "stuck"      // small packets arrive, but large ones are lost
	EndIdle       Reason = "idle"       // nothing has arrived for QUIC's idle timeout
	EndRestarted  Reason = "restarted"  // the other end does not know the link any more
	EndFailed     Reason = "failed"     // QUIC has given the link up
)

// Why dials fail.
const (
	DialUnresolved Reason = "unresolved" // no address of the name, or no answer of the name server
	DialUnsent     Reason = "unsent"     // this host can't send: no route, or its own firewall
	// a sandbox around this process refuses a system call that a link needs
	DialSandbox    Reason = "sandbox"
	DialNoAnswer   Reason = "no_answer"   // nothing has come back
	DialUnfinished Reason = "unfinished"  // something has come back, but no link came about
	DialWrongKey   Reason = "wrong_key"   // the relay has another key than the config pins
	DialUnknownKey Reason = "unknown_key" // the relay does not know this node's key
	DialVersion    Reason = "version"     // the relay speaks another version
	DialContested  Reason = "contested"   // another process with this node's key has its place
	DialRefused    Reason = "refused"     // the relay takes no connections at the moment
	DialFailed     Reason = "failed"      // anything else
)

// EndReasons and DialReasons list all reasons.
var (
	EndReasons = []Reason{
		EndClosing, EndStopped, EndReplaced, EndSuperseded, EndRevoked, EndProtocol,
		EndSilent, EndStuck, EndIdle, EndRestarted, EndFailed,
	}
	DialReasons = []Reason{
		DialUnresolved, DialUnsent, DialSandbox, DialNoAnswer, DialUnfinished, DialWrongKey,
		DialUnknownKey, DialVersion, DialContested, DialRefused, DialFailed,
	}
)

// Reason returns why the link has ended. It is empty while the link lives.
func (l *Link) Reason() Reason {
	err := l.Err()
	closed, ok := errors.AsType[*ClosedError](err)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errSilent):
		return EndSilent
	case errors.Is(err, errStuck):
		return EndStuck
	case errors.Is(err, errIdle):
		return EndIdle
	case errors.Is(err, errRestarted):
		return EndRestarted
	case !ok:
		return EndFailed
	case l.replaced.Load():
		return EndReplaced
	}
	switch closed.Code {
	case wire.CloseClosing:
		if !closed.Remote {
			return EndStopped
		}
		return EndClosing
	case wire.CloseSuperseded, wire.CloseContested:
		return EndSuperseded
	case wire.CloseRevoked:
		return EndRevoked
	default:
		return EndProtocol
	}
}
