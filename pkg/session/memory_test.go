package session_test

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// heap is what is in use, in bytes.
func heap() int64 {
	var m runtime.MemStats
	for range 3 { // what pools hold goes with the second collection
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMemoryOfSmallPieces has P5 write in pieces of awkward sizes to a client that allows
// much and acknowledges nothing. What the session keeps takes little more memory than
// the budget says.
func TestMemoryOfSmallPieces(t *testing.T) {
	const budget = 4 << 20
	for _, size := range []int{1, 100, 2000, 4071, 4096, 5000, 33000} {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{RetainedBudget: budget})
			n.conns = size // so that a read brings so much
			ours, p5 := connPair(size)
			n.dial = func(context.Context) (session.Conn, error) { return ours, nil }
			zeros := make([]byte, 2*wire.MaxWindow)
			before := heap()
			tip := hello(1)
			tip.Limit = 2 * wire.MaxWindow
			p := n.play("mallory", tip)
			_ = p.status()
			p.st.Reset(wire.CodeLost)
			go func() { _, _ = p5.Write(zeros) }()
			synctest.Wait()
			time.Sleep(time.Second)
			taken := n.server.Sessions()[0].Down
			used := heap() - before
			runtime.KeepAlive(zeros)
			t.Logf("pieces of %d: %d bytes take %d", size, taken, used)
			if used > 2*budget {
				t.Errorf("pieces of %d: %d bytes take %d", size, taken, used)
			}
			if size > 1000 && taken < budget/2 {
				t.Errorf("pieces of %d: no more than %d bytes were taken", size, taken)
			}
			p5.reset()
		})
	}
}
