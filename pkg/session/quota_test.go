package session_test

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/test/testutil"
)

// TestStalledSessionsHoldUpNobody stalls more sessions than the link's quota
// has room for: the peer has taken what they sent, so it isn't the link that is
// full. Others go on, to the same peer too, in both directions.
func TestStalledSessionsHoldUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{LinkQuota: 128 << 10})
		n.conns = 1 << 10
		var stalled []*memConn
		for range 5 {
			p1, p5, _ := n.established()
			go func() { _, _ = p1.Write(make([]byte, 1<<20)) }()
			go func() { _, _ = p5.Write(make([]byte, 1<<20)) }()
			stalled = append(stalled, p1, p5)
		}
		time.Sleep(5 * time.Second)
		p1, accepted, done := n.forward()
		begun := time.Now()
		both(t, p1, <-accepted, 300<<10, 300<<10)
		if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed {
			t.Errorf("summary %+v", sum)
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("it took %v", d)
		}
		for _, c := range stalled {
			c.reset()
		}
		synctest.Wait()
	})
}

// TestQuotaOfStalledLink has a peer that takes nothing of its streams: what is on
// its way to it stays within the quota, however large that becomes for one that
// does, and others aren't held up.
func TestQuotaOfStalledLink(t *testing.T) {
	t.Run("set", func(t *testing.T) { quotaOfStalledLink(t, session.Limits{LinkQuota: 256 << 10}) })
	t.Run("by default", func(t *testing.T) { quotaOfStalledLink(t, session.Limits{}) })
}

// unread has a session send so many bytes to a peer that reads nothing, behind the opening.
func (n *network) unread(size int) (p *peer, p1 *memConn) {
	p1, _ = n.forwardVia("evil")
	p = <-n.strangers
	p.grant(opened())
	synctest.Wait()
	go func() { _, _ = p1.Write(make([]byte, size)) }()
	return p, p1
}

func onTheWay(peers []*peer) (sent int) {
	for _, p := range peers {
		sent += p.st.in.onTheWay()
	}
	return sent
}

func quotaOfStalledLink(t *testing.T, limits session.Limits) {
	synctest.Test(t, func(t *testing.T) {
		const quota = 256 << 10
		n := start(t, limits)
		var stalled []*peer
		var ends []*memConn
		for range 20 {
			p, p1 := n.unread(1 << 20)
			stalled, ends = append(stalled, p), append(ends, p1)
		}
		time.Sleep(10 * time.Second) // no ping is answered, either
		sent := onTheWay(stalled)
		if sent < quota || sent > quota+(70<<10) {
			t.Errorf("%d bytes were sent", sent)
		}
		p1, accepted, done := n.forward()
		both(t, p1, <-accepted, 1<<20, 1<<20)
		if sum := soon(t, time.Minute, done); sum.Outcome != session.OutcomeClosed {
			t.Errorf("summary %+v", sum)
		}
		for _, c := range ends {
			c.reset()
		}
		for _, p := range stalled {
			p.st.Reset(2)
		}
	})
}

// TestSmallMessagesPassTheQuota fills the quota of a link whose peer takes nothing. Small messages
// go past the sessions that wait for the quota, but no more of them than a quarter of it.
func TestSmallMessagesPassTheQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quota, size = 256 << 10, 3 << 10
		n := start(t, session.Limits{LinkQuota: quota})
		n.conns = 64 << 10
		var peers []*peer
		var ends []*memConn
		open := func(size int) *peer {
			p, p1 := n.unread(size)
			peers, ends = append(peers, p), append(ends, p1)
			return p
		}
		for range 20 {
			open(1 << 20)
		}
		time.Sleep(200 * time.Millisecond)
		full := onTheWay(peers)
		if full < quota || full > quota+(70<<10) {
			t.Fatalf("%d bytes were sent", full)
		}
		p := open(size)
		synctest.Wait()
		if got := p.st.in.onTheWay(); got < size {
			t.Errorf("of a small message %d bytes were sent", got)
		}
		for range 100 {
			open(size)
		}
		time.Sleep(200 * time.Millisecond) // not so long that the path counts as dead
		if sent := onTheWay(peers); sent > quota+quota/4+(70<<10) {
			t.Errorf("with more of them %d bytes were sent", sent)
		}
		for _, c := range ends {
			c.reset()
		}
		for _, p := range peers {
			p.st.Reset(2)
		}
	})
}

// TestRestedSessionsGoFirst has so many sessions upload that each has its part of the quota again
// only after half a second. A message of several KiB, from a rested session, does not wait for all
// of them. However many such messages there are, the uploads go on.
func TestRestedSessionsGoFirst(t *testing.T) {
	testutil.SkipRaced(t)
	synctest.Test(t, func(t *testing.T) {
		const uploads, size = 200, 16 << 10
		n := start(t, session.Limits{LinkQuota: 256 << 10})
		n.capacity = 1 << 20
		n.replaceLinks(&memLink{name: "near", latency: 10 * time.Millisecond})
		var ends []*memConn
		var received atomic.Int64
		for range uploads {
			p1, p5, _ := n.established()
			go func() {
				for {
					if _, err := p1.Write(make([]byte, 64<<10)); err != nil {
						return
					}
				}
			}()
			go func() {
				p := make([]byte, 64<<10)
				for {
					k, err := p5.Read(p)
					if received.Add(int64(k)); err != nil {
						return
					}
				}
			}()
			ends = append(ends, p1, p5)
		}
		time.Sleep(3 * time.Second) // until the uploads have settled
		received.Store(0)
		begun := time.Now()
		message := func(p1, p5 *memConn) time.Duration {
			begun := time.Now()
			_, _ = p1.Write(make([]byte, size))
			_, _ = io.ReadFull(p5, make([]byte, size))
			return time.Since(begun)
		}
		p1, p5, _ := n.established()
		ends = append(ends, p1, p5)
		for range 5 {
			time.Sleep(time.Second)
			if d := message(p1, p5); d > 150*time.Millisecond {
				t.Errorf("a message took %v", d)
			}
		}
		alone := received.Load() * int64(time.Second) / int64(time.Since(begun))
		var messages sync.WaitGroup
		for range 200 {
			p1, p5, _ := n.established()
			ends = append(ends, p1, p5)
			messages.Go(func() {
				for range 20 {
					message(p1, p5)
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		received.Store(0)
		begun = time.Now()
		messages.Wait()
		beside := received.Load() * int64(time.Second) / int64(time.Since(begun))
		if beside < alone/4 {
			t.Errorf("uploads had %d bytes a second alone, and %d beside many messages", alone, beside)
		}
		for _, c := range ends {
			c.reset()
		}
		synctest.Wait()
	})
}

// TestQuotaGrows moves much to one peer far away, in many sessions: the quota
// becomes as large as the way is long.
func TestQuotaGrows(t *testing.T) {
	testutil.SkipRaced(t)
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		n.capacity, n.conns = 64<<20, 1<<20
		n.replaceLinks(&memLink{name: "far", latency: 300 * time.Millisecond})
		const sessions, size = 16, 2 << 20
		begun := time.Now()
		var all sync.WaitGroup
		for range sessions {
			p1, p5, _ := n.established()
			all.Go(func() { both(t, p1, p5, size, 1) })
		}
		all.Wait()
		// A quota that doesn't grow would take more than a minute.
		if d := time.Since(begun); d > 30*time.Second {
			t.Errorf("it took %v", d)
		}
	})
}

// TestQuotaReturns passes the quota on from one session to the next, and none of
// it is lost, or won, in sessions whose streams are cut.
func TestQuotaReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const quota = 100 << 10
		n := start(t, session.Limits{LinkQuota: quota})
		n.capacity = 10 << 10
		var ends []*memConn
		for range 5 { // as long as there is one session, the quota is the same
			p1, _, _ := n.established()
			ends = append(ends, p1)
		}
		for i := range 60 {
			p1, p5, done := n.established()
			n.cutAfter(2000*i, 1000*i)
			want := pattern(uint64(i), 150<<10)
			go func() { _, _ = p1.Write(want); _ = p1.CloseWrite() }()
			got, err := io.ReadAll(p5)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%d bytes, %v", len(got), err)
			}
			_ = p5.CloseWrite()
			soon(t, time.Minute, done)
		}
		n.mu.Lock()
		n.capacity, n.cuts = 1<<20, nil
		n.mu.Unlock()
		n.cut()
		time.Sleep(10 * time.Second)
		n.silence(n.links[0])
		for _, c := range ends {
			_, _ = c.Write(make([]byte, 50<<10))
		}
		time.Sleep(500 * time.Millisecond)
		sent := 0
		for _, s := range n.take(nil) {
			sent += s.out.onTheWay()
		}
		if sent < quota || sent > quota+(70<<10) {
			t.Errorf("%d bytes are on their way", sent)
		}
		for _, c := range ends {
			c.reset()
		}
	})
}

// TestQuotaIsNotHeldByWhatHasArrived has far more sessions send at once than the quota has room
// for. What has arrived gives its quota to the next session at once, even if its acknowledgement
// waits for data to ride on, or if the session has sent less than a window and has nothing more to
// send.
func TestQuotaIsNotHeldByWhatHasArrived(t *testing.T) {
	testutil.SkipRaced(t)
	const sessions, quota = 300, 1 << 20
	begin := func(t *testing.T) *network {
		t.Helper()
		n := start(t, session.Limits{LinkQuota: quota})
		n.capacity, n.conns = 1<<20, 64<<10
		n.replaceLinks(&memLink{name: "near", latency: time.Millisecond})
		return n
	}
	t.Run("bulk", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := begin(t)
			const size = 512 << 10
			var all sync.WaitGroup
			for range sessions {
				p1, p5, _ := n.established()
				all.Go(func() { both(t, p1, p5, size, 1) })
			}
			begun := time.Now()
			all.Wait()
			// 150 quotas' worth, each of which is there and acknowledged in 2 ms.
			if d := time.Since(begun); d > 3*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	})
	t.Run("pieces", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := begin(t)
			const size, pieces = 20 << 10, 20
			var all sync.WaitGroup
			for range sessions {
				p1, p5, _ := n.established()
				all.Go(func() {
					piece := make([]byte, size)
					for range pieces {
						begun := time.Now()
						_, _ = p1.Write(piece)
						_, _ = io.ReadFull(p5, piece)
						if d := time.Since(begun); d > 100*time.Millisecond {
							t.Errorf("a piece took %v", d)
							break
						}
						time.Sleep(100 * time.Millisecond)
					}
					p1.reset()
				})
			}
			all.Wait()
			synctest.Wait()
		})
	})
}
