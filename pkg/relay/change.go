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

// Applied counts what a change of the rules ended.
type Applied struct {
	Links       int // closed because their keys are withdrawn
	Connections int // reset because they are no longer allowed
}

// Apply puts a new policy and new limits in force, and ends what the policy no longer allows:
//   - connections are reset with `revoked` at both ends;
//   - servers are told which sessions to end, since detached sessions have no stream here;
//   - clients are told to ask again for their detached sessions;
//   - links of withdrawn keys are closed.
//
// When it returns, all of this has been sent. The limits hold for what comes.
func (r *Relay) Apply(p *policy.Relay, l Limits) Applied {
	r.changing.Lock()
	defer r.changing.Unlock()
	now := &rules{policy: p, limits: l.withDefaults()}
	was := r.rules.Swap(now)
	renamed := r.rename(p)

	// Connections first: they end with `revoked`, and not with the loss of a link.
	connections := r.table.matching(func(c *connection) bool {
		return !c.decide(p).Allowed || !goesBy(p, c.from, c.client) ||
			c.to != nil && !goesBy(p, c.to, c.server)
	})
	for _, c := range connections {
		r.revoke(c, was.policy, p)
	}
	for _, c := range connections {
		<-c.done
	}
	r.withdraw(was.policy, p)

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
			// Detached sessions of this client wait before they ask again. If this message is lost,
			// they hear of the change when they ask.
			sending.Go(func() { _ = n.link.SendRevoked(n.id(), "") })
		}
	}
	sending.Wait()
	return applied
}

// withdraw marks in the table which remembered rights the new policy takes away.
func (r *Relay) withdraw(was, now *policy.Relay) {
	keyLost := make(map[string]bool)
	for _, client := range r.table.knownClients() {
		keyLost[client] = r.lostKey(now, client)
	}
	r.table.withdraw(func(server string, way right) standing {
		switch {
		case keyLost[way.client]:
			return lost
		case way.target == "" && lostTargets(was, now, way.client, server):
			return withdrawn
		case way.target != "" && !now.Allow(way.client, server, way.target).Allowed:
			return withdrawn
		}
		return stands
	})
}

// rename gives the links the IDs that a policy has for their peers, where the old ID is still one
// of the peer's names. It returns the links that have another ID now.
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

// belongs reports whether the policy still has the link's key as that of its peer, in the same
// role.
func belongs(p *policy.Relay, n *neighbour) bool { return goesBy(p, n, n.id()) }

// goesBy reports whether the policy has the link's key as that of the peer with this name, in the
// same role. The name may be one of several.
func goesBy(p *policy.Relay, n *neighbour, name string) bool {
	peer, known := p.PeerByKey(n.link.Key())
	return known && peer.Is(name) && peer.Role == n.role
}

// lostKey reports whether the key of a client's last link is withdrawn. The client's sessions end
// with that key, whatever rights its other keys have.
func (r *Relay) lostKey(p *policy.Relay, client string) bool {
	last, known := r.links.lastKey(client)
	if !known {
		return false
	}
	peer, known := p.PeerByKey(last)
	return !known || !peer.Is(client) || peer.Role != policy.RoleClient
}

// narrowed reports whether a client has lost one of its rules.
func narrowed(was, now *policy.Relay, client ident.PublicKey) bool {
	before, _ := was.PeerByKey(client)
	after, _ := now.PeerByKey(client)
	return slices.ContainsFunc(before.Allowed, func(lost policy.Rule) bool {
		return !slices.ContainsFunc(after.Allowed, func(kept policy.Rule) bool {
			return kept.Server == lost.Server && kept.Target == lost.Target
		})
	})
}

// lostTargets reports whether there is a target of a server that a client could reach before, and
// cannot now.
func lostTargets(was, now *policy.Relay, client, server string) bool {
	wasAll, before := was.Targets(anyOf(was, now, client), anyOf(was, now, server))
	all, after := now.Targets(client, server)
	return !all && (wasAll || slices.ContainsFunc(before, func(target string) bool {
		return !slices.Contains(after, target)
	}))
}

// anyOf returns a name that the old policy has for the peer with this name in the new one.
func anyOf(was, now *policy.Relay, name string) string {
	peer, _ := now.Peer(name)
	for _, other := range peer.Names() {
		if _, known := was.Peer(other); known {
			return other
		}
	}
	return name
}

// revoke resets a connection that is no longer allowed, and logs the rule that had allowed it.
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

// sendWithdrawn sends a server the rights that were withdrawn since the last time.
func (r *Relay) sendWithdrawn(n *neighbour) {
	if n.role != policy.RoleServer {
		return
	}
	for way, how := range r.table.takeWithdrawn(n.id()) {
		var kept []string
		if way.target == "" && how == withdrawn {
			all, targets := r.rules.Load().policy.Targets(way.client, n.id())
			if all {
				continue // the right was given back
			}
			if wire.FitsKept(targets) {
				kept = targets
			}
		}
		// The server may know the client's sessions by any of its names.
		for _, client := range append([]string{way.client}, r.otherNames(way.client)...) {
			if err := n.link.SendRevoked(client, way.target, kept...); err != nil {
				// Sessions with this right cannot resume over this relay, and expire.
				n.log().Warn("could not tell the server that a right was withdrawn",
					slog.String("client", client), slog.String("target", way.target), slog.Any("error", err))
			}
		}
	}
}

// drainQuiet is the least time that a drain waits for the next connection to leave. A client needs
// a few round trips to move its connections to another relay.
const drainQuiet = time.Second

// Drain tells all peers that the relay is about to stop, and takes no new connection. It waits
// until all connections have moved to other relays, or none has moved for a while, or ctx is done.
// It resets the rest with `closing` and returns how many there were. The links stay open: their
// owner closes them.
func (r *Relay) Drain(ctx context.Context) (left int) {
	r.closing.Store(true)
	quiet := drainQuiet
	var sending sync.WaitGroup
	defer sending.Wait()
	for _, n := range r.links.all() {
		quiet = max(quiet, 4*n.link.RTT())
		// Fails only if the link is ending.
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
