package session

import (
	"fmt"
	"slices"
	"time"
)

// A State is a state of a session, the same at both ends. Tombstones are not sessions.
type State string

// The states. PROTOCOL.md, section 5, has the diagram; transitions has its edges.
const (
	Opening  State = "opening"  // P4 hasn't replied yet
	Attached State = "attached" // a stream carries the session
	Detached State = "detached" // its stream is lost, and another hasn't come yet
	Closing  State = "closing"  // both directions have ended, or it was reset; the peer has yet to confirm that
	Closed   State = "closed"   // terminal
)

// transitions lists the states that may follow each state. A session closes without being closed
// by both sides first when it expires, is revoked, or is refused.
var transitions = map[State][]State{ //nolint:gochecknoglobals // a constant table
	Opening:  {Attached, Detached, Closing, Closed},
	Attached: {Detached, Closing, Closed},
	Detached: {Attached, Closing, Closed},
	Closing:  {Closed},
	Closed:   nil,
}

// strict makes a transition that the table forbids a panic. Tests set it.
var strict bool //nolint:gochecknoglobals // tests set it

// transitionLocked brings the session into a state. A transition that the table forbids is a fault
// of this program: it is logged, and the session stays where it is.
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
