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

// A Trace is what became of a connection that was made to see its way.
type Trace struct {
	Connection string // the ID of the last one that was asked for; empty if there was none
	Hops       []Hop
}

// A Hop is one step of the way.
type Hop struct {
	From, To string
	Took     time.Duration // the step's own
	Status   wire.Status   // StatusOpen, or why it failed
	By       string        // if it failed: the node that says so; empty for this one
	Text     string        // if it failed: why, in words
}

// OK tells whether a step was made.
func (h Hop) OK() bool { return h.Status == wire.StatusOpen }

// traceSource is what a trace gives as P1's address: all nodes log it.
const traceSource = "doctor"

const (
	// askTime is how long a server may take to answer a question: a relay holds it while it waits for the server.
	askTime = 8 * time.Second
	// lookTime is how long a traced connection stays open after its target was reached: time for the target to close it in
	// order, which is kinder than a reset.
	lookTime = 500 * time.Millisecond
)

// Trace goes the way of a mapping's connections: the round trip to each live relay, from there to the server, and from the
// server to the target, with a connection that carries nothing. Only the last step is seen by the target.
func (c *Client) Trace(ctx context.Context, m *config.Mapping) Trace {
	var t Trace
	select {
	case <-c.ready:
	default:
		t.Hops = []Hop{{From: c.node(), To: "a relay", Status: wire.StatusNotConnected, Text: "the client is starting"}}
		return t
	}
	best := time.Duration(-1) // from here to the server and back
	for _, r := range (router{c.relays}).Routes() {
		// The smallest round trip: the smoothed one of a new link holds what the handshake took.
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
		t.Hops = []Hop{{From: c.node(), To: "a relay", Status: wire.StatusNotConnected, Text: "no relay is connected: " + c.whyNoLink()}}
	case best >= 0:
		hop := c.askTarget(ctx, m, best)
		t.Connection = hop.connection
		t.Hops = append(t.Hops, hop.Hop)
	}
	return t
}

func (c *Client) node() string { return c.settings.Load().ID }

// asked is a step that has an ID in the logs.
type asked struct {
	Hop
	connection string
}

// askServer finds out how far a server is, and whether it lets this client reach the target, without a word to the target:
// it asks for a session to be resumed that there never was. Relay and server ask their rules; then the server says 410.
func askServer(r session.Route, m *config.Mapping) (hop asked, took time.Duration) {
	token := session.NewToken()
	hop.From, hop.To, hop.connection = r.Relay, m.Server, token.ConnectionID()
	inner := wire.Append(nil, &wire.Resume{
		Version: wire.Version, Token: token, Attempt: 1, Source: traceSource, Target: m.Target.String(), Limit: wire.InitialWindow, Probe: true,
	})
	failed := func(err error) {
		hop.Status, hop.Text = wire.StatusTimeout, fmt.Sprintf("no answer from %s over %s: %v", m.Server, r.Relay, err)
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
	case reply.Status == wire.StatusNoSession && reply.Node != wire.NodeRelay: // the server, whatever it calls itself
		hop.Status, hop.Took = wire.StatusOpen, max(took-r.RTT, 0)
	default:
		hop.Status, hop.By, hop.Text = reply.Status, reply.Node, reply.Text
	}
	return hop, took
}

// askTarget makes a connection to the target. What it took beyond the way to the server is the server's dial.
func (c *Client) askTarget(ctx context.Context, m *config.Mapping, toServer time.Duration) (hop asked) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(c.carrying, stop)() // the process may stop meanwhile
	conn := &nothing{opened: make(chan struct{}), closed: make(chan struct{})}
	loops := c.ledger.Counts().Status[wire.StatusLoop]
	began := time.Now()
	var took time.Duration
	sum := c.sessions.Forward(ctx, conn, session.Request{
		Mapping: m.Name, Server: m.Server, Target: m.Target.String(), Source: traceSource, ResumeTimeout: m.ResumeTimeout,
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
		if sum.End == session.EndResetByP5 && c.ledger.Counts().Status[wire.StatusLoop] > loops {
			// The target was this client's own listener, and what came back was refused.
			hop.Status, hop.By, hop.Text = wire.StatusLoop, m.Server, "the mapping leads to itself: its target is a listener of this client"
			break
		}
		hop.Status, hop.Took = wire.StatusOpen, max(took-toServer, 0)
	default:
		hop.Status, hop.By, hop.Text = sum.Status, sum.Node, sum.Text
		if hop.Status == wire.StatusOpen { // it was cut off before it was answered
			hop.Status, hop.Text = wire.StatusTimeout, string(sum.End)
		}
	}
	return hop
}

// nothing is P1's side of a traced connection: it says nothing, ends its half as soon as the connection is open, and drops
// what it hears.
type nothing struct {
	opened, closed chan struct{}
	once           sync.Once
}

// Read returns the end once the connection is open.
func (n *nothing) Read([]byte) (int, error) {
	select {
	case <-n.opened:
		return 0, io.EOF
	case <-n.closed:
		return 0, io.ErrClosedPipe
	}
}

// Write drops it.
func (n *nothing) Write(p []byte) (int, error) { return len(p), nil }

// CloseWrite does nothing: nobody reads.
func (n *nothing) CloseWrite() error { return nil }

// Close wakes Read.
func (n *nothing) Close() error {
	n.once.Do(func() { close(n.closed) })
	return nil
}
