package relay

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

// Applied is what a change of the rules ended.
type Applied struct {
	Links       int // closed, as their keys are withdrawn
	Connections int // reset, as they are no longer allowed
}

// Apply puts a new policy and new limits into force, and ends what the policy no
// longer allows: connections are reset with `revoked` at both ends, servers hear
// which sessions to end even if they are detached, clients to ask again for theirs,
// and links of withdrawn keys are closed. When it returns, all this has been said. Limits hold for what comes.
func (r *Relay) Apply(p *policy.Relay, l Limits) Applied {
	r.changing.Lock()
	defer r.changing.Unlock()
	now := &rules{policy: p, limits: l.withDefaults()}
	was := r.rules.Swap(now)
	renamed := r.rename(p)

	// Connections first, so that they end with `revoked`, not with the loss of a link.
	connections := r.table.matching(func(c *connection) bool {
		return !c.decide(p).Allowed || !goesBy(p, c.from, c.client) || c.to != nil && !goesBy(p, c.to, c.server)
	})
	for _, c := range connections {
		r.revoke(c, was.policy, p)
	}
	for _, c := range connections {
		<-c.done
	}

	keyLost := make(map[string]bool)
	for _, client := range r.table.knownClients() {
		keyLost[client] = r.lostKey(p, client)
	}
	r.table.withdraw(func(server string, way right) standing {
		switch {
		case keyLost[way.client]:
			return lost
		case way.target == "" && lostTargets(was.policy, p, way.client, server):
			return withdrawn
		case way.target != "" && !p.Allow(way.client, server, way.target).Allowed:
			return withdrawn
		}
		return stands
	})
	applied := Applied{Connections: len(connections)}
	var sending sync.WaitGroup
	for _, n := range r.links.all() {
		if !belongs(p, n) {
			n.log().Warn("link closed: its key is not in the config any more")
			n.link.Close(wire.CloseRevoked, withdrawnKey)
			applied.Links++
			continue
		}
		n.opens.SetLimit(rate.Limit(now.limits.OpensPerSecond))
		n.opens.SetBurst(2 * now.limits.OpensPerSecond)
		sending.Go(func() { r.sendWithdrawn(n) })
		if slices.Contains(renamed, n) {
			sending.Go(func() { _ = n.link.SendWelcome(n.id()) })
		}
		if narrowed(was.policy, p, n.link.Key()) {
			// Its sessions that are detached wait before they ask again: now there is an answer. One that isn't told
			// hears it when it asks.
			sending.Go(func() { _ = n.link.SendRevoked(n.id(), "") })
		}
	}
	sending.Wait()
	return applied
}

// rename has the links go by the names that a policy gives to their peers, if it is to the same ones: the name of before is
// still understood. It returns those whose name is another now.
func (r *Relay) rename(p *policy.Relay) (renamed []*neighbour) {
	for _, n := range r.links.all() {
		if peer, _ := p.PeerByKey(n.link.Key()); belongs(p, n) && peer.ID != n.id() {
			n.log().Info("peer renamed", "name", peer.ID)
			n.call(peer.ID, r.log)
			renamed = append(renamed, n)
		}
	}
	r.links.follow(p)
	r.table.follow(otherNames(p))
	return renamed
}

// belongs tells whether a link's key still is that of its peer, in the same role.
func belongs(p *policy.Relay, n *neighbour) bool { return goesBy(p, n, n.id()) }

// goesBy tells whether a link's key is that of the peer with this name, among others, in the same role.
func goesBy(p *policy.Relay, n *neighbour, name string) bool {
	peer, known := p.PeerByKey(n.link.Key())
	return known && peer.Is(name) && peer.Role == n.role
}

// lostKey tells whether the key with which a client was last here is withdrawn. Its
// sessions go with it, whichever rights its other keys have.
func (r *Relay) lostKey(p *policy.Relay, client string) bool {
	last, known := r.links.lastKey(client)
	if !known {
		return false
	}
	peer, known := p.PeerByKey(last)
	return !known || !peer.Is(client) || peer.Role != policy.RoleClient
}

// narrowed tells whether a client has lost one of its rules.
func narrowed(was, now *policy.Relay, client ident.PublicKey) bool {
	before, _ := was.PeerByKey(client)
	after, _ := now.PeerByKey(client)
	return slices.ContainsFunc(before.Allowed, func(lost policy.Rule) bool {
		return !slices.ContainsFunc(after.Allowed, func(kept policy.Rule) bool {
			return kept.Server == lost.Server && kept.Target == lost.Target
		})
	})
}

// lostTargets tells whether there is a target of a server that a client could reach before, and can't now.
func lostTargets(was, now *policy.Relay, client, server string) bool {
	wasAll, before := was.Targets(anyOf(was, now, client), anyOf(was, now, server))
	all, after := now.Targets(client, server)
	return !all && (wasAll || slices.ContainsFunc(before, func(target string) bool { return !slices.Contains(after, target) }))
}

// anyOf is a name by which the policy of before knows the peer that has this name now.
func anyOf(was, now *policy.Relay, name string) string {
	peer, _ := now.Peer(name)
	for _, other := range peer.Names() {
		if _, known := was.Peer(other); known {
			return other
		}
	}
	return name
}

// revoke resets a connection that is no longer allowed, and names the rule that
// had allowed it.
func (r *Relay) revoke(c *connection, was, now *policy.Relay) {
	d := c.decide(now)
	why := d.Reason
	if d.Allowed {
		why = "the key of its client or server was withdrawn"
	}
	c.from.log().Warn("connection revoked", append(c.attributes(),
		slog.String("reason", why),
		slog.String("allowed_before_by", c.decide(was).Source.String()),
	)...)
	c.reset(wire.CodeRevoked, "not allowed any more")
}

// sendWithdrawn tells a server which rights were withdrawn since it was last told.
func (r *Relay) sendWithdrawn(n *neighbour) {
	if n.role != policy.RoleServer {
		return
	}
	for way, how := range r.table.takeWithdrawn(n.id()) {
		var kept []string
		if way.target == "" && how == withdrawn {
			all, targets := r.rules.Load().policy.Targets(way.client, n.id())
			if all {
				continue // it was given back
			}
			if wire.FitsKept(targets) {
				kept = targets
			}
		}
		// The server may know the client's sessions by any of its names.
		for _, client := range append([]string{way.client}, r.otherNames(way.client)...) {
			if err := n.link.SendRevoked(client, way.target, kept...); err != nil {
				// Its sessions can't resume over this relay, and end by their timeout.
				n.log().Warn("could not tell the server that a right was withdrawn",
					slog.String("client", client), slog.String("target", way.target), slog.Any("error", err))
			}
		}
	}
}

// drainQuiet is how long a drain waits for the next connection to leave, at least. A
// client whose other relays can take its connections needs a few round trips to move them.
const drainQuiet = time.Second

// Drain tells all peers that the relay is about to go, takes no new connection, and waits
// until all connections have moved elsewhere, or none has for a while, so that nothing
// else can be done, or ctx is done. It resets those that are left with `closing` and tells how
// many they were. The links are still open then, and their owner's to close.
func (r *Relay) Drain(ctx context.Context) (left int) {
	r.closing.Store(true)
	quiet := drainQuiet
	var sending sync.WaitGroup
	defer sending.Wait()
	for _, n := range r.links.all() {
		quiet = max(quiet, 4*n.link.RTT())
		// A link that can't carry it is ending by itself.
		sending.Go(func() { _ = n.link.SendClosing() })
	}
	timer := time.NewTimer(quiet)
	defer timer.Stop()
wait:
	for r.table.len() > 0 {
		select {
		case <-r.table.left:
			timer.Reset(quiet)
		case <-timer.C:
			break wait
		case <-ctx.Done():
			break wait
		}
	}
	rest := r.table.matching(func(*connection) bool { return true })
	for _, c := range rest {
		c.reset(wire.CodeClosing, aboutToStop)
	}
	for _, c := range rest {
		<-c.done
	}
	return len(rest)
}
