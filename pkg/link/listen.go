package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/quiet"
	"ptthqd/pkg/wire"
)

// connectionIDLength is fixed, so that a restarted relay can answer packets of earlier links with a
// stateless reset.
const connectionIDLength = 8

// A Listener takes the links of a relay's clients and servers on one socket. Set the fields, then
// call Run once.
type Listener struct {
	// Socket is where to listen. The caller closes it after Run has returned.
	Socket *carrier.Socket
	// Links is shared by the Listeners of a relay that listens on several sockets. Nil: this
	// Listener is the only one.
	Links *Links
	// Identity is the relay's key.
	Identity ident.PrivateKey
	// Admit returns the ID of the peer with a key, or an error if no peer has it. The Listener
	// calls it after each handshake, which has proved the key, and in Recheck. Several goroutines
	// call it. It must not block.
	Admit func(ident.PublicKey) (peerID string, err error)
	// Serve is called for each live link, in a goroutine of its own. It returns soon after the link
	// is over; ctx is done then. The call for a peer's newer link may begin before the one for the
	// older link has returned.
	Serve func(ctx context.Context, l *Link)
	// Rival is called for each process that was turned away because another process with its key
	// has the peer's place. It must not block. It may be nil.
	Rival func(peerID string, from netip.Addr)
	// Limits bound what peers and strangers can make grow. SetLimits changes them later.
	Limits Limits
	// LimitHit is called each time that a limit keeps something out or slows it, with the limit's
	// name in the config. It must not block. It may be nil.
	LimitHit func(limit string)
	// Logger gets a line for each link that comes or goes. It may be nil.
	Logger *slog.Logger

	log      *slog.Logger
	clock    awake.Clock // measures the silence of links
	limits   atomic.Pointer[Limits]
	hits     hits
	grants   *grants
	lines    quiet.Pace // the rate of log lines about links, by peer
	own      Links      // used if Links is nil
	liveness liveness
}

func (l *Listener) links() *Links {
	if l.Links != nil {
		return l.Links
	}
	return &l.own
}

// SetLimits changes the limits of later handshakes and links. Windows stays what it is.
func (l *Listener) SetLimits(limits Limits) {
	limits.Windows = l.Limits.Windows
	l.limits.Store(limits.withDefaults())
}

func (l *Listener) current() *Limits {
	if limits := l.limits.Load(); limits != nil {
		return limits
	}
	l.limits.CompareAndSwap(nil, l.Limits.withDefaults())
	return l.limits.Load()
}

// Run listens until ctx is done or the socket fails. Then it closes all links as closing, waits
// until all calls of Serve have returned, and returns the reason.
func (l *Listener) Run(ctx context.Context) error {
	l.log = l.Logger
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.hits.log, l.hits.tell = l.log, l.LimitHit
	l.grants = newGrants(l.Limits.Windows)
	l.lines = quiet.Pace{Every: 30 * time.Second, AtOnce: 100}

	tlsConfig, err := ident.ListenTLS(l.Identity)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	// Each address has a key of its own. A socket answers an unknown connection ID with its reset
	// token. With one key for all sockets, anyone could learn a link's token from another socket,
	// and end the link with one forged packet.
	address := l.Socket.LocalAddr().String()
	resetKey := quic.StatelessResetKey(l.Identity.Derive("quic stateless reset at " + address))
	tokenKey := quic.TokenGeneratorKey(l.Identity.Derive("quic token"))
	calm := rate.NewLimiter(rate.Limit(l.current().HandshakesPerSecond),
		2*l.current().HandshakesPerSecond)
	transport := &quic.Transport{
		Conn:                l.Socket.PacketConn(),
		ConnectionIDLength:  connectionIDLength,
		StatelessResetKey:   &resetKey,
		TokenGeneratorKey:   &tokenKey,
		VerifySourceAddress: func(from net.Addr) bool { return l.needsRetry(calm, from) },
		ConnContext:         l.letIn,
	}
	trace := qlogs(l.log)
	configure := func(*quic.ClientInfo) (*quic.Config, error) { // by the current limits
		config := l.current().listenConfig(l.grants)
		config.Tracer = trace
		return config, nil
	}
	config, _ := configure(nil)
	config.GetConfigForClient = configure
	listener, err := transport.Listen(tlsConfig, config)
	if err != nil {
		return fmt.Errorf("listen on %v: %w", l.Socket.LocalAddr(), err)
	}

	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { l.noteSources(ctx) })
	for {
		conn, acceptErr := l.liveness.accept(ctx, listener)
		if acceptErr != nil {
			err = fmt.Errorf("listen on %v: %w", l.Socket.LocalAddr(), acceptErr)
			break
		}
		work.Go(func() {
			if link := l.makeLink(ctx, conn); link != nil {
				defer l.gone(link)
				link.run(l.Serve)
			}
		})
	}
	// First no new connections, then the end of those that are there, at last the transport that
	// sends it.
	_ = listener.Close()
	cancel()
	for _, link := range l.links().of(l, nil) {
		link.Close(wire.CloseClosing, "the relay is stopping")
	}
	work.Wait()
	_ = transport.Close()
	return err
}

// makeLink makes a link of a connection and starts it. It returns nil if the connection is refused.
func (l *Listener) makeLink(ctx context.Context, conn *quic.Conn) *Link {
	link, control, err := l.establish(ctx, conn)
	if err != nil {
		// As a rule it has lost the race between two addresses of this relay.
		l.log.Debug("connection did not become a link", slog.Any("remote", conn.RemoteAddr()),
			slog.Any("error", err))
		l.grants.release(conn)
		return nil
	}
	if ctx.Err() != nil { // Run may have closed all links before
		link.Close(wire.CloseClosing, "the relay is stopping")
	}
	link.start(control)
	l.logLink(slog.LevelInfo, "link up", link, slog.Any("remote", link.RemoteAddr()))
	return link
}

// gone forgets a link that is over.
func (l *Listener) gone(link *Link) {
	l.logLink(link.endLevel(), "link down", link, slog.Any("reason", link.Err()))
	l.links().remove(link)
	l.noteSource(link)
	if closed, ok := errors.AsType[*ClosedError](link.Err()); ok &&
		closed.Code == wire.CloseRevoked && !closed.Remote {
		l.links().door.Expel(link.Peer())
	}
	l.grants.release(link.conn)
}

// logLink logs that a link comes or goes. Beyond a rate a peer's lines have LevelDebug.
func (l *Listener) logLink(level slog.Level, msg string, link *Link, what slog.Attr) {
	level, leftOut := l.lines.Level(link.Peer(), level)
	l.log.LogAttrs(context.Background(), level, msg, slog.String("peer", link.Peer()), what,
		quiet.LeftOut(leftOut))
}

// establish waits until a connection is a link: its dialler has opened the control stream, and no
// other process keeps the peer's place.
func (l *Listener) establish(ctx context.Context, conn *quic.Conn) (*Link, *quic.Stream, error) {
	refuse := func(code wire.CloseCode, reason string) (*Link, *quic.Stream, error) {
		_ = conn.CloseWithError(quic.ApplicationErrorCode(code), reason)
		return nil, nil, errors.New(reason)
	}
	limits := l.current()
	id, key, err := l.identify(conn)
	if err != nil {
		return refuse(wire.CloseRevoked, "the key is not known")
	}
	if !l.links().reserve(id, limits.LinksPerPeer) {
		return refuse(wire.CloseProtocol, "too many connections with one key at once")
	}
	defer l.links().release(id)

	inTime, cancel := context.WithTimeout(ctx, limits.TipTimeout)
	defer cancel()
	control, err := conn.AcceptStream(inTime)
	if err != nil {
		return refuse(wire.CloseProtocol, "no control stream")
	}
	_ = control.SetReadDeadline(time.Now().Add(limits.TipTimeout))
	tip, err := wire.Read(control)
	hello, ok := tip.(*wire.Control)
	if err != nil || !ok {
		return refuse(wire.CloseProtocol, "the first stream is not a control stream")
	}
	_ = control.SetReadDeadline(time.Time{})
	link := newLink(conn, roleRelay, &l.clock, id, key, limits, l.log)
	link.listener, link.socket, link.hits, link.instance = l, l.Socket, &l.hits, hello.Instance
	for {
		holder, keeps := l.keepsPlace(ctx, link)
		if keeps {
			return refuse(wire.CloseContested, "another process with the same key has a link, "+
				"from "+holder.RemoteAddr().String())
		}
		switch { // keepsPlace may have taken seconds
		case ctx.Err() != nil:
			return refuse(wire.CloseClosing, "the relay is stopping")
		case link.Err() != nil:
			return nil, nil, link.Err()
		}
		switch l.links().add(link, holder, limits.Links) {
		case added:
			if holder != nil {
				holder.supersede(link)
			}
			return link, control, nil
		case tooMany:
			l.hits.hit(limitLinks, slog.String("peer", link.Peer()))
			return refuse(wire.CloseProtocol, "the relay has as many links as it may")
		case overtaken: // ask again
		}
	}
}

// supersede closes a link whose place a newer link of its peer has taken.
func (l *Link) supersede(newer *Link) {
	code := wire.CloseSuperseded
	if l.isRival(newer) {
		code = wire.CloseContested // it has not answered, and may ask again at once
	}
	l.Close(code, "a newer link with the same key has come from "+newer.RemoteAddr().String())
}

// Recheck calls Admit again for each live link. It closes links as revoked whose key is not
// admitted any more, or has another ID, and returns their number. Call it after a reload.
func (l *Listener) Recheck() int {
	gone := l.links().of(l, func(link *Link) bool {
		id, err := l.Admit(link.key)
		return err != nil || id != link.Peer()
	})
	for _, link := range gone {
		link.Close(wire.CloseRevoked, "the key was removed from the relay's config, or given "+
			"to another peer")
	}
	return len(gone)
}
