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

// refusalOf turns the error of a dial into what the client is told.
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

// refuse says no on a stream and ends it.
func (v *Server) refuse(st wire.Stream, r *Refusal) {
	v.say(st, r)
	drain(st)
}

// say writes a refusal, and the end of the stream.
func (v *Server) say(st wire.Stream, r *Refusal) {
	_, _ = st.Write(wire.Append(nil, &wire.Reply{Status: r.Status, Text: r.Text, Node: v.config.Node}))
	_ = st.End(nil)
}

// complete says that the session has ended.
func (v *Server) complete(st wire.Stream, granted wire.Granted) {
	_, _ = st.Write(wire.Append(nil, &wire.Reply{
		Status: wire.StatusComplete, Node: v.config.Node, Inner: wire.Append(nil, &granted),
	}))
	_ = st.End(nil)
	drain(st)
}

// epitaphLocked answers for a session that is closed. It unlocks it.
func (v *Server) epitaphUnlock(s *session, st wire.Stream) {
	sum := s.final
	s.mu.Unlock()
	if sum.End == EndRefused {
		v.refuse(st, &Refusal{sum.Status, sum.Text})
		return
	}
	v.mu.Lock()
	tomb := v.tombs[sessionKey{sum.Client, s.token}]
	v.mu.Unlock()
	if tomb == nil {
		v.refuse(st, &Refusal{wire.StatusNoSession, "the session has ended: " + string(sum.End)})
		return
	}
	v.complete(st, tomb.granted)
}

// drain reads what still comes on a stream until the client ends it, for a
// while, and ends its own half of reading.
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
