package client

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// An intake is a way by which connections reach the client, such as the listener of a mapping.
// What carries a connection knows no more of where it came from than this.
type intake struct {
	name func() string // for the log
	gate gate          // bounds the connections that came this way
	cut  chan struct{} // closed when connections that wait for a link end
}

func newIntake(name func() string) *intake {
	return &intake{name: name, cut: make(chan struct{})}
}

// await counts one connection of the intake against its limit and that of the client. While a limit
// is reached it waits, and answers probe (see Client.Alive); further connections stay in the
// listener's queue. It reports false if ctx is done.
func (c *Client) await(ctx context.Context, in *intake, probe <-chan chan struct{}) bool {
	if !c.pass(ctx, &in.gate, in, probe, "sessions_per_mapping") {
		return false
	}
	if !c.pass(ctx, &c.gate, in, probe, "sessions") {
		in.gate.leave()
		return false
	}
	return true
}

// pass counts one connection against a limit, which has this name in the config. While the limit is
// reached it counts a hit, warns, answers probe and waits. It reports false if ctx is done.
func (c *Client) pass(
	ctx context.Context, g *gate, in *intake, probe <-chan chan struct{}, limit string,
) bool {
	for waited := false; ; {
		entered, room := g.tryEnter()
		if entered {
			return true
		}
		if !waited {
			waited = true
			c.hits.Hit(limit)
		}
		name := in.name()
		c.repeats.Warn(c.log, [2]string{name, limit}, "connections wait: limit reached",
			slog.String("mapping", name), slog.String("limit", limit))
		select {
		case <-room:
		case p := <-probe:
			close(p)
		case <-ctx.Done():
			return false
		}
	}
}

// carry waits for a live link, forwards one connection to its end, and gives back the place that
// await took for it.
func (c *Client) carry(in *intake, conn session.Conn, request *session.Request) {
	sum := c.awaitLink(in, request)
	if sum != nil {
		abort(conn)
	} else {
		// Its context is never done: the session ends at the latest when the sessions' Run ends.
		sum = c.sessions.Forward(context.Background(), conn, request)
	}
	c.ledger.Record(sum)
	in.gate.leave()
	c.gate.leave()
}

// awaitLink waits for a live link, at most for hold_timeout. It returns nil when there is one, else
// the summary of a connection that none came for.
func (c *Client) awaitLink(in *intake, r *session.Request) *session.Summary {
	changed := c.relays.Changed()
	if len(c.relays.Live()) > 0 {
		return nil
	}
	limits := &c.settings.Load().Limits
	began := time.Now()
	if entered, _ := c.held.tryEnter(); !entered {
		c.hits.Hit("held_connections")
		return unattached(r, began, session.OutcomeUnattached, fmt.Sprintf(
			"%d connections wait for a relay already: %s", limits.HeldConnections, c.whyNoLink()))
	}
	defer c.held.leave()
	timeout := time.NewTimer(limits.HoldTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-changed:
		case <-timeout.C:
			return unattached(r, began, session.OutcomeUnattached, fmt.Sprintf(
				"no relay connected within %v: %s", limits.HoldTimeout, c.whyNoLink()))
		case <-in.cut:
			return unattached(r, began, session.OutcomeRemoved, "")
		case <-c.carrying.Done():
			return unattached(r, began, session.OutcomeStopped, "")
		}
		changed = c.relays.Changed()
		if len(c.relays.Live()) > 0 {
			return nil
		}
	}
}

func unattached(
	r *session.Request, began time.Time, end session.Outcome, reason string,
) *session.Summary {
	return &session.Summary{
		Info: session.Info{
			ID:      session.NewToken().ConnectionID(),
			Mapping: r.Mapping, Server: r.Server, Target: r.Target,
			Source: r.Source, State: session.Closed, Opened: began,
		},
		Status: wire.StatusNotConnected, Text: reason, Outcome: end, Duration: time.Since(began),
	}
}

// whyNoLink says for each relay why it is not connected.
func (c *Client) whyNoLink() string {
	var reasons []string
	for _, r := range c.relays.States() {
		if r.LastError != "" {
			reasons = append(reasons, r.Address+": "+r.LastError)
		}
	}
	if len(reasons) == 0 {
		return "they are being dialled"
	}
	return strings.Join(reasons, "; ")
}

// abort closes a connection so that its peer sees a reset, where the connection allows it.
func abort(conn io.Closer) {
	if l, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = conn.Close()
}
