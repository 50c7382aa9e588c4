package link

import "time"

const (
	// lossEvery is how often a busy link looks whether it loses packets: parity is to begin before many losses have made it slow.
	lossEvery = 100 * time.Millisecond
	// parityRTT is the shortest round trip of a link that gets parity: below, a link is back at its rate soon, and what is lost
	// was lost in a queue, as on a loopback interface.
	parityRTT = 5 * time.Millisecond
	// parityFor is how long parity goes on behind the last sign of loss. Only the time of looks at a busy link counts: on one where
	// nothing is sent nothing is lost, and parity costs nothing.
	parityFor = time.Minute
	// A loss in QUIC's slow start costs the most: it ends there, and on a long path the rate takes minutes to grow from what it
	// has come to. So each link tries parity once, when it first sends trialPackets between two looks, for trialTrips round trips:
	// by then the slow start is over, or the peer has told of what it has restored.
	trialPackets = 50
	trialTrips   = 10
	// Where a short queue overflows, there are many losses at once, which no parity makes up for, and of the queue nothing is seen
	// in the round trips. So parity must prove useful: when uselessFor has passed without loss, and more than uselessLosses beyond
	// twice those that were restored are lost for good, it ends. Twice, as QUIC may have taken each for lost before it was restored.
	uselessFor    = 2 * time.Second
	uselessLosses = 8
	// queueSlack is how much longer than the shortest, and a quarter of it, a round trip may take without a queue: the jitter of
	// radio, and of a busy host.
	queueSlack = 5 * time.Millisecond
)

// lossWatch decides from what a link sees whether its packets need parity.
//
//	off    -> trial   it sends much for the first time, and there is no queue
//	any    -> on      loss without a queue
//	trial  -> off     a queue, or no loss for trialTrips
//	on     -> paused  loss with a queue
//	on     -> off     no loss for parityFor, or parity was of no use
//	paused -> off     the same
//
// Loss with a queue is congestion: there parity would only add to what is too much, and hide that it is.
type lossWatch struct {
	state parityState
	tried bool
	began lossSample    // when parity did
	seen  lossSample    // at the last look
	queue bool          // there was one, at the last look
	clean time.Duration // looked at since the last loss, or since the trial began
}

type parityState int

const (
	parityOff    parityState = iota
	parityTrial              // it is sent
	parityOn                 // it is sent
	parityPaused             // the peer expects it, but none is sent
)

// lossSample is what a look at a link shows.
type lossSample struct {
	at          time.Time
	minRTT, rtt time.Duration // smoothed
	sent, lost  uint64        // packets so far, and those of them that QUIC has taken for lost
	restored    uint64        // those that the peer has restored
}

// look takes note of what a link shows and returns what is to be done from now on.
func (w *lossWatch) look(s lossSample) parityState {
	last := w.seen
	w.seen = s
	if last.at.IsZero() { // what the handshake has lost says little: it knows no round trip to begin with
		return w.state
	}
	// The packets that are missed now may have been lost in the queue that there was at the last look.
	hadQueue := w.queue
	w.queue = s.rtt > s.minRTT+s.minRTT/4+queueSlack
	loss := s.lost > last.lost || s.restored > last.restored
	w.clean += min(s.at.Sub(last.at), lossEvery)
	if loss {
		w.clean = 0
	}
	state := w.next(loss, w.queue || hadQueue, s.sent-last.sent)
	if w.state == parityOff && state != parityOff {
		w.began = last
	}
	w.state = state
	return state
}

// next is the state behind a look that has shown loss or a queue, and so many packets sent.
func (w *lossWatch) next(loss, queue bool, sent uint64) parityState {
	switch {
	case w.seen.minRTT < parityRTT:
		return parityOff
	case loss && !queue:
		return parityOn
	}
	switch w.state {
	case parityOff:
		if !w.tried && !queue && sent >= trialPackets {
			w.tried, w.clean = true, 0
			return parityTrial
		}
	case parityTrial:
		if queue || w.clean >= trialTrips*w.seen.minRTT {
			return parityOff
		}
	case parityOn, parityPaused:
		if w.clean >= parityFor || w.clean >= uselessFor && w.useless() {
			return parityOff
		}
		if loss {
			return parityPaused
		}
	}
	return w.state
}

// useless tells whether parity has not made up for what was lost since it began.
func (w *lossWatch) useless() bool {
	return w.seen.lost-w.began.lost > 2*(w.seen.restored-w.began.restored)+uselessLosses
}
