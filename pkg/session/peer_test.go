package session_test

import (
	"errors"
	"io"
	"testing"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// A peer is the other end of a stream, played by the test: it says what it
// likes.
type peer struct {
	t    testing.TB
	st   *memStream
	tip  wire.Message // at P4: what P2 asked
	link *memLink
	head []byte // read and not parsed yet
}

// play opens a stream to the server with a tip of the test's own, as client
// "laptop" or whoever.
func (n *network) play(client string, tip wire.Message) *peer {
	n.mu.Lock()
	l := n.links[0]
	n.mu.Unlock()
	a, b := n.stream(l)
	n.serving.Go(func() { serve(n.server, client, tip, b, &session.Route{Link: l, Relay: l.name, Shared: true}) })
	return &peer{n.t, a, nil, l, nil}
}

// hello is a well-formed open.
func hello(token byte) *wire.Open {
	return &wire.Open{
		Version: wire.Version, Token: wire.Token{token, 1}, Attempt: 1, Source: "x", Target: ":22",
		Limit: wire.InitialWindow, ResumeTimeout: 60e9,
	}
}

// again is a resume of the session of hello, of which nothing has come yet.
func again(token byte, attempt uint64) *wire.Resume {
	return &wire.Resume{
		Version: wire.Version, Token: wire.Token{token, 1}, Attempt: attempt, Source: "x", Target: ":22",
		Limit: wire.InitialWindow,
	}
}

// say writes bytes; that nobody takes them isn't an error.
func (p *peer) say(b []byte) { _, _ = p.st.Write(b) }

// frame writes a frame.
func (p *peer) frame(f wire.Frame, data ...byte) { p.say(append(f.Append(nil), data...)) }

// frames writes frames at once, those of data with zeros. The other end reads
// them at once if they are short, and says nothing between them.
func (p *peer) frames(fs ...wire.Frame) {
	var b []byte
	for _, f := range fs {
		b = f.Append(b)
		if f.Kind == wire.FrameData {
			b = append(b, make([]byte, f.Value)...)
		}
	}
	p.say(b)
}

// data writes a data frame.
func (p *peer) data(b []byte) { p.frame(wire.Frame{Kind: wire.FrameData, Value: uint64(len(b))}, b...) }

// grant replies 200.
func (p *peer) grant(g wire.Granted) { p.reply(wire.StatusOpen, "", &g) }

// opened is what a P4 grants to an open.
func opened() wire.Granted {
	return wire.Granted{Version: wire.Version, Limit: wire.InitialWindow, ResumeTimeout: 60e9}
}

func (p *peer) reply(status wire.Status, node string, g *wire.Granted) {
	r := &wire.Reply{Status: status, Node: node}
	if node == "" {
		r.Node = "evil"
	}
	if g != nil {
		r.Inner = wire.Append(nil, g)
	}
	p.say(wire.Append(nil, r))
}

// refuse replies, ends the stream, and reads it to its end.
func (p *peer) refuse(r *wire.Reply) {
	p.say(wire.Append(nil, r))
	_ = p.st.CloseWrite()
	_, _ = io.Copy(io.Discard, struct{ io.Reader }{p.st})
}

// answer reads the reply.
func (p *peer) answer() (*wire.Reply, *wire.Granted, error) {
	m, err := wire.Read(p.st)
	if err != nil {
		return nil, nil, err
	}
	reply, ok := m.(*wire.Reply)
	if !ok {
		p.t.Fatalf("the answer is a %T", m)
	}
	if len(reply.Inner) == 0 {
		return reply, nil, nil
	}
	inner, _, err := wire.Parse(reply.Inner)
	if err != nil {
		p.t.Fatal(err)
	}
	return reply, inner.(*wire.Granted), nil
}

// status reads the reply and returns its status, 0 if there is none.
func (p *peer) status() wire.Status {
	reply, _, err := p.answer()
	if err != nil {
		return 0
	}
	return reply.Status
}

// next reads a frame and its data.
func (p *peer) next() (wire.Frame, []byte, error) {
	for {
		f, n, err := wire.ParseFrame(p.head)
		switch {
		case err == nil:
			p.head = p.head[n:]
			if f.Kind != wire.FrameData {
				return f, nil, nil
			}
			data := make([]byte, f.Value)
			had := copy(data, p.head)
			p.head = p.head[had:]
			_, err := io.ReadFull(p.st, data[had:])
			return f, data, err
		case !errors.Is(err, io.ErrUnexpectedEOF):
			p.t.Fatalf("a frame of the session's: %v", err)
		}
		b := make([]byte, 1)
		if _, err := io.ReadFull(p.st, b); err != nil {
			return f, nil, err
		}
		p.head = append(p.head, b...)
	}
}

// until reads frames up to one of a kind.
func (p *peer) until(kind wire.FrameKind) (wire.Frame, []byte, error) {
	for {
		f, data, err := p.next()
		if err != nil || f.Kind == kind {
			return f, data, err
		}
	}
}

// end reads frames until the stream ends, and returns how.
func (p *peer) end() error {
	for {
		if _, _, err := p.next(); err != nil {
			return err
		}
	}
}

// resetWith tells with which code the other end has reset the stream, 0 if it
// hasn't.
func resetWith(err error) wire.StreamCode {
	var reset *wire.ResetError
	if errors.As(err, &reset) && reset.Remote {
		return reset.Code
	}
	return 0
}
