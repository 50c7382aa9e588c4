package link

import "time"

const (
	// lossEvery is how often a busy link looks whether it loses packets: parity is to begin before many losses have made it slow.
	lossEvery = 100 * time.Millisecond
	// parityRTT is the shortest round trip of a link that gets parity: below, a link is back at its rate soon, and what is lost
	// was lost in a queue, as on a loopback interface.
	parityRTT = 5 * time.Millisecond
	// parityFor is how long parity goes on behind the last sign of loss.
	parityFor = time.Minute
	// queueSlack is how much longer than the shortest, and a quarter of it, a round trip may take without a queue: the jitter of
	// radio, and of a busy host.
	queueSlack = 5 * time.Millisecond
)

// lossWatch decides from what a link sees whether its packets need parity.
//
//	       loss, no queue
//	off ────────────────────▶ on ───┐
//	 ▲                        │ ▲   │ loss, and a queue
//	 │ no loss for parityFor  │ │   ▼
//	 └────────────────────────┴─┼─ paused
//	                            └───┘ loss, no queue
//
// Loss with a queue is congestion: there parity would only add to what is too much, and hide that it is.
type lossWatch struct {
	state    parityState
	seen     lossSample // at the last look
	queue    bool       // there was one, at the last look
	lossSeen time.Time  // when the last loss was seen
}

type parityState int

const (
	parityOff    parityState = iota
	parityOn                 // parity is sent
	parityPaused             // the peer expects it, but none is sent
)

// lossSample is what a look at a link shows.
type lossSample struct {
	at             time.Time
	minRTT, rtt    time.Duration // smoothed
	lost, restored uint64        // packets that QUIC has taken for lost, and that the peer has restored, so far
}

// look takes note of what a link shows and returns what is to be done from now on.
func (w *lossWatch) look(s lossSample) parityState {
	if w.seen.at.IsZero() { // what the handshake has lost says little: it knows no round trip to begin with
		w.seen = s
	}
	loss := s.lost > w.seen.lost || s.restored > w.seen.restored
	hadQueue := w.queue // when the packets were lost that are missed now, perhaps
	w.queue = s.rtt > s.minRTT+s.minRTT/4+queueSlack
	w.seen = s
	if loss {
		w.lossSeen = s.at
	}
	switch {
	case loss && (w.queue || hadQueue):
		if w.state == parityOn {
			w.state = parityPaused
		}
	case loss && s.minRTT >= parityRTT:
		w.state = parityOn
	case s.at.Sub(w.lossSeen) >= parityFor:
		w.state = parityOff
	}
	return w.state
}
