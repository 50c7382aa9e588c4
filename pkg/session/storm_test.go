package session_test

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

var storms = flag.Int("storms", 40, "how many seeds TestStorm goes through")

// TestStorm carries connections of all kinds over links that are cut, come and
// go at random moments of virtual time: nothing is lost, doubled or left.
func TestStorm(t *testing.T) {
	for seed := range *storms {
		ok := t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runStorm(t, uint64(seed)) })
		})
		if !ok {
			return
		}
	}
}

// A storm is a network with bad weather, from random numbers of a seed.
type storm struct {
	*network
	t        *testing.T
	seed     uint64
	latency  time.Duration // of the first link; the second has twice that
	refusing int           // of ten resumes; guarded by network.mu
}

func runStorm(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	oneOf := func(values ...int64) int64 { return values[r.IntN(len(values))] }
	s := &storm{t: t, seed: seed, network: start(t, session.Limits{
		MaxWindow:      64<<10 + r.IntN(1<<20),
		WindowBudget:   oneOf(1, 100<<10, 1<<20, 0),
		RetainedBudget: oneOf(1, 100<<10, 1<<20, 0),
		LinkQuota:      oneOf(1, 30<<10, 200<<10, 0),
	})}
	s.capacity = 1 << (7 + r.IntN(12))
	s.latency = time.Duration(r.IntN(3)*r.IntN(20)) * time.Millisecond
	s.have("a")
	d := rand.New(rand.NewPCG(seed, 9))
	s.delay = func() time.Duration { return time.Duration(d.IntN(3000)) * time.Microsecond }
	s.playRelay(func(_ *memLink, tip wire.Message) *wire.Reply {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, opening := tip.(*wire.Open); opening || d.IntN(10) >= s.refusing {
			return nil
		}
		return &wire.Reply{Status: wire.StatusNotConnected, Node: "relay"}
	})

	var work, clients, weather sync.WaitGroup
	defer work.Wait()
	over, stop := make(chan struct{}), make(chan struct{})
	s.targets(&work, over)
	const connections = 20
	for i := range connections {
		kind := byte(i % len(kinds))
		wait, size := time.Duration(r.IntN(3000))*time.Millisecond, r.IntN(300<<10)
		clients.Go(func() {
			time.Sleep(wait)
			s.connect(i, kind, size)
		})
	}
	weather.Go(func() { s.weather(stop) })
	clients.Wait()
	close(stop)
	weather.Wait()
	s.have("a")
	if len(s.client.Sessions()) != 0 {
		t.Errorf("left at the client: %+v", s.client.Sessions())
	}
	time.Sleep(10 * time.Minute)
	if len(s.server.Sessions()) != 0 {
		t.Errorf("left at the server: %+v", s.server.Sessions())
	}
	close(over)
}

// have makes the links with these names the only ones.
func (s *storm) have(names ...string) {
	var all []*memLink
	for i, name := range names {
		all = append(all, &memLink{name: name, latency: s.latency * time.Duration(i+1)})
	}
	s.replaceLinks(all...)
}

// targets serves P5s until over is closed. The connection's first byte, which P1 sends, says what a
// P5 does. Dials take their time.
func (s *storm) targets(work *sync.WaitGroup, over <-chan struct{}) {
	accepted := make(chan *memConn)
	s.dialBy(func(context.Context) (session.Conn, error) {
		time.Sleep(time.Millisecond)
		ours, theirs := connPair(8 << 10)
		go func() { accepted <- theirs }()
		return ours, nil
	})
	go func() {
		for {
			select {
			case c := <-accepted:
				work.Go(func() { endServer(c) })
			case <-over:
				return
			}
		}
	}()
}

// connect carries a connection, from its opening to its end.
func (s *storm) connect(i int, kind byte, size int) {
	p1, p2 := connPair(8 << 10)
	ended := make(chan session.Summary, 1)
	go func() {
		ended <- *s.client.Forward(context.Background(), p2, &session.Request{
			Server: "nas", Target: ":22", Source: "x", ResumeTimeout: 10 * time.Minute,
		})
	}()
	_, _ = p1.Write([]byte{kind, byte(i)})
	if err := kinds[kind](p1, uint64(i), size); err != nil {
		s.t.Errorf("connection %d of kind %d: %v", i, kind, err)
	}
	if sum := <-ended; sum.Outcome != session.OutcomeClosed && (kind != kindReset || sum.Outcome != session.OutcomeResetByP1) {
		s.t.Errorf("connection %d of kind %d: %+v", i, kind, sum)
	}
}

// weather makes things happen to the links until stop is closed.
func (s *storm) weather(stop <-chan struct{}) {
	w := rand.New(rand.NewPCG(s.seed, 8))
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(w.IntN(400)) * time.Millisecond):
		}
		switch w.IntN(9) {
		case 0, 1:
			s.cut()
		case 2:
			s.cutAfter(w.IntN(20000))
		case 3:
			s.have()
			s.cut()
		case 4:
			s.have("a", "b")
		case 5:
			for _, r := range s.Routes("nas") {
				s.client.Move(r.Link, "closing")
			}
		case 6:
			s.resetByRelay([]wire.StreamCode{wire.CodeLost, wire.CodeClosing}[w.IntN(2)])
		case 7:
			for _, r := range s.Routes("nas") {
				s.silenceStreams(r.Link.(*memLink))
			}
		case 8:
			s.set(func() { s.refusing = w.IntN(8) })
		}
		if w.IntN(2) == 0 {
			s.have("a")
		}
	}
}

const kindStore, kindReset = 4, 5

// kinds are what P1 does with a connection.
var kinds = []func(c *memConn, seed uint64, size int) error{
	func(c *memConn, seed uint64, size int) error { // bulk up, echoed
		return exchange(c, c, pattern(seed, size))
	},
	func(c *memConn, seed uint64, _ int) error { // request and response
		for i := range 30 {
			want := pattern(seed+uint64(i), 8+i*8)
			if _, err := c.Write(want); err != nil {
				return err
			}
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c, got); err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("answer %d differs", i)
			}
			time.Sleep(50 * time.Millisecond)
		}
		return exchange(c, c, nil)
	},
	func(c *memConn, _ uint64, _ int) error { // idle
		time.Sleep(20 * time.Second)
		return exchange(c, c, []byte("still here"))
	},
	func(c *memConn, seed uint64, size int) error { // slow reader
		want := pattern(seed, size/4)
		go func() { _, _ = c.Write(want); _ = c.CloseWrite() }()
		var got []byte
		for p := make([]byte, 4096); ; time.Sleep(20 * time.Millisecond) {
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err == io.EOF {
				break
			}
			if err != nil {
				return err
			}
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%d bytes of %d", len(got), len(want))
		}
		return nil
	},
	func(c *memConn, seed uint64, size int) error { // all up, and then all down
		return exchange(c, c, pattern(seed, size/3))
	},
	func(c *memConn, seed uint64, size int) error { // reset in the middle
		_, _ = c.Write(pattern(seed, size/8))
		time.Sleep(100 * time.Millisecond)
		c.reset()
		return nil
	},
}

// endServer is P5: it echoes, at once or when it has everything. A reset must
// reach it.
func endServer(c *memConn) {
	head := make([]byte, 2)
	if _, err := io.ReadFull(c, head); err != nil {
		return
	}
	var from io.Reader = struct{ io.Reader }{c}
	if head[0] == kindStore {
		all, err := io.ReadAll(c)
		if err != nil {
			return
		}
		from = bytes.NewReader(all)
	}
	_, err := io.Copy(c, from)
	if err == nil {
		_ = c.CloseWrite()
	}
	_ = c.Close()
}
