//go:build unix

package session_test

import (
	"context"
	"os"
	"runtime"
	"sync"
	"syscall"
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
			n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
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

// taken is what the process has in use, stacks included, in bytes.
func taken() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// An idleConn is a connection on which nothing ever comes. Like a socket it
// can be waited for without a buffer.
type idleConn struct {
	memConn
	fd     uintptr // of something that is never readable
	closed chan struct{}
	once   sync.Once
}

func (c *idleConn) SyscallConn() (syscall.RawConn, error) { return idleRaw{c}, nil }
func (c *idleConn) SetLinger(int) error                   { return nil }
func (c *idleConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

type idleRaw struct{ *idleConn }

func (c idleRaw) Control(func(uintptr)) error    { return nil }
func (c idleRaw) Write(func(uintptr) bool) error { return nil }
func (c idleRaw) Read(f func(fd uintptr) bool) error {
	for !f(c.fd) {
		<-c.closed
		return os.ErrClosed
	}
	return nil
}

// TestMemoryOfIdleSessions opens ten thousand sessions that say nothing, and
// measures what both ends of one take, with their stacks and the test's streams.
func TestMemoryOfIdleSessions(t *testing.T) {
	if raced {
		t.Skip("the race detector takes memory of its own")
	}
	sessions := 10000
	if testing.Short() {
		sessions = 1000
	}
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(pipe[0]); _ = syscall.Close(pipe[1]) }()
	if err := syscall.SetNonblock(pipe[0], true); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{DetachedPerPeer: sessions})
		newIdle := func() *idleConn { return &idleConn{fd: uintptr(pipe[0]), closed: make(chan struct{})} }
		n.dialBy(func(context.Context) (session.Conn, error) { return newIdle(), nil })
		before := taken()
		var all sync.WaitGroup
		for range sessions {
			p1 := newIdle()
			all.Go(func() {
				n.client.Forward(context.Background(), p1, session.Request{
					Server: "nas", Target: ":22", Source: "x", ResumeTimeout: time.Hour,
				})
			})
		}
		check := func(what string, most int64) {
			each := (taken() - before) / int64(sessions)
			t.Logf("%s: %d bytes for both ends", what, each)
			if each > most {
				t.Errorf("%s: a session takes %d bytes at both ends; %d is the most", what, each, most)
			}
		}
		time.Sleep(10 * time.Minute)
		if open := len(n.server.Sessions()); open != sessions {
			t.Errorf("%d sessions are open", open)
		}
		check("attached", 2*16<<10)
		n.setLinks()
		n.cut()
		time.Sleep(time.Minute)
		check("detached", 2*16<<10)
		n.setLinks("a")
		time.Sleep(time.Minute)
		check("resumed", 2*16<<10)
		n.stopClient()
		all.Wait()
		n.cut()
		time.Sleep(3 * time.Minute)
		n.ended = nil
		check("ended", 4<<10) // the runtime keeps the descriptors of its goroutines
	})
}
