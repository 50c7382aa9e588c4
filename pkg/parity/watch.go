package parity

import "time"

const (
	// LookEvery is the interval at which a busy link looks at its losses. Parity must begin before
	// many losses have made the link slow.
	LookEvery = 100 * time.Millisecond
	// MinRTT is the shortest round trip of a link that sends parity. A shorter link is back at its
	// rate soon, and loses packets in queues alone, as a loopback interface does.
	MinRTT = 5 * time.Millisecond
	// keepFor is the time without loss after which parity ends. Only looks at a busy link count: a
	// link that sends nothing loses nothing, and its parity costs nothing.
	keepFor = time.Minute
	// A loss during QUIC's slow start costs the most: on a long path the rate then takes minutes to
	// grow. So each link tries parity once, from the first look at which it has sent trialPackets,
	// for trialTrips round trips. By then the slow start is over, or the peer has reported restored
	// packets.
	trialPackets = 50
	trialTrips   = 10
	// An overflowing short queue drops many packets at once, which parity can't restore, and shows
	// no queue in the round trips. So parity ends where it is useless: uselessFor has passed without
	// loss, and the lost packets exceed twice the restored ones by uselessLosses. Twice, as QUIC may
	// have counted each restored packet as lost before.
	uselessFor    = 2 * time.Second
	uselessLosses = 8
	// queueSlack is the jitter of radio and of busy hosts. A round trip longer than 1.25 times the
	// shortest plus queueSlack shows a queue.
	queueSlack = 5 * time.Millisecond
)

// A Watch decides from what a link sees whether the link sends parity.
//
//	Off    -> Trial   the link sends much for the first time, and there is no queue
//	any    -> On      loss without a queue
//	Trial  -> Off     a queue, or no loss for trialTrips
//	On     -> Paused  loss with a queue
//	On     -> Off     no loss for keepFor, or parity was useless
//	Paused -> Off     as from On
//
// Loss with a queue is congestion. There parity would add to the overload, and hide it from QUIC.
type Watch struct {
	state State
	tried bool
	began Sample        // at the look before parity began
	seen  Sample        // at the last look
	queue bool          // the last look saw a queue
	clean time.Duration // busy time since the last loss, or since the trial began
}

// A State says what a link does about parity.
type State int

// The states of a Watch.
const (
	Off    State = iota // the link sends no parity
	Trial               // it sends parity for a few round trips
	On                  // it sends parity
	Paused              // it sends none, though the peer expects some
)

// A Sample is what a look at a link shows. Counters run from the beginning of the link.
type Sample struct {
	At          time.Time
	MinRTT, RTT time.Duration // the shortest round trip and the smoothed one
	Sent, Lost  uint64        // packets, and those that QUIC has declared lost
	Restored    uint64        // packets that the peer has restored
}

// Seen returns the last sample.
func (w *Watch) Seen() Sample { return w.seen }

// Look takes a sample and returns the state from now on.
func (w *Watch) Look(s Sample) State {
	last := w.seen
	w.seen = s
	if last.At.IsZero() { // losses of the handshake say little: QUIC knew no round trip then
		return w.state
	}
	// A loss that shows now may have happened in the queue of the last look.
	hadQueue := w.queue
	w.queue = s.RTT > s.MinRTT+s.MinRTT/4+queueSlack
	loss := s.Lost > last.Lost || s.Restored > last.Restored
	w.clean += min(s.At.Sub(last.At), LookEvery)
	if loss {
		w.clean = 0
	}
	state := w.next(loss, w.queue || hadQueue, s.Sent-last.Sent)
	if w.state == Off && state != Off {
		w.began = last
	}
	w.state = state
	return state
}

// next returns the state after a look that has shown loss or a queue, and sent packets.
func (w *Watch) next(loss, queue bool, sent uint64) State {
	switch {
	case w.seen.MinRTT < MinRTT:
		return Off
	case loss && !queue:
		return On
	}
	switch w.state {
	case Off:
		if !w.tried && !queue && sent >= trialPackets {
			w.tried, w.clean = true, 0
			return Trial
		}
	case Trial:
		if queue || w.clean >= trialTrips*w.seen.MinRTT {
			return Off
		}
	case On, Paused:
		if w.clean >= keepFor || w.clean >= uselessFor && w.useless() {
			return Off
		}
		if loss {
			return Paused
		}
	}
	return w.state
}

// useless reports whether parity has restored too little of what was lost since it began.
func (w *Watch) useless() bool {
	return w.seen.Lost-w.began.Lost > 2*(w.seen.Restored-w.began.Restored)+uselessLosses
}
