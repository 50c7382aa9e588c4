package session_test

import (
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
)

// TestUnsharedRoute fills routes to a peer that takes nothing. The sessions of a shared one have
// the quota of the link between them; those of another one have what their windows allow.
func TestUnsharedRoute(t *testing.T) {
	const quota = 64 << 10
	for _, unshared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{LinkQuota: quota})
			n.unshared = unshared
			n.conns = 64 << 10
			var peers []*peer
			for range 10 {
				p, p1 := n.unread(1 << 20)
				peers = append(peers, p)
				defer p1.reset()
			}
			time.Sleep(200 * time.Millisecond) // not so long that the path counts as dead
			sent := onTheWay(peers)
			if most := 2 * quota; !unshared && sent > most {
				t.Errorf("over a shared route %d bytes are on their way", sent)
			} else if unshared && sent < 5*quota {
				t.Errorf("over one that isn't shared only %d bytes are on their way", sent)
			}
			for _, p := range peers {
				p.st.Reset(2)
			}
		})
	}
}

// TestRouteThatOnlyResumes has a nearer route over which nothing can be opened: a session is opened
// over the other one, and resumed over this.
func TestRouteThatOnlyResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.setLinks("lane", "link")
		n.set(func() { n.onlyResumes = n.links[0] })
		p1, p5, done := n.established()
		on := func() string { return n.client.Sessions()[0].Relay }
		if on() != "link" {
			t.Errorf("it was opened over %q", on())
		}
		n.cut()
		time.Sleep(2 * time.Second)
		if s := n.client.Sessions()[0]; s.Relay != "lane" || s.State != session.Attached || s.Resumes != 1 {
			t.Errorf("after the cut: %+v", s)
		}
		both(t, p1, p5, 3000, 3000)
		if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed {
			t.Errorf("summary %+v", sum)
		}

		n.setLinks("lane")
		n.set(func() { n.onlyResumes = n.links[0] })
		p1, _ = n.forwardVia("nas")
		time.Sleep(time.Second)
		if open := len(n.client.Sessions()); open != 1 || n.links[0].opened != 0 {
			t.Errorf("%d sessions, %d attempts over a route that can't open", open, n.links[0].opened)
		}
		p1.reset()
		time.Sleep(time.Minute)
	})
}
