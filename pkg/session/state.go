package session

import (
	"fmt"
	"slices"
	"time"
)

// A State is a state of a session. Both ends have the same states. A tombstone is no session.
type State string

// The states. PROTOCOL.md, section 5, has the diagram; transitions has its edges.
const (
	Opening  State = "opening"  // P4 hasn't replied yet
	Attached State = "attached" // a stream carries the session
	Detached State = "detached" // its stream is lost, and another hasn't come yet
	Closing  State = "closing"  // ended in both directions, or reset; not yet confirmed by the peer
	Closed   State = "closed"   // terminal
)

// transitions lists the states that may follow each state. A session that expires, is revoked or is
// refused may become Closed without having been Closing.
var transitions = map[State][]State{ //nolint:gochecknoglobals // a constant table
	Opening:  {Attached, Detached, Closing, Closed},
	Attached: {Detached, Closing, Closed},
	Detached: {Attached, Closing, Closed},
	Closing:  {Closed},
	Closed:   nil,
}

// strict makes a forbidden transition a panic.
var strict bool //nolint:gochecknoglobals // tests set it

// transitionLocked changes the session's state. A transition that the table forbids is a fault of
// this program: it is logged, and the state stays as it is.
func (s *session) transitionLocked(to State) {
	from := s.info.State
	switch {
	case from == to:
		return
	case !slices.Contains(transitions[from], to):
		if strict {
			panic(fmt.Sprintf("internal error: a session goes from %s to %s", from, to))
		}
		s.logger().Error("internal error: forbidden transition of a session", "from", string(from), "to", string(to))
		return
	}
	s.info.State, s.info.Since = to, time.Now()
}
