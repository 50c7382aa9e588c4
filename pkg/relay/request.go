package relay

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"ptthqd/pkg/policy"
	"ptthqd/pkg/wire"
)

// A request is the parsed tip of a client's stream.
type request struct {
	client  string
	server  string // as the client calls it
	to      string // the server's ID, which differs from server while the server is being renamed
	source  string // P1's address, as the client says
	target  string
	token   wire.Token
	attempt uint64
	resume  bool
	probe   bool   // a resume that asks only whether the way works
	hold    bool   // the client has no other relay to ask
	id      string // the connection ID
}

// parseRequest parses a tip. It returns the inner tip, which is forwarded unchanged. With an error,
// the request has what could be parsed, for the log.
func parseRequest(from *neighbour, tip wire.Message) (q request, inner []byte, err error) {
	q.client = from.id()
	connect, ok := tip.(*wire.Connect)
	if !ok {
		return q, nil, fmt.Errorf("a relay takes no %T", tip)
	}
	q.server, q.hold = connect.Server, connect.Hold
	if from.role != policy.RoleClient {
		return q, nil, fmt.Errorf("%s is a %s: only clients may connect", from.id(), from.role)
	}
	m, err := wire.ParseInner(connect.Inner)
	if bad, ok := errors.AsType[*wire.InnerError](err); ok {
		q.id = bad.ConnectionID()
		return q, nil, bad
	}
	switch m := m.(type) {
	case *wire.Open:
		q.token, q.attempt, q.source, q.target = m.Token, m.Attempt, m.Source, m.Target
	case *wire.Resume:
		q.token, q.attempt, q.source, q.target = m.Token, m.Attempt, m.Source, m.Target
		q.resume, q.probe = true, m.Probe
	}
	q.id = q.token.ConnectionID()
	return q, connect.Inner, nil
}

// decide asks the policy. The answer does not depend on who is connected, and a server that does
// not exist is one that is not allowed.
func (q request) decide(p *policy.Relay) policy.Decision {
	return p.Allow(q.client, q.server, q.target)
}

// attributes returns what identifies the connection in the log, without what could not be parsed.
func (q request) attributes() []any {
	all := make([]any, 0, 16) // callers append
	for _, a := range [...]struct{ key, value string }{
		{"connection", q.id},
		{"client", q.client},
		{"source", q.source},
		{"server", q.server},
		{"target", q.target},
	} {
		if a.value != "" {
			all = append(all, slog.String(a.key, a.value))
		}
	}
	return all
}

// A replyReader is the stream of a server. It parses the reply at the head of the stream while the
// bytes pass, and holds none of them back.
type replyReader struct {
	wire.Stream
	seen func(*wire.Reply) // called if the stream begins with a reply; must not keep Inner

	head []byte // the begin of an incomplete reply
	done bool
}

func (r *replyReader) Read(p []byte) (int, error) {
	n, err := r.Stream.Read(p)
	if !r.done && n > 0 {
		r.look(p[:n])
	}
	return n, err
}

func (r *replyReader) look(p []byte) {
	if len(r.head) > 0 {
		r.head = append(r.head, p...)
		p = r.head
	}
	m, _, err := wire.Parse(p)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		if len(r.head) == 0 {
			r.head = append(r.head, p...) // p is the caller's buffer; Parse bounds the length
		}
		return
	}
	r.done, r.head = true, nil
	if reply, ok := m.(*wire.Reply); ok {
		r.seen(reply)
	}
}
