package link_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/pkg/link/linktest"
)

// A nat is one address with peers of a relay behind it, and nodes whose keys the relay doesn't
// know.
type nat struct {
	*crowd
	up chan *link.Link // of the peers
}

func newNAT(t *testing.T, peers int) *nat {
	n := &nat{crowd: newCrowd(t, link.Limits{AuthPenalty: 5 * sec}), up: make(chan *link.Link, 1000)}
	known := linktest.Peers{n.key.Public(): "client"}
	n.stop()
	keys := make([]ident.PrivateKey, peers)
	for i := range keys {
		keys[i] = linktest.Key(t)
		known[keys[i].Public()] = fmt.Sprint("peer", i)
	}
	n.peers.Store(&known)
	n.start(n.listens, serves)
	for _, key := range keys {
		n.run(key, func(ctx context.Context, l *link.Link) {
			n.up <- l
			<-ctx.Done()
		})
	}
	return n
}

func (n *nat) run(key ident.PrivateKey, serve func(context.Context, *link.Link)) {
	n.network.Run(n.network.Dialer(linktest.DiallerHost, linktest.RelayAddress, n.relayKey.Public(), key, serve).Run)
}

// strangers returns so many nodes whose keys the relay doesn't know.
func (n *nat) strangers(count int) {
	for range count {
		n.run(linktest.Key(n), func(context.Context, *link.Link) { n.Error("a stranger has a link") })
	}
}

// serves has the relay keep its links to itself.
func serves(l *link.Listener) { l.Serve = func(ctx context.Context, _ *link.Link) { <-ctx.Done() } }

// allUp returns how long it takes until so many peers have a link.
func (n *nat) allUp(peers int) time.Duration {
	n.Helper()
	start := time.Now()
	for range peers {
		select {
		case <-n.up:
		case <-time.After(10 * time.Minute):
			n.Fatal("not all peers come back")
		}
	}
	return time.Since(start)
}

func TestRestartStormBehindOneAddress(t *testing.T) {
	for _, strangers := range []int{0, 40} {
		t.Run(fmt.Sprint(strangers, " strangers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const peers = 62
				n := newNAT(t, peers)
				n.allUp(peers)
				time.Sleep(time.Minute)
				n.stop()
				n.strangers(strangers)
				n.start(n.listens, serves)
				took := n.allUp(peers)
				t.Log("all are back after", took)
				if took > 2*sec {
					t.Errorf("%d peers are back after %v", peers, took)
				}
			})
		})
	}
}

// A known client comes and goes at any moment, beside three nodes with unknown keys.
func TestKnownClientBesideStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNAT(t, 0)
		n.strangers(3)
		for range 20 {
			time.Sleep(3700 * ms)
			up := make(chan *link.Link, 1)
			start := time.Now()
			stop := n.network.Run(n.newDialer(linktest.DiallerHost, up).Run)
			<-up
			if took := time.Since(start); took > 100*ms {
				t.Errorf("it is connected after %v", took)
			}
			stop()
		}
	})
}
