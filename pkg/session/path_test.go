package session_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
)

// deadPathTime is the longest pause when a path goes dead: a second of silence,
// one without an answer to the ping, two sweeps, and the way elsewhere.
const deadPathTime = 3 * time.Second

// silenceStreams makes the streams of a link go silent, but not the link: those
// that are opened from now on work.
func (n *network) silenceStreams(l *memLink) {
	n.silence(l)
	n.mu.Lock()
	defer n.mu.Unlock()
	l.hole = false
}

// TestDeadPath lets a path go dead while both ends believe in their links: no
// stream ends, but nothing arrives. The session goes elsewhere, or, where there
// is nowhere else, over the same link again.
func TestDeadPath(t *testing.T) {
	type exchangeOf func(p1, p5 *memConn) error
	for _, kind := range []struct {
		name string
		run  exchangeOf // until the end of the session's bytes
	}{
		{"download", func(p1, p5 *memConn) error { return paced(p5, p1) }},
		{"upload", func(p1, p5 *memConn) error { return paced(p1, p5) }},
		{"flood down", func(p1, p5 *memConn) error { return flooded(p5, p1) }},
		{"flood up", func(p1, p5 *memConn) error { return flooded(p1, p5) }},
		{"request-response", func(p1, p5 *memConn) error {
			go func() { _, _ = io.Copy(p5, struct{ io.Reader }{p5}) }()
			for range 30 {
				begun := time.Now()
				_, _ = p1.Write([]byte("question"))
				if _, err := io.ReadFull(p1, make([]byte, 8)); err != nil {
					return err
				}
				if d := time.Since(begun); d > deadPathTime {
					return fmt.Errorf("an answer took %v", d)
				}
				time.Sleep(100 * time.Millisecond)
			}
			return nil
		}},
	} {
		for _, routes := range []int{1, 2} {
			for _, capacity := range []int{2 << 10, 16 << 10, 1 << 20} {
				t.Run(fmt.Sprintf("%s/%d routes/%d", kind.name, routes, capacity), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						n := start(t, session.Limits{})
						n.capacity = capacity
						a, b := &memLink{name: "a", latency: time.Millisecond}, &memLink{name: "b", latency: 2 * time.Millisecond}
						n.replaceLinks([]*memLink{a, b}[:routes]...)
						p1, p5, done := n.established()
						time.AfterFunc(time.Second, func() {
							if routes == 1 {
								n.silenceStreams(a)
							} else {
								n.silence(a)
							}
						})
						if err := kind.run(p1, p5); err != nil {
							t.Error(err)
						}
						relay := n.client.Sessions()[0].Relay
						if want := []string{"", "a", "b"}[routes]; relay != want {
							t.Errorf("carried by %q", relay)
						}
						p1.reset()
						p5.reset()
						if sum := soon(t, time.Minute, done); sum.Resumes != 1 {
							t.Errorf("resumed %d times", sum.Resumes)
						}
					})
				})
			}
		}
	}
}

// paced sends a piece every 10 ms for three seconds, and measures the pauses.
func paced(from, to *memConn) error {
	want := pattern(1, 300*2000)
	go func() {
		for i := range 300 {
			time.Sleep(10 * time.Millisecond)
			if _, err := from.Write(want[i*2000:][:2000]); err != nil {
				return
			}
		}
	}()
	return receive(to, want)
}

// flooded sends all that the reader takes, for about three seconds.
func flooded(from, to *memConn) error {
	want := pattern(1, 300*2000)
	go func() { _, _ = from.Write(want) }()
	return receive(slowReader{to}, want)
}

// A slowReader takes 2,000 bytes every 10 ms.
type slowReader struct{ io.Reader }

func (r slowReader) Read(p []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return r.Reader.Read(p[:min(len(p), 2000)])
}

// receive reads what is wanted, without longer pauses than a dead path makes.
func receive(from io.Reader, want []byte) error {
	got := make([]byte, len(want))
	for n := 0; n < len(want); {
		begun := time.Now()
		m, err := from.Read(got[n:])
		if err != nil {
			return err
		}
		if d := time.Since(begun); d > deadPathTime {
			return fmt.Errorf("nothing came for %v, after %d bytes", d, n)
		}
		n += m
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("the bytes differ")
	}
	return nil
}

// TestStalledIsNotDead leaves data unread at the far end, for long: no reason
// to go elsewhere.
func TestStalledIsNotDead(t *testing.T) {
	for _, up := range []bool{true, false} {
		t.Run(fmt.Sprint(up), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := start(t, session.Limits{})
				n.capacity, n.conns = 8<<10, 1<<10
				n.setLinks("a", "b")
				p1, accepted, done := n.forward()
				from, to := p1, <-accepted
				if !up {
					from, to = to, from
				}
				want := pattern(1, 200<<10)
				go func() { _, _ = from.Write(want); _ = from.CloseWrite() }()
				for range 10 {
					time.Sleep(3 * time.Second)
					if _, err := io.ReadFull(to, make([]byte, 1000)); err != nil {
						t.Fatal(err)
					}
				}
				rest, err := io.ReadAll(to)
				if err != nil || !bytes.Equal(rest, want[10000:]) {
					t.Fatalf("%d bytes more, %v", len(rest), err)
				}
				_ = to.CloseWrite()
				if sum := soon(t, time.Minute, done); sum.Resumes != 0 || sum.Relay != "a" || sum.Outcome != session.OutcomeClosed {
					t.Errorf("summary %+v", sum)
				}
			})
		})
	}
}

// TestBusyIsNotDead has the stream of one session go silent while another
// session hears from the same server over the same link: that is the picture of
// a host with too much to do, and takes patience.
func TestBusyIsNotDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := start(t, session.Limits{})
		link := &memLink{name: "a", latency: time.Millisecond}
		n.replaceLinks(link)
		echo := func() (*memConn, *memConn, <-chan session.Summary) {
			p1, p5, done := n.established()
			go func() { _, _ = io.Copy(p5, struct{ io.Reader }{p5}) }()
			return p1, p5, done
		}
		ask := func(c *memConn) {
			if _, err := c.Write([]byte("question")); err != nil {
				t.Error(err)
			}
		}
		answered := func(c *memConn) {
			if _, err := io.ReadFull(c, make([]byte, 8)); err != nil {
				t.Error(err)
			}
		}
		quiet, p5, done := echo()
		ask(quiet)
		answered(quiet)
		n.silenceStreams(link)
		ask(quiet)
		chatty, other, _ := echo()
		for range 80 {
			time.Sleep(100 * time.Millisecond)
			ask(chatty)
			answered(chatty)
		}
		for _, s := range n.client.Sessions() {
			if s.Resumes != 0 {
				t.Errorf("resumed %d times after 8 s", s.Resumes)
			}
		}
		for range 80 {
			time.Sleep(100 * time.Millisecond)
			ask(chatty)
			answered(chatty)
		}
		answered(quiet) // patience has an end
		for _, c := range []*memConn{quiet, p5, chatty, other} {
			c.reset()
		}
		if sum := soon(t, time.Minute, done); sum.Resumes != 1 {
			t.Errorf("resumed %d times", sum.Resumes)
		}
	})
}
