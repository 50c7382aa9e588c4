package session_test

import (
	"bytes"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
)

// TestDeliveredBetweenResumeAndReply lets P1 read what waits for it after the
// resume was built, which says what had been delivered until then.
func TestDeliveredBetweenResumeAndReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.conns = 1 << 10
		n.replaceLinks(&memLink{name: "a", latency: 200 * time.Millisecond})
		p1, accepted, done := n.forward()
		p5 := <-accepted
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
		if sum := soon(t, time.Minute, done); sum.End != session.EndClosed || sum.Resumes != 1 {
			t.Errorf("summary %+v", sum)
		}
	})
}
