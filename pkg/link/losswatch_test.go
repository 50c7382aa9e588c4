package link

import (
	"testing"
	"time"
)

// A watched is a link that is looked at every lossEvery, sends at each look, and has a shortest round trip of 20 ms.
type watched struct {
	lossWatch
	sample lossSample
}

func watch() *watched {
	w := &watched{sample: lossSample{at: time.Unix(1e9, 0), minRTT: 20 * time.Millisecond, rtt: 20 * time.Millisecond}}
	w.look(w.sample)
	return w
}

// after looks so many times, with the losses and restored packets of the first look.
func (w *watched) after(looks int, lost, restored uint64) parityState {
	for range looks {
		w.sample.at = w.sample.at.Add(lossEvery)
		w.sample.sent += trialPackets - 1
		w.sample.lost += lost
		w.sample.restored += restored
		lost, restored = 0, 0
		w.look(w.sample)
	}
	return w.state
}

func (w *watched) expect(t *testing.T, got, want parityState) {
	t.Helper()
	if got != want {
		t.Errorf("state %d, want %d, after %v", got, want, w.sample)
	}
}

const minuteOfLooks = int(parityFor / lossEvery)

func TestParityGoesOnForAMinute(t *testing.T) {
	w := watch()
	w.expect(t, w.after(10, 0, 0), parityOff)
	w.expect(t, w.after(1, 1, 0), parityOn)
	w.expect(t, w.after(minuteOfLooks-1, 0, 0), parityOn)
	w.expect(t, w.after(1, 0, 1), parityOn) // what was restored is a loss, too
	w.expect(t, w.after(minuteOfLooks-1, 0, 0), parityOn)
	w.expect(t, w.after(2, 0, 0), parityOff)
	w.expect(t, w.after(1, 1, 0), parityOn)

	// Ten minutes of silence show nothing.
	for range 60 {
		w.sample.at = w.sample.at.Add(10 * time.Second)
		w.look(w.sample)
	}
	w.expect(t, w.state, parityOn)
}

func TestParityPausesForAQueue(t *testing.T) {
	w := watch()
	w.sample.rtt = 31 * time.Millisecond
	w.expect(t, w.after(1, 1, 0), parityOff)
	w.sample.rtt = 29 * time.Millisecond
	w.expect(t, w.after(1, 1, 0), parityOff) // lost in the queue that there was
	w.expect(t, w.after(1, 1, 0), parityOn)
	w.sample.rtt = 31 * time.Millisecond
	w.expect(t, w.after(10, 0, 0), parityOn) // a queue is no loss
	w.expect(t, w.after(1, 0, 1), parityPaused)
	w.sample.rtt = 20 * time.Millisecond
	w.expect(t, w.after(10, 0, 0), parityPaused)
	w.expect(t, w.after(1, 1, 0), parityOn)
	w.sample.rtt = 31 * time.Millisecond
	w.expect(t, w.after(1, 1, 0), parityPaused)
	w.expect(t, w.after(minuteOfLooks, 0, 0), parityOff)
}

func TestParityMustProveUseful(t *testing.T) {
	looks := int(uselessFor / lossEvery)
	w := watch()
	w.expect(t, w.after(1, 400, 0), parityOn) // a short queue has overflowed
	w.expect(t, w.after(looks-1, 0, 0), parityOn)
	w.expect(t, w.after(2, 0, 0), parityOff)
	w.expect(t, w.after(1, 400, 0), parityOn)
	w.expect(t, w.after(1, 0, 200), parityOn)
	w.expect(t, w.after(2*looks, 0, 0), parityOn)
}

func TestParityIsTriedOnce(t *testing.T) {
	looks := int(trialTrips * 20 * time.Millisecond / lossEvery)
	begin := func() *watched {
		w := watch()
		w.sample.sent += trialPackets
		w.expect(t, w.after(1, 0, 0), parityTrial)
		return w
	}
	w := begin()
	w.expect(t, w.after(looks-1, 0, 0), parityTrial)
	w.expect(t, w.after(1, 0, 0), parityOff)
	w.sample.sent += trialPackets
	w.expect(t, w.after(1, 0, 0), parityOff)

	w = begin()
	w.expect(t, w.after(1, 0, 1), parityOn)

	w = begin()
	w.sample.rtt = 31 * time.Millisecond
	w.expect(t, w.after(1, 0, 0), parityOff)
}

func TestNoParityOnShortPaths(t *testing.T) {
	w := watch()
	w.sample.minRTT, w.sample.rtt = parityRTT-1, parityRTT-1
	w.sample.sent += trialPackets
	w.expect(t, w.after(1, 1, 0), parityOff)
}
