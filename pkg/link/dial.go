package link

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/wire"
)

// The times of redialling (PROTOCOL.md, section 2).
const (
	dialLeast     = time.Second      // what a dial gets for the first answer, at least
	dialAnswered  = 10 * time.Second // what a dial gets for the link, once the relay has answered
	eagerFor      = time.Minute      // after a loss: one dial follows another without a pause
	backoffFirst  = time.Second      // the first pause after eagerFor; pauses double
	shortLived    = 5 * time.Second  // a link of a shorter life does not reset the pauses
	backoffMost   = 30 * time.Second // the longest pause
	supersededMin = 30 * time.Second // the first pause after a rival has taken the place
	supersededMax = 5 * time.Minute  // the longest such pause
	resolveTime   = 3 * time.Second  // what the name server gets while addresses are known
	// what it gets otherwise: the resolver tries each of its servers for 5 s, twice
	resolveMost  = 25 * time.Second
	maxAddresses = 8               // addresses of a name that a dial tries
	watchEvery   = 2 * time.Second // between two looks at the local address and the clocks
	sleptAfter   = 5 * time.Second // a look that is later than this shows that the host has slept
)

// A Dialer keeps a link to a relay: it dials until Run ends. Set the fields, then call Run once.
// State and Totals may be called at any time.
type Dialer struct {
	// Address is the relay's name or IP address and UDP port. The default port is wire.DefaultPort.
	Address string
	// Keys are the relay's keys that the config pins: one, or more while the relay's key is being
	// changed. SetKeys changes them later.
	Keys []ident.PublicKey
	// Identity is the key of this node.
	Identity ident.PrivateKey
	// Serve is called for each live link, in a goroutine of its own. It returns soon after the link
	// is over; ctx is done then. While a new link replaces an old one that still lives, both are
	// served.
	Serve func(ctx context.Context, l *Link)
	// OnRevoked is called when the relay withdraws rights. At a server the message names a client
	// and the target that it has lost; an empty target means all targets except the kept ones. At a
	// client the target is empty. OnRevoked must not wait for the link. Nil ignores the message.
	OnRevoked func(l *Link, r *wire.Revoked)
	// OnWelcome is called with the name by which the relay knows this node: on each link, and when
	// the name changes. It must not block. Nil ignores the message.
	OnWelcome func(name string)
	// LimitHit is called each time that a limit makes something wait, with the limit's name in the
	// config. It must not block. It may be nil.
	LimitHit func(limit string)
	// Instance names this process. While this process answers, a relay gives its place to no other
	// process with the same key. Zero: the newest link wins.
	Instance wire.Instance
	// OnContested is called each time that the relay reports another process with this node's key.
	// It must not block. It may be nil.
	OnContested func()
	// OnRefused is called each time that the relay reports that it does not know this node's key.
	// It must not block. It may be nil.
	OnRefused func()
	// Limits bound what the relay can make grow.
	Limits Limits
	// Logger gets a line for each link that comes or goes, and a few for each outage. It may be
	// nil.
	Logger *slog.Logger

	// ListenPacket opens the UDP socket of a dial, Resolve finds the addresses of a name, and Route
	// returns the local address from which packets to an address leave. Nil means the system's.
	// Tests set them.
	ListenPacket func(ctx context.Context) (net.PacketConn, error)
	Resolve      func(ctx context.Context, host string) ([]netip.Addr, error)
	Route        func(to netip.AddrPort) (netip.Addr, error)

	// SinceBoot returns the time since the host has started, suspension included. Nil means the
	// system's. Tests set it.
	SinceBoot func() time.Duration

	clock awake.Clock // measures the patience of dials and the silence of links

	// Only Run uses these.
	log        *slog.Logger
	limits     atomic.Pointer[Limits]
	hits       hits
	unknown    bool // the relay's last answer was that it does not know the key
	tls        atomic.Pointer[tls.Config]
	host       string
	port       uint16
	known      []netip.AddrPort // the addresses of the name, as last resolved
	lookup     lookup
	roundTrip  time.Duration // of the last link
	dialAt     time.Time     // when the last dial began
	rivalPause time.Duration // the last pause after a rival has taken this node's place
	notBefore  time.Time     // the end of that pause
	// short-lived links in a row; two may be a relay that has restarted twice
	shortLinks   int
	outage       outage
	logRate      *rate.Limiter   // of the log lines about links
	tokens       quic.TokenStore // spare a Retry, also after a restart of the relay
	tally        tally
	rivalLogRate *rate.Limiter // of the log lines about rivals

	mu        sync.Mutex
	contested time.Time // see State
	state     State
	peer      netip.AddrPort // address of the last link or dial, for watch
	kicked    func()         // ends the dial under way; nil if a kick can wait for that dial
}

// A State is what a Dialer is doing.
type State struct {
	Address   string
	Link      *Link     // the live link, nil while there is none
	Since     time.Time // when the link came up or went down, or Run began
	Attempts  int       // failed dials since the last link
	LastError string    // why the last dial failed or the last link ended, for people; empty before
	Reason    Reason    // LastError in one word
	NextDial  time.Time // when the next dial begins; zero unless the Dialer waits for it
	// when a rival last took or tried to take this node's place; zero if none has
	Contested time.Time
}

// SetLimits changes the limits of later links. Windows stays what it is.
func (d *Dialer) SetLimits(limits Limits) {
	limits.Windows = d.Limits.Windows
	d.limits.Store(limits.withDefaults())
}

// SetKeys changes the relay's keys. It closes a live link whose key is not one of them; Run makes a
// new one.
func (d *Dialer) SetKeys(keys []ident.PublicKey) error {
	config, err := ident.DialTLS(d.Identity, keys...)
	if err != nil {
		return fmt.Errorf("dial relay %q: %w", d.Address, err)
	}
	d.tls.Store(config)
	if l := d.State().Link; l != nil && !slices.Contains(keys, l.Key()) {
		l.Close(wire.CloseClosing, "the relay's key is not in the config any more")
	}
	return nil
}

// State returns what the Dialer is doing.
func (d *Dialer) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	state := d.state
	if state.Link != nil && state.Link.Err() != nil { // a newer one is being dialled
		state.LastError = cmp.Or(state.LastError, state.Link.Err().Error())
		state.Link = nil
	}
	return state
}

// Run dials and redials until ctx is done. Then it closes the link, waits until all calls of Serve
// have returned, and returns the reason. It fails at once only if the fields make no sense.
func (d *Dialer) Run(ctx context.Context) error {
	if err := d.prepare(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer d.lookup.work.Wait()
	defer cancel()
	d.lookup.lifetime = ctx
	kicks := make(chan string, 1)
	work.Go(func() { d.watch(ctx, kicks) })

	var current *Link
	for {
		link, err := d.redial(ctx, current, kicks)
		if current != nil { // after a kick it may still live
			current.Close(wire.CloseClosing, "replaced by a newer link")
		}
		if err != nil {
			return err
		}
		current = link
		d.up(link) // so Serve finds it in State
		work.Go(func() { link.run(d.Serve) })
		select {
		case <-ctx.Done():
			link.finish("stopping")
			return context.Cause(ctx)
		case <-link.Done():
			d.down(link)
		case why := <-kicks:
			d.logLink("making a fresh link", slog.String("reason", why))
		}
	}
}

func (d *Dialer) prepare() error {
	d.log = d.Logger
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.log = d.log.With(slog.String("relay", d.Address))
	d.limits.CompareAndSwap(nil, d.Limits.withDefaults())
	d.hits.log, d.hits.tell = d.log, d.LimitHit
	d.logRate = rate.NewLimiter(rate.Every(30*time.Minute), 20)
	d.rivalLogRate = contestedLines()
	d.tokens = quic.NewLRUTokenStore(maxAddresses, 4)
	if d.ListenPacket == nil {
		d.ListenPacket = listenPacket
	}
	if d.Resolve == nil {
		d.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if d.Route == nil {
		d.Route = route
	}
	if d.SinceBoot == nil {
		d.SinceBoot = sinceBoot
	}
	var err error
	if d.host, d.port, err = splitAddress(d.Address); err != nil {
		return fmt.Errorf("dial relay %q: %w", d.Address, err)
	}
	config, err := ident.DialTLS(d.Identity, d.Keys...)
	if err != nil {
		return fmt.Errorf("dial relay %q: %w", d.Address, err)
	}
	d.tls.CompareAndSwap(nil, config)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = State{Address: d.Address, Since: time.Now()}
	return nil
}

// A kick is a reason to make a fresh link now: the host has slept, or its address has changed.
var errKicked = errors.New("a new dial is due")

// redial dials until there is a link, which then replaces old, or ctx is done.
//
// For the first minute, dials follow each other without a pause, to find a path that comes back at
// once. Each begins no sooner than the patience of the one before is over, so a relay that refuses
// is not flooded. After that minute, and after a refusal by the relay, pauses grow up to
// backoffMost. A kick begins a new first minute.
func (d *Dialer) redial(ctx context.Context, old *Link, kicks <-chan string) (*Link, error) {
	eagerUntil := time.Now().Add(eagerFor)
	pause := backoffFirst
	// In the past, unless the last links were short-lived.
	next := d.dialAt.Add(min(dialLeast<<min(max(d.shortLinks-2, 0), 5), backoffMost))
	for {
		why, err := d.waitUntil(ctx, next, kicks)
		if err != nil {
			return nil, err
		}
		if why != "" {
			d.logLink("dialling at once", slog.String("reason", why))
			eagerUntil = time.Now().Add(eagerFor)
			pause = backoffFirst
		}
		patience := max(dialLeast, 4*d.roundTrip)
		eager := time.Now().Before(eagerUntil)
		if !eager {
			patience = max(patience, dialAnswered) // the path may be slow
		}
		link, err := d.dialFor(ctx, old, patience, !eager)
		if err == nil {
			select {
			case <-kicks: // the new link answers it
			default:
			}
			return link, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if errors.Is(err, errKicked) {
			next = time.Now()
			continue
		}
		failure := d.explain(err)
		d.unknown = failure.reason == DialUnknownKey
		if failure.reason == DialContested {
			d.noteRival()
			pause = min(pause, contestedMost)
		}
		if eager && !failure.final {
			next = d.dialAt.Add(patience + rand.N(patience/10))
		} else {
			next = time.Now().Add(pause - rand.N(pause/5))
			pause = min(2*pause, backoffMost)
		}
		d.failed(failure, next)
	}
}

// dialFor dials as dial does. A kick ends a patient dial early.
func (d *Dialer) dialFor(
	ctx context.Context, old *Link, patience time.Duration, patient bool,
) (*Link, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	d.dialAt = time.Now()
	d.mu.Lock()
	d.state.NextDial = time.Time{}
	if patient {
		d.kicked = func() { cancel(errKicked) }
	}
	d.mu.Unlock()
	link, err := d.dial(ctx, old, patience)
	d.mu.Lock()
	d.kicked = nil
	d.mu.Unlock()
	return link, err
}

// waitUntil waits until next, or until a kick, which it returns. A kick does not shorten
// rivalPause.
func (d *Dialer) waitUntil(
	ctx context.Context, next time.Time, kicks <-chan string,
) (why string, err error) {
	if next.Before(d.notBefore) {
		next = d.notBefore
		kicks = nil
	}
	select {
	case why = <-kicks: // even if next is in the past
		return why, nil
	default:
	}
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-timer.C:
		return "", nil
	case why = <-kicks:
		return why, nil
	}
}

// dial makes one attempt. It waits at most patience for any answer, and then at most dialAnswered
// for the link.
func (d *Dialer) dial(ctx context.Context, old *Link, patience time.Duration) (*Link, error) {
	addresses, err := d.addresses(ctx)
	if err != nil {
		return nil, err
	}
	limits := d.limits.Load()
	grants := newGrants(limits.Windows)
	config := limits.quicConfig(grants)
	config.Tracer = qlogs(d.log)
	config.HandshakeIdleTimeout = 2 * dialAnswered // withPatience ends it earlier
	config.TokenStore = d.tokens
	race := &race{tls: d.tls.Load(), config: config, tally: &d.tally}
	ctx, stop := race.withPatience(ctx, &d.clock, patience)
	defer stop()
	winner, err := race.run(ctx, d.ways(addresses))
	if err != nil {
		grants.releaseAll()
		return nil, err
	}
	release := func() {
		winner.close()
		grants.releaseAll()
	}
	link, err := d.introduce(ctx, winner, old, limits, release)
	if err != nil {
		_ = winner.conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseClosing), "gave up")
		release()
		return nil, err
	}
	return link, nil
}

// introduce opens the control stream and waits until the relay has let this node in. For the
// dialler the handshake is over before the relay has looked at its key: only the relay's first
// heartbeat says that the key is admitted.
func (d *Dialer) introduce(
	ctx context.Context, winner *runner, old *Link, limits *Limits, release func(),
) (*Link, error) {
	conn := winner.conn
	key, err := ident.PeerKey(conn.ConnectionState().TLS)
	if err != nil {
		return nil, err
	}
	control, err := conn.OpenStream()
	if err != nil {
		return nil, err
	}
	if old != nil {
		old.replaced.Store(true) // before the relay can hear of the new link
	}
	if _, err := control.Write(wire.Append(nil, &wire.Control{Instance: d.Instance})); err != nil {
		return nil, err
	}
	link := newLink(conn, roleNode, &d.clock, d.Address, key, limits, d.log)
	link.hits = &d.hits
	link.socket = winner.socket
	link.relay = &relayEvents{
		release: release, revoked: d.OnRevoked, contested: d.onContested, welcome: d.OnWelcome,
		confirmed: make(chan struct{}), closing: make(chan struct{}),
	}
	link.start(control)
	select {
	case <-link.relay.confirmed:
		d.tally.linked(link)
		return link, nil
	case <-conn.Context().Done():
		err = context.Cause(conn.Context())
	case <-ctx.Done():
		link.Close(wire.CloseClosing, "gave up")
		err = context.Cause(ctx)
	}
	link.wait()
	return nil, err
}
