package session_test

import (
	"flag"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

var allCuts = flag.Bool("allcuts", false, "cut at every pair of places, not at some")

// small is a short conversation in several pieces, which ends in good order.
func small(p1, p5 *memConn) error {
	up, down := pattern(1, 40), pattern(2, 48)
	result := make(chan error, 2)
	var writing sync.WaitGroup
	defer writing.Wait()
	for _, d := range []struct {
		from, to *memConn
		data     []byte
	}{{p1, p5, up}, {p5, p1, down}} {
		writing.Go(func() {
			for piece := range slices.Chunk(d.data, 8) {
				_, _ = d.from.Write(piece)
				time.Sleep(150 * time.Millisecond) // so that acknowledgements go in between
			}
			_ = d.from.CloseWrite()
		})
		go func() { result <- receiveAll(d.to, d.data) }()
	}
	for range 2 {
		if err := <-result; err != nil {
			p1.reset()
			p5.reset()
			return err
		}
	}
	return nil
}

// conversation runs small over a network that prepare has changed, and returns how many
// bytes have passed over streams.
func conversation(t *testing.T, what string, prepare func(n *network)) (sum session.Summary, passed int) {
	n := start(t, session.Limits{})
	n.setLinks("a", "b")
	prepare(n)
	p1, accepted, done := n.forward()
	if err := small(p1, <-accepted); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	sum = soon(t, time.Minute, done)
	if sum.Outcome != session.OutcomeClosed || sum.Up != 40 || sum.Down != 48 {
		t.Errorf("%s: %+v", what, sum)
	}
	synctest.Wait()
	if ends := n.endings(); !slices.Equal(ends, []session.Outcome{session.OutcomeClosed}) {
		t.Errorf("%s: at the server: %v", what, ends)
	}
	if left := n.server.Sessions(); len(left) > 0 {
		t.Errorf("%s: left: %+v", what, left)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return sum, n.passed
}

// eachPlace calls try for each place in a conversation at which something may
// happen, in a bubble.
func eachPlace(t *testing.T, step int, try func(t *testing.T, place int)) {
	t.Helper()
	total := 0
	synctest.Test(t, func(t *testing.T) { _, total = conversation(t, "undisturbed", func(*network) {}) })
	for place := 0; place <= total+10; place += step {
		synctest.Test(t, func(t *testing.T) { try(t, place) })
		if t.Failed() {
			return
		}
	}
}

// TestCutEverywhere loses all streams after each byte of a conversation, and
// once more after some or each of those that follow.
func TestCutEverywhere(t *testing.T) {
	eachPlace(t, 1, func(t *testing.T, place int) {
		conversation(t, fmt.Sprintf("cut after %d", place), func(n *network) { n.cuts = []int{place} })
	})
	step := 5
	if *allCuts {
		step = 1
	}
	for again := 0; again < 250; again += step {
		eachPlace(t, step, func(t *testing.T, place int) {
			conversation(t, fmt.Sprintf("cut after %d and %d", place, again), func(n *network) { n.cuts = []int{place, again} })
		})
	}
}

// TestResetEverywhere has the relay reset the streams instead.
func TestResetEverywhere(t *testing.T) {
	for _, code := range []wire.StreamCode{wire.CodeLost, wire.CodeClosing} {
		eachPlace(t, 3, func(t *testing.T, place int) {
			conversation(t, fmt.Sprintf("reset after %d", place), func(n *network) {
				n.cutAfter(place)
				n.atCutDo(func(*memStream) { n.resetByRelay(code) })
			})
		})
	}
}

// TestMoveEverywhere moves the session after each byte: the other link takes it,
// refuses it, so that it carries on where it was, even within a frame, or has no answer.
func TestMoveEverywhere(t *testing.T) {
	for _, c := range []struct {
		name  string
		other func(n *network)
		relay string // at the end; "" if there may be more than one answer
	}{
		{"accepted", func(*network) {}, "b"},
		{"alone", func(n *network) { n.setLinks("a") }, "a"},
		{"not connected", func(n *network) { n.refuseOn("b", wire.StatusNotConnected) }, "a"},
		{"not allowed", func(n *network) { n.refuseOn("b", wire.StatusNotAllowed) }, "a"},
		{"too many", func(n *network) { n.refuseOn("b", wire.StatusTooMany) }, "a"},
		{"no answer", func(n *network) { n.links[1].hole = true }, ""},
	} {
		eachPlace(t, 1, func(t *testing.T, place int) {
			what := fmt.Sprintf("%s, moved after %d", c.name, place)
			sum, _ := conversation(t, what, func(n *network) {
				c.other(n)
				n.cutAfter(place)
				var once sync.Once
				n.atCutDo(func(s *memStream) {
					once.Do(func() {
						n.client.Move(s.link, "moved by the test")
						time.Sleep(time.Millisecond) // so that this write is caught in the middle
					})
				})
			})
			// Near the beginning it may be the opening that is repeated, near
			// the end there may be nothing left to move.
			if c.relay != "" && place > 70 && place < 150 && sum.Relay != c.relay {
				t.Errorf("%s: carried by %s", what, sum.Relay)
			}
		})
	}
}

// refuseOn makes a relay refuse to resume.
func (n *network) refuseOn(name string, status wire.Status) {
	n.playRelay(func(l *memLink, tip wire.Message) *wire.Reply {
		if _, opening := tip.(*wire.Open); opening || l.name != name {
			return nil
		}
		return &wire.Reply{Status: status, Node: "relay"}
	})
}

// TestReplyLostEverywhere loses the stream of an attempt at each place of its
// reply: of the opening's, of a resume's, and of those that follow.
func TestReplyLostEverywhere(t *testing.T) {
	for _, first := range []bool{true, false} {
		for _, times := range []int{1, 3} {
			for place := range 60 {
				synctest.Test(t, func(t *testing.T) {
					what := fmt.Sprintf("lost %d times after %d", times, place)
					conversation(t, what, func(n *network) {
						left := times
						if !first {
							n.cutAfter(150)
						}
						n.playRelay(func(_ *memLink, tip wire.Message) *wire.Reply {
							if _, opening := tip.(*wire.Open); left > 0 && (first || !opening) {
								left--
								n.mu.Lock()
								n.cuts = append([]int{place}, n.cuts...)
								n.mu.Unlock()
							}
							return nil
						})
					})
				})
			}
		}
	}
}
