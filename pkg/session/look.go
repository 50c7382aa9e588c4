package session

import (
	"cmp"
	"fmt"
	"time"
)

// A TCP side that nobody reads, as it has ended its half or as there is no room for more,
// can be gone without that anybody hears of it; and one to whose host data is on its way
// would be given up by the kernel only after a quarter of an hour. So the sweep asks the
// kernel. For a session that is idle a goroutine waits in the poller instead.

const (
	// lookInterval is how often the kernel is asked about a TCP side that nobody reads.
	lookInterval = time.Second
	// askInterval is how often it is asked for data that isn't acknowledged.
	askInterval = 15 * time.Second
	// unheardTries is how many retransmissions or probes in a row have had no answer when a
	// host is given up. Where its window is closed, probes are up to two minutes apart.
	unheardTries = 3
)

// unheardTime is how long a host may acknowledge nothing while it is asked to: as long as
// Go's keepalive takes, which sends no probes while data is on its way: 15 s, and nine
// probes 15 s apart. TCP_USER_TIMEOUT would end connections, too, whose peer answers and
// has its window closed, as the program doesn't read.
var unheardTime = 150 * time.Second //nolint:gochecknoglobals // tests make it shorter

// A look is what the sweep knows of the TCP side.
type look struct {
	next     time.Time // at one that nobody reads
	ask      time.Time // for data that isn't acknowledged; zero before the first sweep
	pending  bool      // there was some at the last ask
	unheard  time.Time // since when nothing was acknowledged though it should be; zero if nothing should
	watching bool      // a goroutine waits for its end
	gone     error     // what that has found
}

// lookLocked ends a session whose TCP side is gone. It returns false if that is all that
// is to be done for the session now.
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
	// All that it has sent has to be delivered, its end too. Over a stream the other end
	// is told that this was no reset by the program.
	if s.out.done() && s.at != nil {
		if err := cmp.Or(s.look.gone, s.local.gone()); err != nil {
			s.ending.reason = s.goneReason(s.server) + ": " + err.Error()
			s.resetLocked(s.resetByTCP(), resetByGone)
		}
	}
	return true
}

// askKernelLocked ends a session whose TCP side's host acknowledges nothing any more.
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

// mayCoolLocked reports whether the sweep can leave an idle session alone: somebody else
// hears of its TCP side's end.
func (s *session) mayCoolLocked() bool {
	return (s.out.listening || s.out.fin) && !s.look.pending
}

// watchLocked begins to wait for the end of a TCP side that has ended its half.
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
		return // looking is all that can be done
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
