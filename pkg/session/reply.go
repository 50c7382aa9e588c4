package session

import (
	"context"
	"errors"
	"os"
	"time"

	"ptthqd/pkg/wire"
)

// A Refusal is why a connection can't be opened.
type Refusal struct {
	Status wire.Status
	Text   string // for people at the client's end
}

func (r *Refusal) Error() string { return r.Status.String() + ": " + r.Text }

// refusalOf returns what the client is told about the error of a dial.
func refusalOf(err error) *Refusal {
	var r *Refusal
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &r):
		return r
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return &Refusal{wire.StatusTimeout, err.Error()}
	}
	return &Refusal{wire.StatusRefused, err.Error()}
}

// refuse replies with a refusal on a stream, and ends both of its halves.
func (v *Server) refuse(st wire.Stream, r *Refusal) {
	v.say(st, r)
	drain(st)
}

// say replies with a refusal, and ends the writing half of the stream.
func (v *Server) say(st wire.Stream, r *Refusal) {
	_, _ = st.Write(wire.Append(nil, &wire.Reply{Status: r.Status, Text: r.Text, Node: v.config.Node}))
	_ = st.CloseWrite()
}

// complete replies that the session has ended, and ends both halves of the stream.
func (v *Server) complete(st wire.Stream, granted wire.Granted) {
	_, _ = st.Write(wire.Append(nil, &wire.Reply{
		Status: wire.StatusComplete, Node: v.config.Node, Inner: wire.Append(nil, &granted),
	}))
	_ = st.CloseWrite()
	drain(st)
}

// epitaphUnlock answers for a session that is closed, with its refusal or its tombstone, and
// unlocks the session.
func (v *Server) epitaphUnlock(s *session, st wire.Stream) {
	sum := s.final
	s.mu.Unlock()
	if sum.Outcome == OutcomeRefused {
		v.refuse(st, &Refusal{sum.Status, sum.Text})
		return
	}
	v.mu.Lock()
	tomb := v.tombs[sessionKey{sum.Client, s.token}]
	v.mu.Unlock()
	if tomb == nil {
		v.refuse(st, &Refusal{wire.StatusNoSession, "the session has ended: " + string(sum.Outcome)})
		return
	}
	v.complete(st, tomb.granted)
}

// drain discards what still comes on a stream until the peer ends it, for farewellTime at most, and
// then ends the reading half.
func drain(st wire.Stream) {
	_ = st.SetReadDeadline(time.Now().Add(farewellTime))
	b := takeBuffer(smallBuffer)
	defer b.unref()
	for {
		if _, err := st.Read(b.b); err != nil {
			st.CancelRead(wire.CodeLost)
			return
		}
	}
}
