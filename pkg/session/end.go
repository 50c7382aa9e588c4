package session

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"ptthqd/pkg/wire"
)

// Info tells what a session is and does.
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
	Relay   string    // the relay that carries it, or carried it last
	Link    any       // the identity of that link
}

// Summary tells how a session ended. Info.State is the one it ended in.
type Summary struct {
	Info
	Status   wire.Status // what the opening came to: 200, or why it was refused; 0 if it ended before it was answered
	Text     string      // why it was refused or ended, for people; empty where End says all
	Node     string      // who refused or ended it: this process (empty), "relay", the other end's ID, "P1", "P5" or "both"
	End      End
	Duration time.Duration
}

// An End says how a session ended.
type End string

// The ends of a session.
const (
	EndClosed     End = "closed"             // both sides have closed: all is well
	EndRefused    End = "refused"            // it was never open; Status tells why
	EndResetByP1  End = "reset by P1"        // P1 reset its TCP connection
	EndResetByP5  End = "reset by P5"        // P5 reset its TCP connection
	EndExpired    End = "expired"            // no stream came within the resume timeout
	EndRevoked    End = "revoked"            // a right was withdrawn
	EndStopped    End = "stopped"            // this process, or the one at the other end, is stopping
	EndRestarted  End = "server restarted"   // the server doesn't know the session any more
	EndProtocol   End = "protocol error"     // the other end broke the protocol
	EndRemoved    End = "mapping removed"    // the mapping is gone, and its on_remove is "close"
	EndUnattached End = "no link to a relay" // P1 came while no relay was connected
)

// An ending says how and by whom a session is ended before both sides have closed. An ending without
// how is of a session that goes on: what is known of an end that is about to come.
type ending struct {
	how    End    // why the session is reset
	by     string // empty: this process
	reason string // in words; may be empty
	code   uint64 // of the reset frame
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

// resetLocked begins to end the session for the given reason: what was not
// sent is discarded, the TCP side is reset, and the peer is told.
func (s *session) resetLocked(why End, code uint64) {
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

// boundReadLocked gives the peer stopTimeout to say its last word.
func (s *session) boundReadLocked() {
	by := time.Now().Add(stopTimeout)
	if s.at != nil {
		_ = s.at.stream.SetReadDeadline(by)
	}
	if s.pending != nil {
		_ = s.pending.SetReadDeadline(by)
	}
}

// stopLocked is resetLocked when the process stops: one that was reset before,
// and waits to have that confirmed, doesn't wait for long any more.
func (s *session) stopLocked() {
	s.stopping = true
	s.resetLocked(EndStopped, resetByStop)
	s.boundReadLocked()
	s.wakeLocked()
}

// dropDataLocked gives back all memory that waits to be sent or delivered.
func (s *session) dropDataLocked() {
	s.out.drop()
	if s.at != nil {
		s.at.quota.forget(s.at)
	}
	s.retained.give(s.out.budgeted)
	s.out.budgeted = 0
	s.in.drop()
	s.windows.give(int64(s.in.window) - wire.InitialWindow)
	s.in.window = wire.InitialWindow
}

// closeLocked ends the session's life: whoever waits for it goes on. The first
// end stays.
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
	sum.Node, sum.Text = cmp.Or(sum.Node, s.whoLocked(sum.End)), cmp.Or(sum.Text, s.ending.reason)
	sum.Duration = time.Since(s.info.Opened)
	s.final = &sum
	s.dropDataLocked()
	s.windows.release()
	s.retained.release()
	s.transitionLocked(Closed)
	s.host.cool(s)
	if sum.End == EndClosed {
		s.hangUpLocked(closeConn)
	} else {
		s.hangUpLocked(abort)
	}
	s.wakeLocked()
}

// whoLocked tells whose doing an end is; empty for this process.
func (s *session) whoLocked(end End) string {
	switch {
	case end == EndClosed:
		return "both"
	case end == EndResetByP1:
		return "P1"
	case end == EndResetByP5:
		return "P5"
	case end == EndRevoked && !s.server: // a client has its rights from the others
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

// foundBrokenLocked notes that the other end says the same of this one.
func (s *session) foundBrokenLocked() {
	s.ending.by = s.peerName()
	s.ending.reason = "this node broke the protocol, says " + s.ending.by + "; its log tells how"
}

// hangUpLocked closes the TCP side by how. Close waits for whoever is reading
// or writing the socket at that moment, and the reader needs the session's
// lock; so this isn't done under it.
func (s *session) hangUpLocked(how func(*tcpSide)) {
	if s.local == nil || s.hungUp {
		return
	}
	s.hungUp = true
	e := s.local
	s.work.Go(func() { how(e) })
}

// protocolError is what a peer has done wrong.
type protocolError struct{ what string }

func (e *protocolError) Error() string { return "protocol error: " + e.what }

func violated(format string, args ...any) error {
	return &protocolError{fmt.Sprintf(format, args...)}
}
