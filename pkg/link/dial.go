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

// The times of redialling, from protocol.md, section 2.
const (
	dialLeast     = time.Second      // the least time that one dial gets
	dialAnswered  = 10 * time.Second // what it gets once the relay has sent anything
	eagerFor      = time.Minute      // after a loss, one dial follows another without pause
	backoffFirst  = time.Second      // then pauses begin here, and double
	shortLived    = 5 * time.Second  // a link that lives less than this was none, for the pauses
	backoffMost   = 30 * time.Second
	supersededMin = 30 * time.Second // the least pause after another node has come with this one's key
	supersededMax = 5 * time.Minute
	resolveTime   = 3 * time.Second  // what a name server gets before the last known addresses are used
	resolveMost   = 25 * time.Second // what it gets if none are: the resolver gives each of its servers 5 s, twice
	maxAddresses  = 8                // of a name that are dialled
	watchEvery    = 2 * time.Second  // how often the local address and the clocks are looked at
	sleptAfter    = 5 * time.Second  // how late such a look may be before the host must have slept
)

// Dialer keeps a link to a relay: it dials, for ever. Set the fields, then call Run once; State may be called at any time.
type Dialer struct {
	// Address is the relay's name or IP address and UDP port; the port may be missing.
	Address string
	// Keys are the relay's, which the config pins: one, or more while its key is being changed. SetKeys changes them later.
	Keys []ident.PublicKey
	// Identity is the key of this node.
	Identity ident.PrivateKey
	// Serve is called for each live link, in a goroutine of its own, and returns soon after the link is over; then ctx is
	// done too. While a new link replaces an old one that still lives (after a change of address, say), both are served.
	Serve func(ctx context.Context, l *Link)
	// OnRevoked is called when the relay says that a client's right to reach a target was withdrawn: at a server all targets but
	// the kept ones if it is empty; a client hears that of itself, without a target, when it has lost some right. It must
	// not wait for anything that the link does. Nil: ignored.
	OnRevoked func(l *Link, r *wire.Revoked)
	// OnWelcome is told by which name the relay knows this node, on each link and when it changes. It must not block. Nil: ignored.
	OnWelcome func(name string)
	// LimitHit is told of each time that a limit makes something wait, with the limit's name in the config. It must not
	// block. Nil: nobody.
	LimitHit func(limit string)
	// Instance is that of this process: a relay gives its place to no other process with its key while this one answers.
	// Zero: the newest link wins.
	Instance wire.Instance
	// OnContested is called each time that the relay says that another process with this node's key has come to it, or has
	// its place. It must not block. Nil: ignored.
	OnContested func()
	// OnRefused is called each time that the relay says that it does not know this node's key. It must not block. Nil: ignored.
	OnRefused func()
	// Limits bound what the relay can make grow.
	Limits Limits
	// Logger gets a line for each link that comes or goes, and a few for each outage. Nil: none.
	Logger *slog.Logger

	// ListenPacket makes the UDP socket of a dial, Resolve finds a name's addresses, Route tells from which local address
	// packets to an address leave. Nil: the system's. Tests set them.
	ListenPacket func(ctx context.Context) (net.PacketConn, error)
	Resolve      func(ctx context.Context, host string) ([]netip.Addr, error)
	Route        func(to netip.AddrPort) (netip.Addr, error)

	// SinceBoot is the time since the host was started, suspension included. Nil: the system's. Tests set it.
	SinceBoot func() time.Duration

	clock awake.Clock // whose time a dial's patience and a link's silence are in

	// These are Run's alone.
	log          *slog.Logger
	limits       atomic.Pointer[Limits]
	hits         hits
	unknown      bool // the relay's last word was that it does not know the key
	tls          atomic.Pointer[tls.Config]
	host         string
	port         uint16
	known        []netip.AddrPort // what the name lookupResult to last
	lookup       lookup
	roundTrip    time.Duration // of the last link
	dialAt       time.Time     // when the last dial began
	rivalPause   time.Duration // the pause after the last time that another node came with this one's key
	notBefore    time.Time     // the end of that pause
	shortLinks   int           // links in a row that lived a short time; two may be a relay that was restarted twice
	outage       outage
	logRate      *rate.Limiter   // of the log, about links that come and go
	tokens       quic.TokenStore // spare a Retry, also after the relay's restart
	tally        tally
	rivalLogRate *rate.Limiter // of the log, about other nodes with this one's key

	mu        sync.Mutex
	contested time.Time // see State
	state     State
	peer      netip.AddrPort // where the last link or dial went, for watch
	kicked    func()         // ends a dial that a kick must not wait for; nil if there is none
}

// State is where a Dialer stands.
type State struct {
	Address   string
	Link      *Link     // the live link, nil while there is none
	Since     time.Time // when the link came up or went down, or Run began
	Attempts  int       // failed dials since the last link
	LastError string    // why the last dial failed or the last link ended, for people; empty if nothing has
	Reason    Reason    // the same in one word
	NextDial  time.Time // when the next dial begins, if it waits; otherwise zero
	Contested time.Time // when another node with this one's key last took its place at the relay; zero if none has
}

// SetLimits changes the limits, for links that are made from then on. Windows stays what it is.
func (d *Dialer) SetLimits(limits Limits) {
	limits.Windows = d.Limits.Windows
	d.limits.Store(limits.withDefaults())
}

// SetKeys changes the relay's keys. A link to a key that is none of them any more is closed, and made anew.
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

// State returns where the Dialer stands.
func (d *Dialer) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	state := d.state
	if state.Link != nil && state.Link.Err() != nil { // it died while a newer one was being dialled
		state.LastError = cmp.Or(state.LastError, state.Link.Err().Error())
		state.Link = nil
	}
	return state
}

// Run dials and redials until ctx is done. Then it closes the link, waits until Serve has returned for each, and returns the
// reason. It fails at once only if the fields make no sense.
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
		if current != nil { // it may still live, after a kick
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

var errKicked = errors.New("a new dial is due")

// redial dials until there is a link, which then replaces old, or ctx is done.
//
// For the first minute one dial follows another. Each has its time, so that a path which comes back is found at once, and
// begins no sooner than the one before it has had that time, so that a relay which refuses is not flooded. Later, and where
// the relay itself has said no, pauses grow up to half a minute. A kick begins all that anew.
func (d *Dialer) redial(ctx context.Context, old *Link, kicks <-chan string) (*Link, error) {
	eagerUntil := time.Now().Add(eagerFor)
	pause := backoffFirst
	next := d.dialAt.Add(min(dialLeast<<min(max(d.shortLinks-2, 0), 5), backoffMost)) // in the past, if the last link lived
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
			patience = max(patience, dialAnswered) // a path may be slower than anyone thought
		}
		link, err := d.dialFor(ctx, old, patience, !eager)
		if err == nil {
			select {
			case <-kicks: // what it was about is done
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

// dialFor dials as dial does; a kick ends it early if it is a patient one, which is not to be waited for.
func (d *Dialer) dialFor(ctx context.Context, old *Link, patience time.Duration, patient bool) (*Link, error) {
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

// waitUntil waits for a time, or less if there is a kick, which it returns. No kick shortens a rivalPause.
func (d *Dialer) waitUntil(ctx context.Context, next time.Time, kicks <-chan string) (why string, err error) {
	if next.Before(d.notBefore) {
		next = d.notBefore
		kicks = nil
	}
	select {
	case why = <-kicks: // before a time that is over already
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

// dial makes one attempt. It waits at most patience for any answer, and then at most dialAnswered for
// the link.
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

// introduce opens the control stream and waits until the relay has let this node in. For the dialler
// the handshake is over before the relay has looked at its key: only the relay's first heartbeat says
// that the key is admitted.
func (d *Dialer) introduce(ctx context.Context, winner *runner, old *Link, limits *Limits, release func()) (*Link, error) {
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
		old.replaced.Store(true) // before the relay can hear of the new one
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
