package session_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// hostile makes a network whose server dials P5s that nobody minds.
func hostile(t *testing.T, limits session.Limits) *network {
	n := start(t, limits)
	n.dialBy(func(context.Context) (session.Conn, error) {
		ours, _ := connPair(n.conns)
		return ours, nil
	})
	return n
}

// TestTokenUsedAgain opens sessions under tokens whose tombstones expire at
// that very moment.
func TestTokenUsedAgain(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // of those who wake at the same time, the last one runs first
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		n.decideBy(func(string, string) *session.Refusal {
			n.mu.Unlock()
			time.Sleep(time.Second)
			n.mu.Lock()
			return nil
		})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				for range 4 {
					p := n.play("laptop", hello(byte(i)))
					if p.status() == wire.StatusOpen {
						p.frame(wire.Frame{Kind: wire.FrameReset})
					}
					_ = p.end()
					p.st.Reset(wire.CodeLost)
					time.Sleep(2*time.Minute - time.Second)
				}
			})
		}
		all.Wait()
		time.Sleep(10 * time.Minute)
		if left := n.server.Sessions(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// TestEndedWhileOpening withdraws rights while sessions are opened: whoever asks
// hears something, and nothing is left.
func TestEndedWhileOpening(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() {
				for j := range 500 {
					tip := hello(byte(i))
					tip.Token[2], tip.Token[3] = byte(j), byte(j>>8)
					p := n.play("laptop", tip)
					_ = p.st.SetReadDeadline(time.Now().Add(time.Minute))
					if _, _, err := p.answer(); errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("no answer")
					}
					p.st.Reset(wire.CodeRevoked)
				}
			})
		}
		all.Go(func() {
			for range 20000 {
				n.server.End(func(session.Info) bool { return true }, session.OutcomeRevoked)
			}
		})
		all.Wait()
		synctest.Wait()
		if left := n.server.Sessions(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// TestAttemptsAtOnce brings two attempts at the same moment: the higher one has
// the session, whichever comes first.
func TestAttemptsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		for i := range 1000 {
			first, second := hello(0), hello(0)
			for _, m := range []*wire.Open{first, second} {
				m.Token[2], m.Token[3] = byte(i), byte(i>>8)
			}
			second.Attempt = 2
			one, two := n.play("laptop", first), n.play("laptop", second)
			if status := two.status(); status != wire.StatusOpen {
				t.Fatalf("the second attempt: %v", status)
			}
			two.data([]byte("hello"))
			if status := one.status(); status == wire.StatusOpen {
				_ = one.end()
			}
			two.frame(wire.Frame{Kind: wire.FramePing})
			if _, _, err := two.until(wire.FramePong); err != nil {
				t.Fatalf("the second attempt: %v", err)
			}
			one.st.Reset(wire.CodeLost)
			two.st.Reset(wire.CodeRevoked)
		}
	})
}

// TestWithdrawnBetweenAttempts refuses the second attempt of an opening: what
// the first has opened must not stay.
func TestWithdrawnBetweenAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		p := n.play("laptop", hello(1))
		_ = p.status()
		p.st.Reset(wire.CodeLost)
		synctest.Wait()
		n.decideBy(func(string, string) *session.Refusal {
			return &session.Refusal{Status: wire.StatusNotAllowed, Text: "not any more"}
		})
		second := hello(1)
		second.Attempt = 2
		p = n.play("laptop", second)
		if status := p.status(); status != wire.StatusNotAllowed {
			t.Errorf("the second attempt: %v", status)
		}
		p.st.Reset(wire.CodeLost)
		synctest.Wait()
		if left := n.server.Sessions(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// TestClientThatStays has a client that doesn't end its stream when the session
// is over.
func TestClientThatStays(t *testing.T) {
	for _, how := range []string{"closed", "closed by a resume", "reset by P5"} {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				ours, p5 := connPair(1000)
				n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
				p := n.play("laptop", hello(1))
				if status := p.status(); status != wire.StatusOpen {
					t.Fatal(status)
				}
				attempt := uint64(2)
				if how == "reset by P5" {
					p5.reset()
				} else {
					p.frame(wire.Frame{Kind: wire.FrameFin})
					_ = p5.CloseWrite()
					if _, _, err := p.until(wire.FrameFin); err != nil {
						t.Fatal(err)
					}
				}
				switch how {
				case "closed":
					p.frame(wire.Frame{Kind: wire.FrameNone, Acked: 1})
				case "closed by a resume":
					synctest.Wait()
					p.st.Reset(wire.CodeLost)
					m := again(1, attempt)
					m.Received, m.Acked = 1, 1
					p = n.play("laptop", m)
					if status := p.status(); status != wire.StatusOpen {
						t.Fatal(status)
					}
					attempt++
				}
				if err := p.end(); !errors.Is(err, io.EOF) {
					t.Errorf("the stream ended with %v", err)
				}
				time.Sleep(10 * time.Second)
				if left := n.server.Sessions(); len(left) > 0 {
					t.Errorf("left: %+v", left)
				}
				p = n.play("laptop", again(1, attempt))
				reply, granted, err := p.answer()
				if err != nil || reply.Status != wire.StatusComplete || granted.Reset != (how == "reset by P5") {
					t.Errorf("a resume: %+v, %+v, %v", reply, granted, err)
				}
				p.st.Reset(wire.CodeLost)
			})
		})
	}
}

// TestHostileOpen asks for what can't be.
func TestHostileOpen(t *testing.T) {
	for _, c := range []struct {
		name string
		tip  func(m *wire.Open)
		want wire.Status
	}{
		{"a limit beyond any window", func(m *wire.Open) { m.Limit = 2*wire.MaxWindow + 1 }, wire.StatusMalformed},
		{"a huge limit", func(m *wire.Open) { m.Limit = 1<<62 - 1 }, wire.StatusMalformed},
		{"no limit at all", func(m *wire.Open) { m.Limit = 0 }, wire.StatusOpen},
		{"no resume timeout", func(m *wire.Open) { m.ResumeTimeout = 0 }, wire.StatusOpen},
		{"the last attempt", func(m *wire.Open) { m.Attempt = 1<<62 - 1 }, wire.StatusOpen},
		{"older than the server", func(m *wire.Open) { m.Attempt, m.Age = 2, time.Hour }, wire.StatusNoSession},
		{"another version", func(m *wire.Open) { m.Version = 2 }, wire.StatusVersion},
		{"another target", func(m *wire.Open) { m.Target = ":23" }, wire.StatusNotAllowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				b := newBystander(n)
				ours, p5 := connPair(2000)
				n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
				tip := hello(1)
				c.tip(tip)
				p := n.play("mallory", tip)
				p.data([]byte("hello"))
				if status := p.status(); status != c.want {
					t.Errorf("status %v", status)
				}
				_, _ = p5.Write(make([]byte, 2000))
				p.st.Reset(wire.CodeRevoked)
				synctest.Wait()
				if left := n.server.Sessions(); len(left) != 1 {
					t.Errorf("left: %+v", left)
				}
				b.check(t)
			})
		})
	}
}

// TestHostileResume resumes a session as its client may not. Where it is refused as
// not the newest, or as somebody else's, the session goes on.
func TestHostileResume(t *testing.T) {
	for _, c := range []struct {
		name   string
		client string
		tip    func(m *wire.Resume)
		want   wire.Status
		lives  bool
	}{
		{"honest", "laptop", func(*wire.Resume) {}, wire.StatusOpen, true},
		{"another client's", "mallory", func(*wire.Resume) {}, wire.StatusNoSession, true},
		{"another client's, to be reset", "mallory", func(m *wire.Resume) { m.Unconfirmed = true }, wire.StatusNoSession, true},
		{"nobody's", "laptop", func(m *wire.Resume) { m.Token[5]++ }, wire.StatusNoSession, true},
		{"the same attempt", "laptop", func(m *wire.Resume) { m.Attempt = 3 }, wire.StatusNotNewest, true},
		{"an older attempt", "laptop", func(m *wire.Resume) { m.Attempt = 1 }, wire.StatusNotNewest, true},
		{"an older attempt, to be reset", "laptop", func(m *wire.Resume) { m.Attempt, m.Unconfirmed = 3, true }, wire.StatusNotNewest, true},
		{"another version", "laptop", func(m *wire.Resume) { m.Version = 2 }, wire.StatusVersion, true},
		{"another target", "laptop", func(m *wire.Resume) { m.Target = ":80" }, wire.StatusMalformed, false},
		{"received what wasn't sent", "laptop", func(m *wire.Resume) { m.Received, m.Acked = 5001, 10 }, wire.StatusMalformed, false},
		{"delivered what wasn't sent", "laptop", func(m *wire.Resume) { m.Received, m.Acked = 5001, 5001 }, wire.StatusMalformed, false},
		{"received in the far future", "laptop", func(m *wire.Resume) { m.Received, m.Acked, m.Limit = 1<<60, 1<<60, 1<<61 }, wire.StatusMalformed, false},
		{"received less than before", "laptop", func(m *wire.Resume) { m.Received = 999 }, wire.StatusMalformed, false},
		{"delivered less than before", "laptop", func(m *wire.Resume) { m.Acked = 499 }, wire.StatusMalformed, false},
		{"ready for less than was sent", "laptop", func(m *wire.Resume) { m.Limit = 4000 }, wire.StatusOpen, true},
		{"ready for less than was received", "laptop", func(m *wire.Resume) { m.Limit = 999 }, wire.StatusMalformed, false},
		{"ready for more than any window", "laptop", func(m *wire.Resume) { m.Limit = 500 + 2*wire.MaxWindow + 1 }, wire.StatusMalformed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				n.decideBy(func(_, target string) *session.Refusal { return nil })
				b := newBystander(n)
				ours, p5 := connPair(9000)
				n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
				// 5,000 bytes are sent, of which 1,000 are received and 500
				// delivered, as the resume of attempt 3 has said.
				p := n.play("laptop", hello(1))
				_ = p.status()
				_, _ = p5.Write(make([]byte, 5000))
				for got := 0; got < 5000; {
					_, data, err := p.until(wire.FrameData)
					if err != nil {
						t.Fatal(err)
					}
					got += len(data)
				}
				m := again(1, 3)
				m.Received, m.Acked, m.Limit = 1000, 500, 500+wire.InitialWindow
				old := p
				p = n.play("laptop", m)
				if status := p.status(); status != wire.StatusOpen {
					t.Fatal(status)
				}
				if err := old.end(); resetWith(err) != wire.CodeLost {
					t.Errorf("the stream before ended with %v", err)
				}
				next := *m
				next.Attempt = 4
				c.tip(&next)
				q := n.play(c.client, &next)
				if status := q.status(); status != c.want {
					t.Errorf("status %v", status)
				}
				synctest.Wait()
				if c.lives && c.want != wire.StatusOpen {
					_, _ = p5.Write([]byte("x"))
					for got := 0; got < 4001; {
						_, data, err := p.until(wire.FrameData)
						if err != nil {
							t.Fatalf("the session: %v", err)
						}
						got += len(data)
					}
				}
				if !c.lives {
					if err := howEnded(p5); !errors.Is(err, errReset) {
						t.Errorf("P5 saw %v", err)
					}
				}
				p5.reset()
				p.st.Reset(wire.CodeRevoked)
				q.st.Reset(wire.CodeRevoked)
				b.check(t)
			})
		})
	}
}

// TestReceivedBeforeSending resumes a session by claiming what was read from P5,
// and never sent, while there was no stream.
func TestReceivedBeforeSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		ours, p5 := connPair(9000)
		n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
		p := n.play("laptop", hello(1))
		_ = p.status()
		p.st.Reset(wire.CodeLost)
		_, _ = p5.Write(make([]byte, 5000))
		synctest.Wait()
		m := again(1, 2)
		m.Received = 5000
		p = n.play("laptop", m)
		if status := p.status(); status != wire.StatusMalformed {
			t.Errorf("status %v", status)
		}
		p.st.Reset(wire.CodeLost)
	})
}

// TestResumedAtOnce brings many resumes of one session at the same moment: one
// has it at the end, the others are told that they aren't the newest.
func TestResumedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := hostile(t, session.Limits{})
		for i := range 100 {
			p := n.play("laptop", hello(byte(i)))
			_ = p.status()
			var all sync.WaitGroup
			var mu sync.Mutex
			var carried *peer
			for j := range 10 {
				all.Go(func() {
					q := n.play("laptop", again(byte(i), uint64(2+j/2))) // each attempt twice
					switch status := q.status(); status {
					case wire.StatusOpen:
						q.frame(wire.Frame{Kind: wire.FramePing})
						if _, _, err := q.until(wire.FramePong); err == nil && j/2 == 4 {
							mu.Lock()
							defer mu.Unlock()
							if carried != nil {
								t.Error("two streams carry the session")
							}
							carried = q
							return
						}
					case wire.StatusNotNewest, 0:
					default:
						t.Errorf("status %v", status)
					}
					q.st.Reset(wire.CodeLost)
				})
			}
			all.Wait()
			if carried == nil {
				t.Fatal("no stream carries the session")
			}
			p.st.Reset(wire.CodeLost)
			carried.st.Reset(wire.CodeRevoked)
		}
		synctest.Wait()
		if left := n.server.Sessions(); len(left) > 0 {
			t.Errorf("left: %+v", left)
		}
	})
}

// TestFloods has clients say what costs nothing to say, very often.
func TestFloods(t *testing.T) {
	for _, c := range []struct {
		name  string
		frame []byte
	}{
		{"pings", wire.Frame{Kind: wire.FramePing}.Append(nil)},
		{"pongs", wire.Frame{Kind: wire.FramePong}.Append(nil)},
		{"nothing", wire.Frame{Kind: wire.FrameNone}.Append(nil)},
		{"nothing, at length", []byte{0xc0, 0x40, 0, 0x40, 0}},
		{"yields of nothing", wire.Frame{Kind: wire.FrameYield}.Append(nil)},
		{"single bytes", append(wire.Frame{Kind: wire.FrameData, Value: 1}.Append(nil), 'x')},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				b := newBystander(n)
				ours, p5 := connPair(2000)
				n.dialBy(func(context.Context) (session.Conn, error) { return ours, nil })
				p := n.play("mallory", hello(1))
				_ = p.status()
				// What comes back isn't read: it must not be kept for long.
				p.say(bytes.Repeat(c.frame, 50000))
				synctest.Wait()
				b.check(t)
				if c.name != "single bytes" {
					_, _ = p5.Write([]byte("still here"))
					if _, data, err := p.until(wire.FrameData); err != nil || string(data) != "still here" {
						t.Errorf("%q, %v", data, err)
					}
				}
				p5.reset()
				p.st.Reset(wire.CodeRevoked)
			})
		})
	}
}
