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

// insideKey is the key of a connection's context for its visit.
type insideKey struct{}

// A visit is a handshake that the door has let in.
type visit struct {
	*door.Visit
	ended func() bool // keeps the end of the connection from ending the visit
}

var errKeptOut = errors.New("a limit is reached")

// letIn asks the door about a handshake, after Retry where that was needed. A refused sender learns
// only that the connection is refused.
func (l *Listener) letIn(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	inside, limit := l.links().door.Enter(sourceOf(info.RemoteAddr), info.AddrVerified,
		l.current().door())
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

// identify ends the visit of a connection that has proved its key. It returns the peer's ID, or an
// error if no peer has the key.
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
		// for the garbage collector: the context lives as long as the link
		v.ended, v.Visit = nil, nil
	}
	return id, key, err
}

// unauthenticated reports whether this end has refused the other end's certificate or signature.
// Those arrive in packets that only a receiver of this end's answers can make, so the address is
// not forged.
func unauthenticated(cause error) bool {
	// TLS alerts, RFC 8446, section 6
	const badCertificate, decryptError, certificateRequired = 42, 51, 116
	e, ok := errors.AsType[*quic.TransportError](cause)
	if !ok || e.Remote || !e.ErrorCode.IsCryptoError() {
		return false
	}
	alert := e.ErrorCode & 0xff
	return alert == badCertificate || alert == decryptError || alert == certificateRequired
}

// sourceOf returns what an address counts as at the door. An address that is not UDP's counts by
// its text, so no two of them are one source.
func sourceOf(a net.Addr) netip.Prefix {
	if at := carrier.AddrPort(a); at.IsValid() {
		return door.SourceOf(at.Addr())
	}
	if at, err := netip.ParseAddrPort(a.String()); err == nil {
		return door.SourceOf(at.Addr())
	}
	sum := sha256.Sum256([]byte(a.Network() + " " + a.String()))
	sum[0] = 0xfc // unused: only fd00::/8 of the unique local addresses is in use (RFC 4193)
	return door.SourceOf(netip.AddrFrom16([16]byte(sum[:])))
}

// needsRetry reports whether a new handshake needs Retry: the rate is above HandshakesPerSecond, or
// the share for unproved addresses is full.
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

// noteSource tells the door where a peer is.
func (l *Listener) noteSource(link *Link) {
	l.links().door.Seen(link.Peer(), sourceOf(link.conn.RemoteAddr()))
}

// noteEvery is far below the day for which the door remembers a peer's source, and long enough to
// look at all links.
const noteEvery = time.Hour

// noteSources calls noteSource for all live links now and then, for long links and for roaming
// peers.
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
