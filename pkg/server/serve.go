package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"ptthqd/pkg/link"
	"ptthqd/pkg/policy"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// serveLink serves the streams that a relay opens.
func (s *Server) serveLink(ctx context.Context, l *link.Link) {
	var streams sync.WaitGroup
	defer streams.Wait()
	for {
		stream, tip, err := l.Accept(ctx)
		if err != nil {
			return // the dialer logs why the link is over
		}
		streams.Go(func() { s.serve(l, stream, tip) })
	}
}

// serve has a stream carry a session until its end, or refuses it.
func (s *Server) serve(l *link.Link, stream wire.Stream, tip wire.Message) {
	client, inner := s.understand(l, stream, tip)
	switch m := inner.(type) {
	case *wire.Open:
		s.sessions.Open(client, m, stream, routeOver(l))
	case *wire.Resume:
		s.sessions.Resume(client, m, stream, routeOver(l))
	}
}

func routeOver(l *link.Link) *session.Route {
	return &session.Route{Link: l, Relay: l.Peer(), RTT: l.RTT(), Shared: true}
}

// understand returns which client asks for what. It refuses the stream and returns no inner message
// if the tip is malformed or the client opens too often.
func (s *Server) understand(
	l *link.Link, stream wire.Stream, tip wire.Message,
) (client string, inner wire.Message) {
	info := session.Info{Server: s.node, State: session.Closed, Relay: l.Peer()}
	refuse := func(status wire.Status, text string) {
		s.refuse(stream, &session.Refusal{Status: status, Text: text})
		s.ledger.Record(&session.Summary{Info: info, Status: status, Text: text, Outcome: session.OutcomeRefused})
	}
	incoming, ok := tip.(*wire.Incoming)
	if !ok {
		refuse(wire.StatusMalformed, fmt.Sprintf("a server takes no %T", tip))
		return "", nil
	}
	info.Client = incoming.Client
	inner, err := wire.ParseInner(incoming.Inner)
	if bad, ok := errors.AsType[*wire.InnerError](err); ok {
		info.ID = bad.ConnectionID()
		refuse(bad.Status(), bad.Error())
		return "", nil
	}
	names := incoming.Names()
	switch m := inner.(type) {
	case *wire.Resume:
		return cmp.Or(s.sessions.Holder(names, m.Token), s.nameFor(names, m.Target)), inner
	case *wire.Open:
		if refusal := s.mayOpen(incoming.Client); refusal != nil {
			info.ID, info.Source, info.Target = m.Token.ConnectionID(), m.Source, m.Target
			refuse(refusal.Status, refusal.Text)
			return "", nil
		}
		return cmp.Or(s.sessions.Holder(names, m.Token), s.nameFor(names, m.Target)), inner
	}
	return "", inner
}

// nameFor returns the first of a client's names under which it may reach a target. If there is
// none, it returns the client's present name.
func (s *Server) nameFor(names []string, target string) string {
	if len(names) > 1 {
		services := s.services.Load()
		for _, name := range names {
			if s.judge(services, name, target).Allowed {
				return name
			}
		}
	}
	return names[0]
}

// mayOpen returns a refusal if a client may not open a connection at this moment, whatever its
// target.
func (s *Server) mayOpen(client string) *session.Refusal {
	if s.stopping.Load() {
		return &session.Refusal{Status: wire.StatusNotConnected, Text: "the server is stopping"}
	}
	if !s.rates.allow(client) {
		s.hits.Hit("opens_per_second")
		return &session.Refusal{
			Status: wire.StatusTooMany,
			Text: "too many new connections a second from this client " +
				"(limits.opens_per_second of the server)",
		}
	}
	return nil
}

// refusalTime is how long a refused stream is read on. A reset instead would overtake the reply
// where the client still sends behind its tip.
const refusalTime = 5 * time.Second

// refuse answers a stream with a refusal, and finishes the stream.
func (s *Server) refuse(stream wire.Stream, r *session.Refusal) {
	deadline := time.Now().Add(refusalTime)
	_ = stream.SetReadDeadline(deadline)
	_ = stream.SetWriteDeadline(deadline)
	_, err := stream.Write(wire.Append(nil, &wire.Reply{Status: r.Status, Text: r.Text, Node: s.node}))
	if err == nil {
		err = stream.CloseWrite()
	}
	if err != nil {
		stream.Reset(wire.CodeLost)
		return
	}
	_, _ = io.Copy(io.Discard, stream)
	stream.CancelRead(wire.CodeLost)
}

// decide answers whether a client may reach a target, and if so how it is dialled.
func (s *Server) decide(client, target string) (session.Dial, *session.Refusal) {
	asked, err := policy.ParseTarget(target)
	if err != nil {
		return nil, &session.Refusal{Status: wire.StatusMalformed, Text: err.Error()}
	}
	services := s.services.Load()
	address, decision := services.Resolve(client, asked, s.host.Owns)
	if !decision.Allowed {
		return nil, notAllowed(client, target)
	}
	return func(ctx context.Context) (session.Conn, error) {
		// A reload since then has looked for the session before it was in the table.
		if now := s.services.Load(); now != services {
			if address, decision = now.Resolve(client, asked, s.host.Owns); !decision.Allowed {
				return nil, notAllowed(client, target)
			}
		}
		return s.dial(ctx, address, decision.Guarded)
	}, nil
}

// dial connects to a target and reports the outcome to Config.Dialled.
func (s *Server) dial(
	ctx context.Context, target policy.Target, guarded bool,
) (session.Conn, error) {
	began := time.Now()
	conn, err := s.dialer.connect(ctx, target, guarded)
	status := wire.StatusOpen
	if refusal, ok := errors.AsType[*session.Refusal](err); ok {
		status = refusal.Status
	}
	if s.config.Dialled != nil {
		s.config.Dialled(status, time.Since(began))
	}
	return conn, err
}

// notAllowed has one text for all such refusals: a client that is not allowed does not learn which
// services there are.
func notAllowed(client, target string) *session.Refusal {
	return &session.Refusal{
		Status: wire.StatusNotAllowed,
		Text:   fmt.Sprintf("the services of this server do not let %s reach %s", client, target),
	}
}

// judge returns what the services decide about a client and the text of a target.
func (s *Server) judge(services *policy.Services, client, target string) policy.Decision {
	asked, err := policy.ParseTarget(target)
	if err != nil {
		return policy.Decision{Reason: err.Error()}
	}
	_, decision := services.Resolve(client, asked, s.host.Owns)
	return decision
}

// ended records a session that has ended. The rule that refused it goes to this node's log, and not
// to the client.
func (s *Server) ended(sum session.Summary) {
	if sum.Status == wire.StatusNotAllowed || sum.Outcome == session.OutcomeRevoked {
		decision := s.judge(s.services.Load(), sum.Client, sum.Target)
		at := decision.Source.String()
		switch {
		case decision.Allowed && sum.Outcome != session.OutcomeRevoked: // refused at the dial, with its reason
		case decision.Allowed:
			sum.Node, sum.Text = wire.NodeRelay, "withdrawn at the relay"
		case at != "":
			sum.Text = decision.Reason + " (" + at + ")"
		default:
			sum.Text = decision.Reason
		}
	}
	s.ledger.Record(&sum)
}

// refused ends all sessions when no relay knows this node's key any more: they could never resume.
func (s *Server) refused() {
	s.sessions.End(func(session.Info) bool { return true }, session.OutcomeRevoked)
}

// revoked ends sessions when a relay says that it has withdrawn a client's right to reach a target,
// or all targets but the kept ones if the target is empty. Sessions that another relay carries have
// their right from that relay.
func (s *Server) revoked(l *link.Link, r *wire.Revoked) {
	relay := l.Peer()
	s.sessions.End(func(i session.Info) bool {
		ofTarget := i.Target == r.Target || r.Target == "" && !slices.Contains(r.Kept, i.Target)
		return i.Client == r.Client && i.Relay == relay && ofTarget
	}, session.OutcomeRevoked)
}
