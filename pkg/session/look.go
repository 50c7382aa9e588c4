package session

import (
	"cmp"
	"fmt"
	"time"
)

// A TCP side isn't read once it has ended its half, or while there is no room for more. Then it can
// be gone without any read or write failing. Where data is on its way to its host, the kernel gives
// up only after a quarter of an hour. So the sweep asks the kernel. For an idle session a goroutine
// waits in the poller instead.

const (
	// lookInterval is the time between two questions to the kernel about a TCP side that isn't
	// read.
	lookInterval = time.Second
	// askInterval is the time between two questions for data that isn't acknowledged.
	askInterval = 15 * time.Second
	// unheardTries is how many retransmissions or probes in a row must be unanswered for a host to
	// be given up. While the host's window is closed, probes are up to two minutes apart.
	unheardTries = 3
)

// unheardTime is how long a host may acknowledge nothing though it should: 15 s + 9 × 15 s, as long
// as Go's keepalive takes, which sends no probes while data is on its way. TCP_USER_TIMEOUT won't
// do: it would also end connections whose host answers with a closed window, since the program
// doesn't read.
var unheardTime = 150 * time.Second //nolint:gochecknoglobals // tests make it shorter

// A look is what the sweep knows of the TCP side.
type look struct {
	next     time.Time // when to look at a TCP side that isn't read
	ask      time.Time // when to ask for unacknowledged data; zero before the first sweep
	pending  bool      // there was unacknowledged data at the last ask
	unheard  time.Time // since when data is due to be acknowledged, and isn't; zero if none is
	watching bool      // a goroutine waits for the end of the TCP side
	gone     error     // what that goroutine has found
}

// lookLocked ends a session whose TCP side is gone. It returns false if the sweep has nothing else
// to do for the session now.
func (s *session) lookLocked(now time.Time) bool {
	if s.local == nil || s.hungUp || s.ending.reset() {
		return true
	}
	s.askKernelLocked(now)
	idle := now.Sub(s.lastData)
	if s.out.listening || s.ending.reset() || idle < lookInterval {
		return true
	}
	if now.Before(s.look.next) {
		return s.out.fin || idle < idleBeforeYield
	}
	s.look.next = now.Add(lookInterval)
	if !s.out.fin {
		if err := s.local.resetError(); err != nil {
			s.endOfTCPLocked(err)
		}
		return true
	}
	// First everything that the TCP side has sent, its end included, must be delivered. The reset
	// needs a stream, over which the other end is told that the program didn't reset.
	if s.out.done() && s.at != nil {
		if err := cmp.Or(s.look.gone, s.local.gone()); err != nil {
			s.ending.reason = s.goneReason(s.server) + ": " + err.Error()
			s.resetLocked(s.resetByTCP(), resetByGone)
		}
	}
	return true
}

// askKernelLocked ends a session if the host of its TCP side acknowledges nothing any more.
func (s *session) askKernelLocked(now time.Time) {
	first := s.look.ask.IsZero()
	if !first && now.Before(s.look.ask) {
		return
	}
	s.look.ask = now.Add(min(askInterval, unheardTime))
	if first {
		return
	}
	u := s.local.unacknowledged()
	s.look.pending = u.some
	heard := now.Add(-u.silent)
	switch {
	case !u.some:
		s.look.unheard = time.Time{}
	case s.look.unheard.IsZero():
		s.look.unheard = now
	case heard.After(s.look.unheard):
		s.look.unheard = heard
	case now.Sub(s.look.unheard) >= unheardTime && u.tries >= unheardTries:
		s.ending.reason = fmt.Sprintf("the host of %s has acknowledged nothing for %v",
			tcpName(s.server), now.Sub(s.look.unheard).Round(time.Second))
		s.resetLocked(s.resetByTCP(), resetByTCP)
	}
}

// mayCoolLocked reports whether the sweep may leave an idle session alone: a goroutine that waits
// in the poller learns of the end of its TCP side.
func (s *session) mayCoolLocked() bool {
	return (s.out.listening || s.out.fin) && !s.look.pending
}

// watchLocked starts a goroutine that waits for the end of a TCP side that has ended its half.
func (s *session) watchLocked() {
	if s.look.watching || !s.out.done() || s.local == nil || s.hungUp || s.ending.reset() || s.closed {
		return
	}
	s.look.watching = true
	s.work.Go(s.watch)
}

// watch waits until the TCP side is gone, and has the sweep act on that.
func (s *session) watch() {
	why, ok := s.local.awaitGone()
	if !ok {
		return // this TCP side can't be waited for
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look.watching, s.look.gone = false, why
	s.warmLocked()
}

// goneReason says that a TCP side, P5 or P1, is gone.
func (s *session) goneReason(p5 bool) string {
	return tcpName(p5) + " had ended its half of the connection, and is gone"
}

func tcpName(p5 bool) string {
	if p5 {
		return "P5"
	}
	return "P1"
}
