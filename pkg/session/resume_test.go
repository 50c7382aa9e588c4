package session_test

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// TestDeliveredBetweenResumeAndReply lets P1 read what waits for it after the
// resume was built, which says what had been delivered until then.
func TestDeliveredBetweenResumeAndReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.conns = 1 << 10
		n.replaceLinks(&memLink{name: "a", latency: 200 * time.Millisecond})
		p1, p5, done := n.established()
		want := pattern(1, 60<<10)
		_, _ = p5.Write(want)
		_ = p5.CloseWrite()
		_ = p1.CloseWrite()
		time.Sleep(time.Second)
		n.cut()
		time.Sleep(100 * time.Millisecond) // the resume is at P4, the reply on its way
		got, err := io.ReadAll(p1)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed || sum.Resumes != 1 {
			t.Errorf("summary %+v", sum)
		}
	})
}

// TestRefusedWhileSending refuses an opening while P1's bytes are still being
// written to its stream.
func TestRefusedWhileSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.capacity = 1000
		p1, done := n.forwardVia("evil")
		p := <-n.strangers
		_, _ = p1.Write(make([]byte, 20000))
		synctest.Wait()
		p.reply(wire.StatusRefused, "", nil)
		if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeRefused {
			t.Errorf("summary %+v", sum)
		}
		p.st.Reset(wire.CodeLost)
	})
}
