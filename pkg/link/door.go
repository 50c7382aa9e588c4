package link

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/door"
)

// The limits that a Listener or Dialer tells of, as the config names them; those of a door are others.
const (
	limitRetry   = "retry_rate"
	limitLinks   = "links"
	limitTips    = "pending_tips"
	limitAllTips = "pending_tips_total"
)

// holdFailed is how long, from its beginning, a handshake that has come to nothing counts as under way: one costs a
// listener a good part of a millisecond, and might be begun anew at once.
const holdFailed = time.Second

// Forgive forgets which sources have failed to authenticate: those of a config before.
func (t *Links) Forgive() { t.door.Forgive() }

// insideKey is the key of a connection's context under which its visit is.
type insideKey struct{}

// A visit is a handshake that is let in.
type visit struct {
	door   *door.Door
	source netip.Prefix
	proved bool
	left   sync.Once
	ended  func() bool // has the end of the connection mean nothing any more
}

func (v *visit) leave() { v.left.Do(func() { v.door.Leave(v.source, v.proved) }) }

var errKeptOut = errors.New("a limit is reached")

// enter is asked about each handshake, once it has proved its address where that is asked for. Who is kept out is told
// that the connection is refused, and no more.
func (l *Listener) enter(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	d := &l.links().door
	source, proved := door.SourceOf(carrier.AddrPort(info.RemoteAddr).Addr()), info.AddrVerified
	if limit := d.Enter(source, proved, l.current().door()); limit != "" {
		l.hits.hit(limit, slog.Any("remote", info.RemoteAddr))
		return nil, errKeptOut
	}
	began := time.Now()
	v := &visit{door: d, source: source, proved: proved}
	v.ended = context.AfterFunc(ctx, func() {
		if unauthenticated(context.Cause(ctx)) {
			d.Punish(source, l.current().door())
		}
		time.AfterFunc(holdFailed-time.Since(began), v.leave) // at once if it has lasted longer
	})
	return context.WithValue(ctx, insideKey{}, v), nil
}

// entered ends the handshake of a connection, which then keeps as little of it as it can.
func entered(conn *quic.Conn) {
	if v, ok := conn.Context().Value(insideKey{}).(*visit); ok {
		v.ended()
		v.ended = nil
		v.leave()
	}
}

// unauthenticated tells whether a connection has ended as this end did not accept the other one's key. That key came in
// packets that only who has this end's answers can make: the address is not forged.
func unauthenticated(cause error) bool {
	const badCertificate = 42 // TLS alert, RFC 8446, section 6
	e, ok := errors.AsType[*quic.TransportError](cause)
	return ok && !e.Remote && e.ErrorCode.IsCryptoError() && e.ErrorCode&0xff == badCertificate
}

// limitEvery is the least time between two lines about one limit.
const limitEvery = 10 * time.Minute

// hits tells of limits that are reached.
type hits struct {
	log  *slog.Logger
	tell func(limit string) // nil: nobody

	mu   sync.Mutex
	told map[string]*rate.Sometimes
}

func (h *hits) hit(limit string, attrs ...any) {
	if h.tell != nil {
		h.tell(limit)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.told == nil {
		h.told = make(map[string]*rate.Sometimes)
	}
	if h.told[limit] == nil {
		h.told[limit] = &rate.Sometimes{Interval: limitEvery}
	}
	h.told[limit].Do(func() {
		h.log.Warn("a limit is reached (of such lines there is one in ten minutes at most)", append([]any{slog.String("limit", limit)}, attrs...)...)
	})
}
