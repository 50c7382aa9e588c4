//go:build unix

package session_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
	"ptthqd/test/testutil"
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
// its client's share of the budget says.
func TestMemoryOfSmallPieces(t *testing.T) {
	const share = 4 << 20
	for _, size := range []int{1, 100, 2000, 4071, 4096, 5000, 33000} {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{RetainedBudget: 2 * share})
			n.conns = size // so that a read brings so much
			ours, p5 := connPair(size)
			n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
			zeros := make([]byte, 2*wire.MaxWindow)
			before := heap()
			tip := hello(1)
			tip.Limit = 2 * wire.MaxWindow
			p := n.play("mallory", tip)
			_ = p.status()
			go p.keep()
			go func() { _, _ = p5.Write(zeros) }()
			synctest.Wait()
			time.Sleep(time.Second)
			taken := n.server.Sessions()[0].Down
			used := heap() - before
			runtime.KeepAlive(zeros)
			t.Logf("pieces of %d: %d bytes take %d", size, taken, used)
			if used > 2*share {
				t.Errorf("pieces of %d: %d bytes take %d", size, taken, used)
			}
			if size > 1000 && taken < share/2 {
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
	if !f(c.fd) {
		<-c.closed
		return os.ErrClosed
	}
	return nil
}

// TestMemoryOfIdleSessions opens ten thousand sessions that say nothing, and
// measures what both ends of one take, with their stacks and the test's streams.
func TestMemoryOfIdleSessions(t *testing.T) {
	if testutil.Raced {
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
		newIdle := func() *idleConn {
			return &idleConn{fd: uintptr(pipe[0]), closed: make(chan struct{})}
		}
		n.dialBy(func(context.Context) (session.Conn, error) { return newIdle(), nil })
		before := taken()
		var all sync.WaitGroup
		for range sessions {
			p1 := newIdle()
			all.Go(func() {
				n.client.Forward(context.Background(), p1, &session.Request{
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

// TestIdle has sessions be idle, be used again, and end in each way, after they have been idle and
// at the moment at which the sweep leaves them alone.
func TestIdle(t *testing.T) {
	ends := map[string]func(p1, p5 *memConn){
		"P1 closes": func(p1, _ *memConn) { _ = p1.Close() },
		"P5 closes": func(_, p5 *memConn) { _ = p5.Close() },
		"P1 resets": func(p1, _ *memConn) { p1.reset() },
		"P5 resets": func(_, p5 *memConn) { p5.reset() },
	}
	for name, end := range ends {
		for _, idle := range []time.Duration{29900 * time.Millisecond, 30 * time.Second, 30100 * time.Millisecond, 40 * time.Second} {
			t.Run(fmt.Sprint(name, " after ", idle), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := start(t, session.Limits{})
					p1, at2 := connPair(n.conns)
					at4, p5 := connPair(n.conns)
					n.dialBy(func(context.Context) (session.Conn, error) { return at4, nil })
					done := make(chan session.Summary, 1)
					go func() {
						done <- *n.client.Forward(context.Background(), at2, &session.Request{
							Server: "nas", Target: ":22", Source: "x", ResumeTimeout: time.Hour,
						})
					}()
					const rounds = 3
					for range rounds {
						for _, way := range [][2]*memConn{{p1, p5}, {p5, p1}} {
							if _, err := way[0].Write([]byte("there")); err != nil {
								t.Fatal(err)
							}
							if _, err := io.ReadFull(way[1], make([]byte, 5)); err != nil {
								t.Fatal(err)
							}
						}
						time.Sleep(idle)
					}
					end(p1, p5)
					_ = p1.SetReadDeadline(time.Now().Add(5 * time.Second))
					_ = p5.SetReadDeadline(time.Now().Add(5 * time.Second))
					for _, c := range []*memConn{p1, p5} {
						if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
							t.Errorf("one end hears %v of the end", err)
						}
						_ = c.Close()
					}
					if sum := <-done; sum.Up != 5*rounds || sum.Down != 5*rounds {
						t.Errorf("%d and %d bytes", sum.Up, sum.Down)
					}
				})
			})
		}
	}
}
