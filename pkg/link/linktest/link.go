package linktest

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"ptthqd/pkg/carrier"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
)

// The hosts of a Pair.
const (
	RelayHost    = "192.0.2.1"
	RelayAddress = RelayHost + ":30380"
	DiallerHost  = "10.0.0.1"
)

// Key returns a new key.
func Key(t testing.TB) ident.PrivateKey {
	t.Helper()
	key, err := ident.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Logger returns a logger of all levels into the test's log.
func Logger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Peers is a relay's config: the IDs by key. It must not change while it is in use.
type Peers map[ident.PublicKey]string

// Admit is for link.Listener.
func (p Peers) Admit(key ident.PublicKey) (string, error) {
	if id, ok := p[key]; ok {
		return id, nil
	}
	return "", errors.New("unknown key")
}

// Listener makes a link.Listener that is ready to Run. Its socket is closed when the test ends.
func (n *Network) Listener(address string, key ident.PrivateKey, peers Peers,
	serve func(context.Context, *link.Link),
) *link.Listener {
	n.t.Helper()
	log := Logger(n.t).With(slog.String("at", address))
	socket, err := carrier.New(n.Listen(address), log)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = socket.Close() })
	return &link.Listener{
		Socket: socket, Identity: key, Admit: peers.Admit, Serve: serve,
		Links: new(link.Links), Limits: n.Limits, Logger: log,
	}
}

// Dialer makes a link.Dialer of a host that is ready to Run.
func (n *Network) Dialer(host, relay string, relayKey ident.PublicKey, key ident.PrivateKey,
	serve func(context.Context, *link.Link),
) *link.Dialer {
	began := time.Now()
	return &link.Dialer{
		Address: relay, Keys: []ident.PublicKey{relayKey}, Identity: key, Serve: serve,
		Limits:       n.Limits,
		Logger:       Logger(n.t).With(slog.String("at", host)),
		ListenPacket: n.ListenPacket(host),
		// virtual in a bubble, as the host's is not
		SinceBoot: func() time.Duration { return time.Since(began) },
		Route:     func(netip.AddrPort) (netip.Addr, error) { return netip.ParseAddr(host) },
	}
}

// Run calls run, the Run of a Dialer or Listener, until stop is called or the test ends. stop
// returns when run has returned.
func (n *Network) Run(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = run(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	n.t.Cleanup(stop)
	return stop
}

// Pair returns both ends of one live link, of a client "client" to a relay, for as long as the test
// runs.
func (n *Network) Pair() (dialled, accepted *link.Link) {
	n.t.Helper()
	relay, client := Key(n.t), Key(n.t)
	hold := func(ends chan<- *link.Link) func(context.Context, *link.Link) {
		return func(ctx context.Context, l *link.Link) {
			select {
			case ends <- l:
			default: // a later link than the one that was asked for
			}
			<-ctx.Done()
		}
	}
	d, a := make(chan *link.Link, 1), make(chan *link.Link, 1)
	n.Run(n.Listener(RelayAddress, relay, Peers{client.Public(): "client"}, hold(a)).Run)
	n.Run(n.Dialer(DiallerHost, RelayAddress, relay.Public(), client, hold(d)).Run)
	return <-d, <-a
}
