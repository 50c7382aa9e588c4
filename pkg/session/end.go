package session

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"ptthqd/pkg/wire"
)

// Info describes a session.
type Info struct {
	ID      string // the connection ID, the same at P2, P3 and P4
	Mapping string // at P2
	Client  string // at P4
	Server  string
	Source  string // P1's address
	Target  string
	Peer    string // P5's address, at P4 once it is dialled
	State   State
	Since   time.Time // when it entered the state
	Opened  time.Time
	Up      int64     // bytes from P1 towards P5
	Down    int64     // bytes from P5 towards P1
	Moved   time.Time // when data went by last, in either direction
	Resumes int       // how often another stream has taken over
	Relay   string    // the relay that carries the session, or carried it last
	Link    any       // the identity of that link
}

// Summary says how a session ended. Info.State is its last state before it closed.
type Summary struct {
	Info
	// Status is the reply to the open: 200, or why it was refused; 0 if the session ended before a
	// reply.
	Status wire.Status
	// Text is why the session was refused or ended, for people; empty where Outcome says all.
	Text string
	// Node has refused or ended the session: this process (empty), "relay", the other end's ID,
	// "P1", "P5" or "both".
	Node     string
	Outcome  Outcome
	Duration time.Duration
}

// An Outcome says how a session ended.
type Outcome string

// How sessions end.
const (
	OutcomeClosed     Outcome = "closed"             // both sides have closed: all is well
	OutcomeRefused    Outcome = "refused"            // it was never open; Status says why
	OutcomeResetByP1  Outcome = "reset by P1"        // P1 reset its TCP connection
	OutcomeResetByP5  Outcome = "reset by P5"        // P5 reset its TCP connection
	OutcomeExpired    Outcome = "expired"            // no stream came within the resume timeout
	OutcomeRevoked    Outcome = "revoked"            // a right was withdrawn
	OutcomeStopped    Outcome = "stopped"            // this process, or the other end's, is stopping
	OutcomeRestarted  Outcome = "server restarted"   // the server doesn't know the session any more
	OutcomeProtocol   Outcome = "protocol error"     // the other end broke the protocol
	OutcomeRemoved    Outcome = "mapping removed"    // the mapping is gone, and its on_remove is "close"
	OutcomeUnattached Outcome = "no link to a relay" // P1 came while no relay was connected
)

// An ending says how and by whom a session is ended before both sides have closed. While how is
// empty, the session goes on, and the ending has what is known of an end that is about to come.
type ending struct {
	how    Outcome // why the session is reset
	by     string  // empty: this process
	reason string  // in words; may be empty
	code   uint64  // of the reset frame
}

// reset reports whether the session is reset.
func (e *ending) reset() bool { return e.how != "" }

// The codes that a reset frame carries.
const (
	resetByTCP      = 0
	resetByStop     = 1
	resetByProtocol = 2
	resetByExpiry   = 3
	resetByRemoval  = 4
	resetByGone     = 5 // the TCP side had ended its half, and is gone
)

// resetLocked begins to end the session: it discards what was not sent, resets the TCP side, and
// tells the peer.
func (s *session) resetLocked(why Outcome, code uint64) {
	if s.ending.reset() || s.closed {
		return
	}
	s.ending.how, s.ending.code = why, code
	if s.at != nil {
		s.at.resetDue = true
	}
	s.transitionLocked(Closing)
	s.dropDataLocked()
	s.hangUpLocked(abort)
	s.boundReadLocked()
	s.wakeLocked()
	if s.at == nil && s.settle != nil {
		s.settle()
	}
}

// boundReadLocked gives the peer stopTimeout to confirm the end, or to reply.
func (s *session) boundReadLocked() {
	by := time.Now().Add(stopTimeout)
	if s.at != nil {
		_ = s.at.stream.SetReadDeadline(by)
	}
	if s.pending != nil {
		_ = s.pending.SetReadDeadline(by)
	}
}

// stopLocked resets the session since the process stops. A session that was reset before waits for
// at most stopTimeout more to have that confirmed.
func (s *session) stopLocked() {
	s.stopping = true
	s.resetLocked(OutcomeStopped, resetByStop)
	s.boundReadLocked()
	s.wakeLocked()
}

// dropDataLocked gives back all memory that waits to be sent or delivered.
func (s *session) dropDataLocked() {
	s.out.drop()
	if s.at != nil {
		s.at.claim.Forget()
	}
	s.retained.Give(s.out.budgeted)
	s.out.budgeted = 0
	s.in.drop()
	s.windows.Give(int64(s.in.window) - wire.InitialWindow)
	s.in.window = wire.InitialWindow
}

// closeLocked closes the session, and wakes the goroutines that wait for that. The first summary
// counts.
func (s *session) closeLocked(sum Summary) {
	if s.closed {
		return
	}
	s.closed = true
	if s.cancelDial != nil {
		s.cancelDial()
	}
	if s.expiry != nil {
		s.expiry.Stop()
	}
	sum.Info = s.snapshotLocked()
	sum.Node, sum.Text = cmp.Or(sum.Node, s.whoLocked(sum.Outcome)), cmp.Or(sum.Text, s.ending.reason)
	sum.Duration = time.Since(s.info.Opened)
	s.final = &sum
	s.dropDataLocked()
	s.windows.Release()
	s.retained.Release()
	s.transitionLocked(Closed)
	s.shared.cool(s)
	if sum.Outcome == OutcomeClosed {
		s.hangUpLocked(closeConn)
	} else {
		s.hangUpLocked(abort)
	}
	s.wakeLocked()
}

// whoLocked returns who has ended the session; empty for this process.
func (s *session) whoLocked(end Outcome) string {
	switch {
	case end == OutcomeClosed:
		return "both"
	case end == OutcomeResetByP1:
		return "P1"
	case end == OutcomeResetByP5:
		return "P5"
	case end == OutcomeRevoked && !s.server: // a client has its rights from relay and server
		return cmp.Or(s.ending.by, "relay")
	default:
		return s.ending.by
	}
}

// brokenLocked notes that the other end broke the protocol, and how.
func (s *session) brokenLocked(how error) {
	what := how.Error()
	if bad, ok := errors.AsType[*protocolError](how); ok {
		what = bad.what
	}
	s.ending.reason = s.peerName() + " broke the protocol: " + what
}

// foundBrokenLocked notes that the other end says that this node broke the protocol.
func (s *session) foundBrokenLocked() {
	s.ending.by = s.peerName()
	s.ending.reason = "this node broke the protocol, says " + s.ending.by + "; its log tells how"
}

// hangUpLocked closes the TCP side by how, in a goroutine of its own. Close waits for a goroutine
// that is reading or writing the socket, and the reader needs the session's lock, which the caller
// holds.
func (s *session) hangUpLocked(how func(*tcpSide)) {
	if s.local == nil || s.hungUp {
		return
	}
	s.hungUp = true
	e := s.local
	s.work.Go(func() { how(e) })
}

// A protocolError says how a peer broke the protocol.
type protocolError struct{ what string }

func (e *protocolError) Error() string { return "protocol error: " + e.what }

func violated(format string, args ...any) error {
	return &protocolError{fmt.Sprintf(format, args...)}
}
