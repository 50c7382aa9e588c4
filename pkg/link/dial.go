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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.org/x/time/rate"

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
	resolveTime   = 3 * time.Second        // what a name server gets before the last known addresses are used
	addressGap    = 250 * time.Millisecond // between dials of two addresses of a name (RFC 8305)
	maxAddresses  = 8                      // of a name that are dialled
	watchEvery    = 2 * time.Second        // how often the local address and the clocks are looked at
	sleptAfter    = 5 * time.Second        // how late such a look may be before the host must have slept
)

// Dialer keeps a link to a relay: it dials, for ever. Set the fields, then call Run once; State may be called at any time.
type Dialer struct {
	// Address is the relay's name or IP address and UDP port; the port may be missing.
	Address string
	// Key is the relay's key, which the config pins.
	Key ident.PublicKey
	// Identity is the key of this node.
	Identity ident.PrivateKey
	// Serve is called for each live link, in a goroutine of its own, and returns soon after the link is over; then ctx is
	// done too. While a new link replaces an old one that still lives (after a change of address, say), both are served.
	Serve func(ctx context.Context, l *Link)
	// OnRevoked is called when the relay says that client's right to reach target was withdrawn (all targets if empty). It must
	// not wait for anything that the link does. Nil: ignored.
	OnRevoked func(l *Link, client, target string)
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

	// These are Run's alone.
	log       *slog.Logger
	limits    *Limits
	tls       *tls.Config
	host      string
	port      uint16
	known     []netip.AddrPort // what the name resolved to last
	roundTrip time.Duration    // of the last link
	dialAt    time.Time        // when the last dial began
	penance   time.Duration    // the pause after the last time that another node came with this one's key
	notBefore time.Time        // the end of that pause
	short     int              // links in a row that lived a short time
	outage    outage
	lines     *rate.Limiter   // of the log, about links that come and go
	tokens    quic.TokenStore // spare a Retry, also after the relay's restart

	mu     sync.Mutex
	state  State
	peer   netip.AddrPort // where the last link or dial went, for watch
	kicked func()         // ends a dial that a kick must not wait for; nil if there is none
}

// State is where a Dialer stands.
type State struct {
	Address   string
	Key       ident.PublicKey
	Link      *Link     // the live link, nil while there is none
	Since     time.Time // when the link came up or went down, or Run began
	Attempts  int       // failed dials since the last link
	LastError string    // why the last dial failed or the last link ended, for people; empty if nothing has
	NextDial  time.Time // when the next dial begins, if it waits; otherwise zero
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
	defer cancel()
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
		work.Go(func() { link.run(d.Serve) })
		d.up(link)
		select {
		case <-ctx.Done():
			link.Close(wire.CloseClosing, "stopping")
			return context.Cause(ctx)
		case <-link.Done():
			d.down(link)
		case why := <-kicks:
			d.say("making a fresh link", slog.String("reason", why))
		}
	}
}

func (d *Dialer) prepare() error {
	d.log = d.Logger
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.log = d.log.With(slog.String("relay", d.Address))
	d.limits = d.Limits.withDefaults()
	d.lines = rate.NewLimiter(rate.Every(30*time.Minute), 20)
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
	if d.tls, err = ident.DialTLS(d.Identity, d.Key); err != nil {
		return fmt.Errorf("dial relay %q: %w", d.Address, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state = State{Address: d.Address, Key: d.Key, Since: time.Now()}
	return nil
}

// redial dials until there is a link, which then replaces old, or ctx is done.
//
// For the first minute one dial follows another. Each has its time, so that a path which comes back is found at once, and
// begins no sooner than the one before it has had that time, so that a relay which refuses is not flooded. Later, and where
// the relay itself has said no, pauses grow up to half a minute. A kick begins all that anew.
func (d *Dialer) redial(ctx context.Context, old *Link, kicks <-chan string) (*Link, error) {
	eagerUntil := time.Now().Add(eagerFor)
	pause := backoffFirst
	next := d.dialAt.Add(min(dialLeast<<min(max(d.short-1, 0), 5), backoffMost)) // in the past, if the last link lived
	for {
		why, err := d.waitUntil(ctx, next, kicks)
		if err != nil {
			return nil, err
		}
		if why != "" {
			d.say("dialling at once", slog.String("reason", why))
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

// waitUntil waits for a time, or less if there is a kick, which it returns. No kick shortens a penance.
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

var (
	errNoAnswer = errors.New("no answer")
	errTooSlow  = errors.New("answered, but not in time")
	errKicked   = errors.New("a new dial is due")
)

// dial makes one attempt, from a socket of its own: a NAT or a firewall that is stuck with the last one's port does no harm.
// It takes at most patience to get any answer, and then as long as the answer's completion may take.
func (d *Dialer) dial(ctx context.Context, old *Link, patience time.Duration) (_ *Link, err error) {
	addresses, err := d.addresses(ctx)
	if err != nil {
		return nil, err
	}
	pc, err := d.ListenPacket(ctx)
	if err != nil {
		return nil, fmt.Errorf("open a UDP socket: %v", err) //nolint:errorlint // explain tells it from an error of sending
	}
	socket, err := NewSocket(pc, d.log)
	if err != nil {
		return nil, err
	}
	transport := &quic.Transport{Conn: socket.quic, ConnectionIDLength: connectionIDLength}
	grants := newGrants(d.limits.Windows)
	config := d.limits.quicConfig(grants)
	config.HandshakeIdleTimeout = 2 * dialAnswered // the times below decide
	config.TokenStore = d.tokens
	release := func() {
		_ = transport.Close()
		_ = socket.Close()
		grants.releaseAll()
	}
	defer func() {
		if err != nil {
			release()
		}
	}()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silent := func() bool { return socket.received.Load() == 0 }
	unheard := time.AfterFunc(patience, func() {
		if silent() {
			cancel(cmp.Or(socket.sendError(), errNoAnswer))
		}
	})
	defer unheard.Stop()
	unfinished := time.AfterFunc(max(patience, dialAnswered), func() {
		if !silent() {
			cancel(errTooSlow)
		}
	})
	defer unfinished.Stop()

	conn, err := race(ctx, addresses, func(ctx context.Context, to netip.AddrPort) (*quic.Conn, error) {
		return transport.Dial(ctx, net.UDPAddrFromAddrPort(to), d.tls, config)
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseClosing), "gave up")
		}
	}()
	control, err := conn.OpenStream()
	if err != nil {
		return nil, err
	}
	if old != nil {
		old.replaced.Store(true) // before the relay can hear of the new one
	}
	if _, err := control.Write(wire.Append(nil, &wire.Control{})); err != nil {
		return nil, err
	}
	link := newLink(conn, d.Address, d.Key, d.limits, d.log)
	link.dialled, link.revoked, link.socket, link.release = true, d.OnRevoked, socket, release
	link.start(control)
	// The handshake is over for the dialler before the relay has looked at its key. Only the relay's first heartbeat says that
	// it has been let in.
	select {
	case <-link.confirmed:
		return link, nil
	case <-conn.Context().Done():
		link.wait()
		return nil, context.Cause(conn.Context())
	case <-ctx.Done():
		link.Close(wire.CloseClosing, "gave up")
		link.wait()
		return nil, context.Cause(ctx)
	}
}

// race dials the addresses, each addressGap after the one before or as soon as one has failed, until one answers.
func race(ctx context.Context, addresses []netip.AddrPort, dial func(context.Context, netip.AddrPort) (*quic.Conn, error)) (*quic.Conn, error) {
	type result struct {
		conn *quic.Conn
		err  error
	}
	results := make(chan result, len(addresses))
	var dials sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer func() { // the losers, one of which may have been as fast
		cancel()
		dials.Wait()
		close(results)
		for r := range results {
			if r.conn != nil {
				_ = r.conn.CloseWithError(quic.ApplicationErrorCode(wire.CloseClosing), "another address was faster")
			}
		}
	}()
	var failure error
	next := time.NewTimer(0)
	defer next.Stop()
	for unanswered := len(addresses); unanswered > 0; {
		select {
		case <-next.C:
			if len(addresses) == 0 {
				continue
			}
			to := addresses[0]
			addresses = addresses[1:]
			dials.Go(func() {
				conn, err := dial(ctx, to)
				results <- result{conn, err}
			})
			next.Reset(addressGap)
		case r := <-results:
			unanswered--
			if r.err == nil {
				return r.conn, nil
			}
			failure = cmp.Or(failure, r.err)
			next.Reset(0)
		}
	}
	return nil, failure
}

// addresses resolves the relay's name, again for each dial, and leaves out the addresses that no route leads to, if any other
// is left. A name server that fails does not matter while the last addresses are known.
func (d *Dialer) addresses(ctx context.Context) ([]netip.AddrPort, error) {
	ips := make([]netip.Addr, 1)
	var err error
	if ips[0], err = netip.ParseAddr(d.host); err != nil {
		ctx, cancel := context.WithTimeout(ctx, resolveTime)
		defer cancel()
		ips, err = d.Resolve(ctx, d.host)
	}
	if err == nil && len(ips) > 0 {
		d.known = d.known[:0]
		for _, ip := range alternate(ips) {
			d.known = append(d.known, netip.AddrPortFrom(ip, d.port))
		}
	}
	if len(d.known) == 0 {
		return nil, &resolveError{err}
	}
	reachable := slices.DeleteFunc(slices.Clone(d.known), func(a netip.AddrPort) bool {
		_, err := d.Route(a)
		return err != nil
	})
	if len(reachable) == 0 {
		reachable = slices.Clone(d.known)
	}
	d.mu.Lock()
	d.peer = reachable[0]
	d.mu.Unlock()
	return reachable, nil
}

type resolveError struct{ err error }

func (e *resolveError) Error() string { return "no address" }
func (e *resolveError) Unwrap() error { return e.err }

// alternate orders addresses so that the families take turns, beginning with the first one's (RFC 8305, section 4), and cuts
// the list at maxAddresses.
func alternate(ips []netip.Addr) []netip.Addr {
	var first, second, all []netip.Addr
	for _, ip := range ips {
		ip = ip.Unmap()
		if ip.Is4() == ips[0].Unmap().Is4() {
			first = append(first, ip)
		} else {
			second = append(second, ip)
		}
	}
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			all = append(all, first[i])
		}
		if i < len(second) {
			all = append(all, second[i])
		}
	}
	return all[:min(len(all), maxAddresses)]
}

// watch kicks when the host has slept or this process stood still, and when packets to the relay leave from another address
// than before or a route appears. It asks the routing table, without sending anything.
func (d *Dialer) watch(ctx context.Context, kicks chan<- string) {
	kick := func(why string) {
		select {
		case kicks <- why:
		default: // one is waiting
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.kicked != nil {
			d.kicked()
		}
	}
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	at, boot := time.Now(), d.SinceBoot()
	var to netip.AddrPort
	var from netip.Addr
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		late := max(time.Since(at), d.SinceBoot()-boot) - watchEvery
		at, boot = time.Now(), d.SinceBoot()
		if late > sleptAfter {
			kick(fmt.Sprintf("this host or process slept for %v", late.Round(time.Second)))
		}
		d.mu.Lock()
		peer, linked := d.peer, d.state.Link != nil
		d.mu.Unlock()
		if !peer.IsValid() {
			continue
		}
		now, _ := d.Route(peer) // without a route: the zero address
		switch {
		case peer != to || now == from:
		case !now.IsValid():
			continue // what was before counts, for when it comes back
		case from.IsValid():
			kick(fmt.Sprintf("the local address changed from %v to %v", from, now))
		case !linked:
			kick("a route to the relay appeared")
		}
		to, from = peer, now
	}
}

// up notes a new link.
func (d *Dialer) up(link *Link) {
	d.mu.Lock()
	d.peer = link.RemoteAddr()
	d.state = State{Address: d.Address, Key: d.Key, Link: link, Since: link.since}
	d.mu.Unlock()
	attrs := []any{slog.Any("remote", link.RemoteAddr())}
	if failed := d.outage.end(); failed > 0 {
		attrs = append(attrs, slog.Int("failed_dials", failed))
	}
	d.say("link up", attrs...)
}

// say logs that a link comes or goes. A link that comes and goes all night is a few lines.
func (d *Dialer) say(msg string, attrs ...any) {
	level := slog.LevelInfo
	if !d.lines.Allow() {
		level = slog.LevelDebug
	}
	d.log.Log(context.Background(), level, msg, attrs...)
}

// down notes the end of a link that no other has replaced.
func (d *Dialer) down(link *Link) {
	err := link.Err()
	stats := link.Stats()
	d.roundTrip = max(stats.RTT, stats.AppRTT)
	if d.short++; time.Since(link.since) >= shortLived {
		d.short = 0
	}
	d.mu.Lock()
	d.state = State{Address: d.Address, Key: d.Key, Since: time.Now(), LastError: err.Error()}
	d.mu.Unlock()
	closed, _ := errors.AsType[*ClosedError](err)
	if closed == nil || closed.Code != wire.CloseSuperseded || !closed.Remote || link.replaced.Load() {
		d.say("link down", slog.Any("reason", err))
		if time.Since(link.since) > supersededMax {
			d.penance = 0
		}
		return
	}
	d.penance = min(max(2*d.penance, supersededMin), supersededMax)
	d.notBefore = time.Now().Add(d.penance + rand.N(d.penance/10))
	d.log.Error("another node holds this node's key: the relay gave its link preference over ours. "+
		"Each node needs a key of its own: make one with `ptthqd keygen`, and have the relay's config name it",
		slog.Any("public_key", d.Identity.Public()), slog.Any("reason", err), slog.Duration("pause", d.penance))
}

// failed notes a dial that failed. The log gets few of them.
func (d *Dialer) failed(f failure, next time.Time) {
	d.mu.Lock()
	d.state.Attempts++
	d.state.LastError = f.words
	d.state.NextDial = next
	d.mu.Unlock()
	if n, worth := d.outage.add(f); worth {
		d.log.Warn("no link to the relay", slog.String("error", f.words), slog.Int("failed_dials", n))
	}
}

// outage sums up the failures between two links: the log gets the first, some that are of another kind, and one after 1 and
// 10 minutes and 1, 2, 4 ... hours.
type outage struct {
	since  time.Time
	count  int
	logged time.Duration // since then, at the last line
	words  string
	others int
}

// maxOthers is how many lines an outage gets because the failure is not the one before.
const maxOthers = 5

func (o *outage) add(f failure) (count int, worth bool) {
	o.count++
	if o.count == 1 {
		o.since, o.words = time.Now(), f.words
		return 1, true
	}
	after := time.Since(o.since)
	for _, step := range []time.Duration{time.Minute, 10 * time.Minute, time.Hour} {
		worth = worth || o.logged < step && after >= step
	}
	worth = worth || o.logged >= time.Hour && after >= 2*o.logged
	if f.words != o.words && o.others < maxOthers {
		o.others++
		worth = true
	}
	if worth {
		o.words = f.words
		o.logged = after
	}
	return o.count, worth
}

// end returns how many failures there were.
func (o *outage) end() int {
	n := o.count
	*o = outage{}
	return n
}

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
		closed := linkError(e).(*ClosedError)
		switch closed.Code {
		case wire.CloseRevoked:
			return failure{d.unknownKey(), true}
		case wire.CloseClosing:
			return failure{fmt.Sprintf("the relay at %s is stopping", d.Address), false}
		}
		return failure{fmt.Sprintf("the relay at %s ended the link at once: %v", d.Address, closed), true}
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

// splitAddress takes a relay's address apart; a missing port is the default one.
func splitAddress(address string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		host, text = strings.Trim(address, "[]"), strconv.Itoa(wire.DefaultPort)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("%q is no UDP port", text)
	}
	if host == "" {
		return "", 0, errors.New("the host is missing")
	}
	return host, uint16(n), nil
}

// listenPacket opens a UDP socket for both families, where the host has both.
func listenPacket(ctx context.Context) (net.PacketConn, error) {
	return (&net.ListenConfig{}).ListenPacket(ctx, "udp", ":0")
}

// route is the local address from which packets to an address leave. Connecting a UDP socket sends nothing.
func route(to netip.AddrPort) (netip.Addr, error) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	return addrPort(conn.LocalAddr()).Addr(), nil
}
