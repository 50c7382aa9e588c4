package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

// connectionIDLength is fixed, so that a restarted relay can answer the packets of before with a stateless reset.
const connectionIDLength = 8

// Listener takes the links of a relay's clients and servers. Set the fields, then call Run once.
type Listener struct {
	// Socket is where to listen. Run does not close it.
	Socket *Socket
	// Identity is the relay's key.
	Identity ident.PrivateKey
	// Admit returns the ID of the peer that has a key, or an error if it is nobody's. It is called in each handshake and by
	// Recheck, from several goroutines, and must only answer.
	Admit func(ident.PublicKey) (peerID string, err error)
	// Serve is called for each live link, in a goroutine of its own, and returns soon after the link is over; then ctx is
	// done too. It is called for a peer's newer link while it may still be busy with the older one.
	Serve func(ctx context.Context, l *Link)
	// Limits bound what peers and strangers can make grow.
	Limits Limits
	// Logger gets a line for each link that comes or goes. Nil: none.
	Logger *slog.Logger

	log    *slog.Logger
	limits *Limits
	grants *grants

	mu      sync.Mutex
	stopped bool
	live    map[string]*Link // the newest of each peer ID
	waiting map[string]int   // connections that are not links yet, of each peer ID
}

// Run listens until ctx is done or the socket fails. Then it closes all links as closing, waits until Serve has returned
// for each, and returns the reason.
func (l *Listener) Run(ctx context.Context) error {
	l.log = l.Logger
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	l.limits = l.Limits.withDefaults()
	l.grants = newGrants(l.limits.Windows)
	l.mu.Lock()
	l.live, l.waiting = map[string]*Link{}, map[string]int{}
	l.mu.Unlock()

	tlsConfig, err := ident.ListenTLS(l.Identity, func(key ident.PublicKey) error {
		_, err := l.Admit(key)
		return err
	})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	resetKey := quic.StatelessResetKey(l.Identity.Derive("quic stateless reset"))
	tokenKey := quic.TokenGeneratorKey(l.Identity.Derive("quic token"))
	calm := rate.NewLimiter(rate.Limit(l.limits.HandshakesPerSecond), 2*l.limits.HandshakesPerSecond)
	transport := &quic.Transport{
		Conn:                l.Socket.quic,
		ConnectionIDLength:  connectionIDLength,
		StatelessResetKey:   &resetKey,
		TokenGeneratorKey:   &tokenKey,
		VerifySourceAddress: func(net.Addr) bool { return !calm.Allow() },
	}
	listener, err := transport.Listen(tlsConfig, l.limits.quicConfig(l.grants))
	if err != nil {
		return fmt.Errorf("listen on %v: %w", l.Socket.LocalAddr(), err)
	}

	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	for {
		conn, acceptErr := listener.Accept(ctx)
		if acceptErr != nil {
			err = fmt.Errorf("listen on %v: %w", l.Socket.LocalAddr(), acceptErr)
			break
		}
		work.Go(func() { l.welcome(ctx, conn) })
	}
	// The order matters: no new connections, then an end for those that are there, then what sends it.
	_ = listener.Close()
	cancel()
	l.closeAll()
	work.Wait()
	_ = transport.Close()
	return err
}

// welcome takes one connection from its handshake to its end.
func (l *Listener) welcome(ctx context.Context, conn *quic.Conn) {
	defer l.grants.release(conn)
	link, control, err := l.admit(ctx, conn)
	if err != nil {
		// A loser of the race between two addresses of this relay, at most: its dialler has gone already.
		l.log.Debug("connection did not become a link", slog.Any("remote", conn.RemoteAddr()), slog.Any("error", err))
		return
	}
	l.register(link)
	defer l.unregister(link)
	link.start(control)
	l.log.Info("link up", slog.String("peer", link.peer), slog.Any("remote", link.RemoteAddr()))
	link.run(l.Serve)
	l.log.Info("link down", slog.String("peer", link.peer), slog.Any("reason", link.Err()))
}

// admit waits until a connection has become a link: its dialler has opened the control stream.
func (l *Listener) admit(ctx context.Context, conn *quic.Conn) (*Link, *quic.Stream, error) {
	refuse := func(code wire.CloseCode, reason string) (*Link, *quic.Stream, error) {
		_ = conn.CloseWithError(quic.ApplicationErrorCode(code), reason)
		return nil, nil, errors.New(reason)
	}
	key, err := ident.PeerKey(conn.ConnectionState().TLS)
	if err != nil {
		return refuse(wire.CloseProtocol, "no key")
	}
	id, err := l.Admit(key)
	if err != nil {
		return refuse(wire.CloseRevoked, "the key was removed")
	}
	if !l.enter(id) {
		return refuse(wire.CloseProtocol, "too many connections with one key at once")
	}
	defer l.leave(id)

	ctx, cancel := context.WithTimeout(ctx, l.limits.TipTimeout)
	defer cancel()
	control, err := conn.AcceptStream(ctx)
	if err != nil {
		return refuse(wire.CloseProtocol, "no control stream")
	}
	_ = control.SetReadDeadline(time.Now().Add(l.limits.TipTimeout))
	tip, err := wire.Read(control)
	if _, ok := tip.(*wire.Control); err != nil || !ok {
		return refuse(wire.CloseProtocol, "the first stream is not a control stream")
	}
	_ = control.SetReadDeadline(time.Time{})
	return newLink(conn, id, key, l.limits, l.log), control, nil
}

// enter counts a connection that is not a link yet; false is one too many.
func (l *Listener) enter(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[id] >= l.limits.LinksPerPeer {
		return false
	}
	l.waiting[id]++
	return true
}

func (l *Listener) leave(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waiting[id]--; l.waiting[id] == 0 {
		delete(l.waiting, id)
	}
}

// register makes a link its peer's one; the newest wins.
func (l *Listener) register(link *Link) {
	l.mu.Lock()
	old := l.live[link.peer]
	l.live[link.peer] = link
	stopped := l.stopped
	l.mu.Unlock()
	if stopped {
		link.Close(wire.CloseClosing, "the relay is stopping")
	}
	if old != nil {
		old.Close(wire.CloseSuperseded, "a newer link with the same key has come from "+link.RemoteAddr().String())
	}
}

func (l *Listener) unregister(link *Link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.live[link.peer] == link {
		delete(l.live, link.peer)
	}
}

func (l *Listener) closeAll() {
	l.mu.Lock()
	l.stopped = true
	links := slices.Collect(maps.Values(l.live))
	l.mu.Unlock()
	for _, link := range links {
		link.Close(wire.CloseClosing, "the relay is stopping")
	}
}

// Recheck asks Admit again for each live link and closes as revoked those whose key is not admitted any more, or for
// another ID. Call it after a reload. It returns how many it closed.
func (l *Listener) Recheck() int {
	l.mu.Lock()
	var gone []*Link
	for id, link := range l.live {
		if now, err := l.Admit(link.key); err != nil || now != id {
			gone = append(gone, link)
		}
	}
	l.mu.Unlock()
	for _, link := range gone {
		link.Close(wire.CloseRevoked, "the key was removed from the relay's config, or given to another peer")
	}
	return len(gone)
}
