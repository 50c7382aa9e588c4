package session_test

import (
	"io"
	"sync"
	"testing"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// TestBadGrantWhileSending ends sessions, by a grant that can't be, at the very
// moment that they send.
func TestBadGrantWhileSending(t *testing.T) {
	n := start(t, session.Limits{})
	n.capacity = 2000
	for range 50 {
		n.setLinks()
		p1, done := n.forwardVia("evil")
		for range 15 { // each a piece of its own
			_, _ = p1.Write(make([]byte, 1000))
			time.Sleep(20 * time.Microsecond)
		}
		n.setLinks("relay")
		p := <-n.strangers
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, struct{ io.Reader }{p.st}) })
		p.grant(wire.Granted{Version: wire.Version, Received: 1 << 40, Limit: 1 << 41})
		if sum := <-done; sum.End != session.EndProtocol {
			t.Fatalf("summary %+v", sum)
		}
		p.st.Reset(wire.CodeLost)
		reading.Wait()
	}
}
