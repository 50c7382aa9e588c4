package session

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"testing"

	"ptthqd/pkg/wire"
)

func TestJudgeStream(t *testing.T) {
	reset := func(code wire.StreamCode, remote bool) error {
		return fmt.Errorf("read: %w", &wire.ResetError{Code: code, Remote: remote})
	}
	for _, c := range []struct {
		err    error
		want   verdict
		beyond bool
	}{
		{errEnded, streamEnded, false},
		{errMove, streamLeft, false},
		{violated("a second end"), peerBroke, false},
		{reset(wire.CodeProtocol, true), peerAccuses, true},
		{reset(wire.CodeProtocol, false), streamLost, false}, // this end has said it
		{reset(wire.CodeRevoked, true), streamRevoked, true},
		{reset(wire.CodeRevoked, false), streamLost, false},
		{reset(wire.CodeLost, true), streamLost, true},
		{reset(wire.CodeLost, false), streamLost, false}, // the link is gone
		{io.ErrUnexpectedEOF, streamLost, false},
		{errors.New("anything else"), streamLost, false},
	} {
		if got, beyond := judgeStream(c.err); got != c.want || beyond != c.beyond {
			t.Errorf("%v: verdict %d, beyond its link: %t; want %d, %t", c.err, got, beyond, c.want, c.beyond)
		}
	}
}

// TestJudgeRefusal asserts the table of PROTOCOL.md, section 4.
func TestJudgeRefusal(t *testing.T) {
	const server, relay = false, true
	retry := func(outcome Outcome) refusalVerdict { return refusalVerdict{retry: true, outcome: outcome} }
	end := func(outcome Outcome) refusalVerdict { return refusalVerdict{outcome: outcome} }
	for _, c := range []struct {
		status          wire.Status
		byRelay         bool
		opening, resume refusalVerdict
	}{
		{wire.StatusNotConnected, relay, retry(OutcomeRefused), retry(OutcomeProtocol)},
		{wire.StatusNotConnected, server, retry(OutcomeRefused), retry(OutcomeProtocol)},
		{wire.StatusNotAllowed, relay, refusalVerdict{true, true, OutcomeRefused}, refusalVerdict{true, true, OutcomeRevoked}},
		{wire.StatusNotAllowed, server, end(OutcomeRefused), end(OutcomeRevoked)},
		{wire.StatusTooMany, relay, retry(OutcomeRefused), retry(OutcomeProtocol)},
		{wire.StatusTooMany, server, end(OutcomeRefused), retry(OutcomeProtocol)},
		{wire.StatusNotNewest, server, end(OutcomeRefused), retry(OutcomeProtocol)},
		{wire.StatusRefused, server, end(OutcomeRefused), retry(OutcomeProtocol)},
		{wire.StatusTimeout, server, end(OutcomeRefused), retry(OutcomeProtocol)},
		{wire.StatusNoSession, server, end(OutcomeRefused), end(OutcomeRestarted)},
		{wire.StatusMalformed, server, end(OutcomeRefused), end(OutcomeProtocol)},
		{wire.StatusVersion, relay, end(OutcomeRefused), end(OutcomeProtocol)},
		{wire.StatusLoop, server, end(OutcomeRefused), end(OutcomeProtocol)},
		{999, relay, end(OutcomeRefused), end(OutcomeProtocol)},
	} {
		if got := judgeRefusal(c.status, true, c.byRelay); got != c.opening {
			t.Errorf("%d on an opening, by the relay: %t: %+v, want %+v", c.status, c.byRelay, got, c.opening)
		}
		if got := judgeRefusal(c.status, false, c.byRelay); got != c.resume {
			t.Errorf("%d on a resume, by the relay: %t: %+v, want %+v", c.status, c.byRelay, got, c.resume)
		}
	}
}

// TestDocumentedTransitions compares the table with the state diagram of PROTOCOL.md, section 5.
func TestDocumentedTransitions(t *testing.T) {
	text, err := os.ReadFile("../wire/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[State][]State)
	for _, edge := range regexp.MustCompile(`(?m)^ +([a-z]+) --> ([a-z]+):`).FindAllSubmatch(text, -1) {
		from := State(edge[1])
		documented[from] = append(documented[from], State(edge[2]))
	}
	for from, to := range transitions {
		slices.Sort(documented[from])
		if !slices.Equal(documented[from], slices.Sorted(slices.Values(to))) {
			t.Errorf("from %s the document goes to %s, the code to %s", from, documented[from], to)
		}
	}
}

// TestTransitions asserts that a closed session stays closed, and that the table knows each state.
func TestTransitions(t *testing.T) {
	for _, from := range []State{Opening, Attached, Detached, Closing, Closed} {
		to, ok := transitions[from]
		if !ok {
			t.Errorf("no edges from %s", from)
		}
		if from == Closed && len(to) > 0 {
			t.Errorf("a closed session may become %s", to)
		}
	}
	s := &session{info: Info{State: Closed}}
	defer func() {
		if recover() == nil {
			t.Error("a closed session is attached")
		}
	}()
	s.transitionLocked(Attached)
}
