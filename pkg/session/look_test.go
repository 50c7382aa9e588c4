package session_test

import (
	"errors"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
)

// readsEnd reads from c to its end, and expects that in good order behind want.
func readsEnd(t *testing.T, who string, c io.Reader, want string) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || string(got) != want {
		t.Errorf("%s reads %d bytes, %v; %d and the end were sent", who, len(got), err, len(want))
	}
}

// TestGoneAfterItsEnd lets a TCP side end its half and be gone some time later, when nobody reads
// it any more.
func TestGoneAfterItsEnd(t *testing.T) {
	for _, later := range []time.Duration{0, 10 * time.Second, 76 * time.Second, time.Hour} {
		for _, end := range []session.Outcome{session.OutcomeResetByP1, session.OutcomeResetByP5} {
			t.Run(string(end)+" after "+later.String(), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n := start(t, session.Limits{})
					gone, left, done := n.established()
					if end == session.OutcomeResetByP5 {
						gone, left = left, gone
					}
					_, _ = gone.Write([]byte("job"))
					_ = gone.CloseWrite()
					readsEnd(t, "who is left", left, "job")
					time.Sleep(later)
					if len(n.client.Sessions()) != 1 || len(n.server.Sessions()) != 1 {
						t.Fatal("a half-closed connection was ended")
					}
					_ = gone.Close()
					if sum := soon(t, 3*time.Second, done); sum.Outcome != end {
						t.Errorf("%+v", sum)
					}
					synctest.Wait()
					if ends := n.endings(); !slices.Equal(ends, []session.Outcome{end}) {
						t.Errorf("at the server: %v", ends)
					}
					// It was no reset: what is left reads the end once more, and hears of it when
					// it writes.
					readsEnd(t, "who is left", left, "")
					if _, err := left.Write([]byte("answer")); !errors.Is(err, errReset) {
						t.Errorf("written to nobody: %v", err)
					}
				})
			})
		}
	}
}

// TestGoneLosesNothing lets P1 send, end and be gone while P5 does not read.
func TestGoneLosesNothing(t *testing.T) {
	for _, cut := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			n := start(t, session.Limits{})
			p1, p5, done := n.established()
			job := string(pattern(1, 4*n.conns))
			go func() {
				_, _ = p1.Write([]byte(job))
				_ = p1.CloseWrite()
				_ = p1.Close()
			}()
			time.Sleep(time.Minute)
			if len(n.client.Sessions()) != 1 || len(n.server.Sessions()) != 1 {
				t.Fatal("ended before P5 has it all")
			}
			if cut {
				n.setLinks()
				n.cut()
				time.Sleep(5 * time.Second)
				n.setLinks("other")
			}
			readsEnd(t, "P5", p5, job)
			if sum := soon(t, 3*time.Second, done); sum.Outcome != session.OutcomeResetByP1 || sum.Up != int64(len(job)) {
				t.Errorf("%+v", sum)
			}
			readsEnd(t, "P5", p5, "")
		})
	}
}

// TestGoneWhileDetached lets P1 be gone while there is no stream by which P4 can be told how.
func TestGoneWhileDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, p5, done := n.established()
		_, _ = p1.Write([]byte("job"))
		_ = p1.CloseWrite()
		time.Sleep(time.Minute)
		n.setLinks()
		n.cut()
		time.Sleep(time.Second)
		_ = p1.Close()
		time.Sleep(20 * time.Second)
		if ends := n.endings(); len(ends) > 0 {
			t.Fatalf("ended without a stream: %v", ends)
		}
		n.setLinks("other")
		if sum := soon(t, 3*time.Second, done); sum.Outcome != session.OutcomeResetByP1 {
			t.Errorf("%+v", sum)
		}
		readsEnd(t, "P5", p5, "job")
	})
}

// TestGoneWhileIdle lets P1 be gone long after it has ended its half, when no sweep visits the
// session.
func TestGoneWhileIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		p1, p5, done := n.established()
		_, _ = p1.Write([]byte("job"))
		_ = p1.CloseWrite()
		readsEnd(t, "P5", p5, "job")
		time.Sleep(10 * time.Minute)
		if len(n.client.Sessions()) != 1 {
			t.Fatal("a half-closed session has ended")
		}
		_ = p1.Close()
		if sum := soon(t, 3*time.Second, done); sum.Outcome != session.OutcomeResetByP1 {
			t.Errorf("%+v", sum)
		}
	})
}
