package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"ptthqd/pkg/config"
	"ptthqd/pkg/link"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// A Trace is the way of a mapping's connections, as far as it could be gone.
type Trace struct {
	Connection string // the ID in the logs of the last step that has one; empty if none has
	Hops       []Hop
}

// A Hop is one step of the way.
type Hop struct {
	From, To string
	Took     time.Duration // without the steps before
	Status   wire.Status   // StatusOpen, or why the step failed
	By       string        // of a failed step: the node that says so; empty for this node
	Text     string        // of a failed step: why, in words
}

// OK reports whether the step succeeded.
func (h Hop) OK() bool { return h.Status == wire.StatusOpen }

// traceSource stands for P1's address in a trace. All nodes log it.
const traceSource = "doctor"

const (
	// askTime is how long askServer waits. It is longer than a relay's park_timeout of 5 s by
	// default.
	askTime = 8 * time.Second
	// lookTime is how long a traced connection stays open after the target was reached, so that the
	// target can close it in order instead of by a reset.
	lookTime = 500 * time.Millisecond
)

// Trace goes the way of a mapping's connections: to each live relay, from there to the server, and
// from the server to the target, by a connection without data. The target sees only the last step.
func (c *Client) Trace(ctx context.Context, m *config.Mapping) Trace {
	var t Trace
	select {
	case <-c.ready:
	default:
		t.Hops = []Hop{{
			From: c.node(), To: "a relay", Status: wire.StatusNotConnected, Text: "the client is starting",
		}}
		return t
	}
	best := time.Duration(-1) // the least round trip to the server
	for _, r := range (router{c.relays}).Routes(m.Server) {
		// The least round trip: the smoothed one of a new link has the time of the handshake in it.
		if l, ok := r.Link.(*link.Link); ok {
			r.RTT = l.Stats().MinRTT
		}
		t.Hops = append(t.Hops, Hop{From: c.node(), To: r.Relay, Took: r.RTT, Status: wire.StatusOpen})
		hop, took := askServer(r, m)
		t.Connection = hop.connection
		t.Hops = append(t.Hops, hop.Hop)
		if hop.OK() && (best < 0 || took < best) {
			best = took
		}
	}
	switch {
	case len(t.Hops) == 0:
		t.Hops = []Hop{{
			From: c.node(), To: "a relay", Status: wire.StatusNotConnected,
			Text: "no relay is connected: " + c.whyNoLink(),
		}}
	case best >= 0:
		hop := c.askTarget(ctx, m, best)
		t.Connection = hop.connection
		t.Hops = append(t.Hops, hop.Hop)
	}
	return t
}

func (c *Client) node() string { return c.settings.Load().ID }

// asked is a step with an ID in the logs.
type asked struct {
	Hop
	connection string
}

// askServer measures the way to a server, and asks whether relay and server let this client reach
// the target. The target does not notice: the request is to resume a session that never was. Relay
// and server ask their rules, and then the server answers 410.
func askServer(r session.Route, m *config.Mapping) (hop asked, took time.Duration) {
	token := session.NewToken()
	hop.From, hop.To, hop.connection = r.Relay, m.Server, token.ConnectionID()
	inner := wire.Append(nil, &wire.Resume{
		Version: wire.Version, Token: token, Attempt: 1, Source: traceSource, Target: m.Target.String(),
		Limit: wire.InitialWindow, Probe: true,
	})
	failed := func(err error) {
		hop.Status = wire.StatusTimeout
		hop.Text = fmt.Sprintf("no answer from %s over %s: %v", m.Server, r.Relay, err)
	}
	began := time.Now()
	st, err := r.Open(&wire.Connect{Server: m.Server, Inner: inner}, nil)
	if err != nil {
		failed(err)
		return hop, 0
	}
	_ = st.SetReadDeadline(began.Add(askTime))
	message, err := wire.Read(st)
	took = time.Since(began)
	st.Reset(wire.CodeLost)
	reply, ok := message.(*wire.Reply)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		failed(fmt.Errorf("not within %v", askTime))
	case err != nil:
		failed(err)
	case !ok:
		failed(errors.New("the answer is not a reply"))
	case reply.Status == wire.StatusNoSession && reply.Node != wire.NodeRelay: // from the server
		hop.Status, hop.Took = wire.StatusOpen, max(took-r.RTT, 0)
	default:
		hop.Status, hop.By, hop.Text = reply.Status, reply.Node, reply.Text
	}
	return hop, took
}

// askTarget makes a connection to the target. The time beyond the way to the server is that of the
// server's dial.
func (c *Client) askTarget(
	ctx context.Context, m *config.Mapping, toServer time.Duration,
) (hop asked) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(c.carrying, stop)() // ends with the other sessions
	conn := &nothing{opened: make(chan struct{}), closed: make(chan struct{})}
	loops := c.ledger.Counts().Status[wire.StatusLoop]
	began := time.Now()
	var took time.Duration
	sum := c.sessions.Forward(ctx, conn, &session.Request{
		Mapping: m.Name, Server: m.Server, Target: m.Target.String(), Source: traceSource,
		ResumeTimeout: m.ResumeTimeout,
		Opened: func() {
			took = time.Since(began)
			close(conn.opened)
			time.AfterFunc(lookTime, stop)
		},
	})
	c.ledger.Record(sum)
	hop.From, hop.To, hop.connection = m.Server, m.Target.String(), sum.ID
	select {
	case <-conn.opened:
		if sum.Outcome == session.OutcomeResetByP5 && c.ledger.Counts().Status[wire.StatusLoop] > loops {
			// The target was this client's own listener, and the connection that came back was
			// refused.
			hop.Status, hop.By = wire.StatusLoop, m.Server
			hop.Text = "the mapping leads to itself: its target is a listener of this client"
			break
		}
		hop.Status, hop.Took = wire.StatusOpen, max(took-toServer, 0)
	default:
		hop.Status, hop.By, hop.Text = sum.Status, sum.Node, sum.Text
		if hop.Status == wire.StatusOpen { // it ended before an answer
			hop.Status, hop.Text = wire.StatusTimeout, string(sum.Outcome)
		}
	}
	return hop
}

// nothing is P1's side of a traced connection: it sends nothing, ends its half when the connection
// is open, and drops what arrives.
type nothing struct {
	opened, closed chan struct{}
	once           sync.Once
}

// Read returns io.EOF once the connection is open.
func (n *nothing) Read([]byte) (int, error) {
	select {
	case <-n.opened:
		return 0, io.EOF
	case <-n.closed:
		return 0, io.ErrClosedPipe
	}
}

// Write drops p.
func (n *nothing) Write(p []byte) (int, error) { return len(p), nil }

// CloseWrite does nothing.
func (n *nothing) CloseWrite() error { return nil }

// Close ends a Read that blocks.
func (n *nothing) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}
