package parity

import (
	"testing"
	"time"
)

// A watched is a link that is looked at every LookEvery, sends at each look, and has a shortest round trip of 20 ms.
type watched struct {
	Watch
	sample Sample
}

func watch() *watched {
	w := &watched{sample: Sample{At: time.Unix(1e9, 0), MinRTT: 20 * time.Millisecond, RTT: 20 * time.Millisecond}}
	w.Look(w.sample)
	return w
}

// after looks so many times, with the losses and restored packets of the first look.
func (w *watched) after(looks int, lost, restored uint64) State {
	for range looks {
		w.sample.At = w.sample.At.Add(LookEvery)
		w.sample.Sent += trialPackets - 1
		w.sample.Lost += lost
		w.sample.Restored += restored
		lost, restored = 0, 0
		w.Look(w.sample)
	}
	return w.state
}

func (w *watched) expect(t *testing.T, got, want State) {
	t.Helper()
	if got != want {
		t.Errorf("state %d, want %d, after %v", got, want, w.sample)
	}
}

const minuteOfLooks = int(keepFor / LookEvery)

func TestParityGoesOnForAMinute(t *testing.T) {
	w := watch()
	w.expect(t, w.after(10, 0, 0), Off)
	w.expect(t, w.after(1, 1, 0), On)
	w.expect(t, w.after(minuteOfLooks-1, 0, 0), On)
	w.expect(t, w.after(1, 0, 1), On) // what was restored is a loss, too
	w.expect(t, w.after(minuteOfLooks-1, 0, 0), On)
	w.expect(t, w.after(2, 0, 0), Off)
	w.expect(t, w.after(1, 1, 0), On)

	// Ten minutes of silence show nothing.
	for range 60 {
		w.sample.At = w.sample.At.Add(10 * time.Second)
		w.Look(w.sample)
	}
	w.expect(t, w.state, On)
}

func TestParityPausesForAQueue(t *testing.T) {
	w := watch()
	w.sample.RTT = 31 * time.Millisecond
	w.expect(t, w.after(1, 1, 0), Off)
	w.sample.RTT = 29 * time.Millisecond
	w.expect(t, w.after(1, 1, 0), Off) // lost in the queue that there was
	w.expect(t, w.after(1, 1, 0), On)
	w.sample.RTT = 31 * time.Millisecond
	w.expect(t, w.after(10, 0, 0), On) // a queue is no loss
	w.expect(t, w.after(1, 0, 1), Paused)
	w.sample.RTT = 20 * time.Millisecond
	w.expect(t, w.after(10, 0, 0), Paused)
	w.expect(t, w.after(1, 1, 0), On)
	w.sample.RTT = 31 * time.Millisecond
	w.expect(t, w.after(1, 1, 0), Paused)
	w.expect(t, w.after(minuteOfLooks, 0, 0), Off)
}

func TestParityMustProveUseful(t *testing.T) {
	looks := int(uselessFor / LookEvery)
	w := watch()
	w.expect(t, w.after(1, 400, 0), On) // a short queue has overflowed
	w.expect(t, w.after(looks-1, 0, 0), On)
	w.expect(t, w.after(2, 0, 0), Off)
	w.expect(t, w.after(1, 400, 0), On)
	w.expect(t, w.after(1, 0, 200), On)
	w.expect(t, w.after(2*looks, 0, 0), On)
}

func TestParityIsTriedOnce(t *testing.T) {
	looks := int(trialTrips * 20 * time.Millisecond / LookEvery)
	begin := func() *watched {
		w := watch()
		w.sample.Sent += trialPackets
		w.expect(t, w.after(1, 0, 0), Trial)
		return w
	}
	w := begin()
	w.expect(t, w.after(looks-1, 0, 0), Trial)
	w.expect(t, w.after(1, 0, 0), Off)
	w.sample.Sent += trialPackets
	w.expect(t, w.after(1, 0, 0), Off)

	w = begin()
	w.expect(t, w.after(1, 0, 1), On)

	w = begin()
	w.sample.RTT = 31 * time.Millisecond
	w.expect(t, w.after(1, 0, 0), Off)
}

func TestNoParityOnShortPaths(t *testing.T) {
	w := watch()
	w.sample.MinRTT, w.sample.RTT = MinRTT-1, MinRTT-1
	w.sample.Sent += trialPackets
	w.expect(t, w.after(1, 1, 0), Off)
}
