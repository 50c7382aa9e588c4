package daemon_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"ptthqd/pkg/control"
	"ptthqd/pkg/ident"
	"ptthqd/pkg/link"
	"ptthqd/test/testutil"
)

// dialAs dials a relay at a port of this host until the test ends.
func (s *site) dialAs(key string, port int, relay string) *link.Dialer {
	s.t.Helper()
	own, err := ident.LoadPrivateKey(s.path(key + ".key"))
	if err != nil {
		s.t.Fatal(err)
	}
	public, err := ident.ParsePublicKey(relay)
	if err != nil {
		s.t.Fatal(err)
	}
	d := &link.Dialer{
		Address: fmt.Sprintf("127.0.0.1:%d", port), Keys: []ident.PublicKey{public}, Identity: own,
		Serve: func(ctx context.Context, _ *link.Link) { <-ctx.Done() },
	}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(func() { _ = d.Run(ctx) })
	s.t.Cleanup(func() {
		cancel()
		work.Wait()
	})
	return d
}

func connected(id string) func(*control.Status) bool {
	return func(s *control.Status) bool {
		for _, p := range s.Peers {
			if p.ID == id {
				return p.Connected
			}
		}
		return false
	}
}

// The relay's listener obeys a limit of the config, and a change of it by a reload.
func TestLimitsOfLinks(t *testing.T) {
	s := newSite(t)
	public := s.key("relay")
	port := testutil.FreePort(t)
	peers := peer("a", s.key("a")) + peer("b", s.key("b"))
	s.write("relay.toml", relayConfig(port, "limits.links = 1\n"+peers))
	p := s.start("relay")
	s.dialAs("a", port, public)
	p.until("the first is connected", connected("a"))
	second := s.dialAs("b", port, public)
	p.until("the second is not", func(now *control.Status) bool {
		return !connected("b")(now) && strings.Contains(second.State().LastError, "as many links as it may")
	})
	s.write("relay.toml", relayConfig(port, "limits.links = 2\n"+peers))
	if done, err := p.Reload(t.Context()); err != nil || !done.OK {
		t.Fatalf("%+v, %v", done, err)
	}
	p.until("the second is connected", connected("b"))
}

// A penalty limits nodes with unknown keys at one address. It ends when a node comes with a known
// key.
func TestPenaltyEndsWithAReload(t *testing.T) {
	s := newSite(t)
	public := s.key("relay")
	port := testutil.FreePort(t)
	limits := "limits.auth_penalty = \"10m\"\n"
	s.write("relay.toml", relayConfig(port, limits))
	p := s.start("relay")
	known := s.key("a")
	d := s.dialAs("a", port, public)
	for i := range 12 {
		name := fmt.Sprint("stranger", i)
		s.key(name)
		s.dialAs(name, port, public)
	}
	p.until("it is refused, and others kept out", func(now *control.Status) bool {
		return strings.Contains(p.log.String(), "limit=auth_penalty") && strings.Contains(d.State().LastError, "does not know this node's key") &&
			slices.ContainsFunc(now.Waiting, func(w control.Waiting) bool { return w.Key == known && strings.HasPrefix(w.Address, "127.0.0.1:") })
	})
	s.write("relay.toml", relayConfig(port, limits+peer("a", known)))
	if done, err := p.Reload(t.Context()); err != nil || !done.OK {
		t.Fatalf("%+v, %v", done, err)
	}
	p.until("it is connected, and waits no more", func(now *control.Status) bool {
		return connected("a")(now) && !slices.ContainsFunc(now.Waiting, func(w control.Waiting) bool { return w.Key == known })
	})
}
