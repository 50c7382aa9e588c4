package link

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/door"
	"ptthqd/pkg/ident"
)

// insideKey is the key of a connection's context under which its visit is.
type insideKey struct{}

// A visit is a handshake that is let in.
type visit struct {
	*door.Visit
	ended func() bool // keeps the end of the connection from ending the visit
}

var errKeptOut = errors.New("a limit is reached")

// enter is asked about each handshake, once it has proved its address where that is asked for. Who is kept out is told
// that the connection is refused, and no more.
func (l *Listener) letIn(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	inside, limit := l.links().door.Enter(sourceOf(info.RemoteAddr), info.AddrVerified, l.current().door())
	if limit != "" {
		l.hits.hit(limit, slog.Any("remote", info.RemoteAddr))
		return nil, errKeptOut
	}
	v := &visit{Visit: inside}
	v.ended = context.AfterFunc(ctx, func() {
		inside.Fail(unauthenticated(context.Cause(ctx)), l.current().door())
	})
	return context.WithValue(ctx, insideKey{}, v), nil
}

// decide ends the handshake of a connection, which has proved its key: it returns the peer's ID, or an error if the key is
// nobody's.
func (l *Listener) identify(conn *quic.Conn) (id string, key ident.PublicKey, err error) {
	if key, err = ident.PeerKey(conn.ConnectionState().TLS); err == nil {
		if id, err = l.Admit(key); err == nil {
			l.links().strangers.forget(key)
		} else {
			l.links().strangers.knock(key, conn.RemoteAddr(), err, l.log)
		}
	}
	if v, ok := conn.Context().Value(insideKey{}).(*visit); ok {
		v.ended()
		if err != nil {
			v.Fail(true, l.current().door())
		} else {
			v.Succeed(id)
		}
		v.ended, v.Visit = nil, nil // a link keeps as little of it as it can
	}
	return id, key, err
}

// unauthenticated reports whether a handshake has ended because this end did not accept the other one's certificate, or its
// signature. Those come in packets that only a receiver of this end's answers can make, so the address is not forged.
func unauthenticated(cause error) bool {
	const badCertificate, decryptError, certificateRequired = 42, 51, 116 // TLS alerts, RFC 8446, section 6
	e, ok := errors.AsType[*quic.TransportError](cause)
	if !ok || e.Remote || !e.ErrorCode.IsCryptoError() {
		return false
	}
	alert := e.ErrorCode & 0xff
	return alert == badCertificate || alert == decryptError || alert == certificateRequired
}

// sourceOf returns who an address counts as at the door. An address that is not of UDP has its text instead: no two of them
// are one source.
func sourceOf(a net.Addr) netip.Prefix {
	if at := carrier.AddrPort(a); at.IsValid() {
		return door.SourceOf(at.Addr())
	}
	if at, err := netip.ParseAddrPort(a.String()); err == nil {
		return door.SourceOf(at.Addr())
	}
	sum := sha256.Sum256([]byte(a.Network() + " " + a.String()))
	sum[0] = 0xfc // nobody's: only fd00::/8 of the unique local addresses is in use (RFC 4193)
	return door.SourceOf(netip.AddrFrom16([16]byte(sum[:])))
}

// pressed tells whether who begins a handshake must prove its address: as they begin so often, or as many that have proved
// nothing are under way.
func (l *Listener) needsRetry(calm *rate.Limiter, from net.Addr) bool {
	limits := l.current()
	calm.SetLimit(rate.Limit(limits.HandshakesPerSecond))
	calm.SetBurst(2 * limits.HandshakesPerSecond)
	if !l.links().door.MustProve(sourceOf(from), limits.door()) && calm.Allow() {
		return false
	}
	l.hits.hit(limitRetry, slog.Any("remote", from))
	return true
}

// see has the door remember where a peer is.
func (l *Listener) noteSource(link *Link) {
	l.links().door.Seen(link.Peer(), sourceOf(link.conn.RemoteAddr()))
}

// noteEvery is far below the day for which the door remembers, and above what looking at all links costs.
const noteEvery = time.Hour

// seeLinks does so for links that live long, and for peers that roam.
func (l *Listener) noteSources(ctx context.Context) {
	ticker := time.NewTicker(noteEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, link := range l.links().of(l, nil) {
			l.noteSource(link)
		}
	}
}
