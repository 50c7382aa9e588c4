//go:build linux

package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// A crowd is P1: all connections of a soak.
type crowd struct {
	w       *world
	period  time.Duration // between two restarts of a relay, by which lives are measured
	fail    func(format string, args ...any)
	stop    chan struct{} // closed to have all end in good order
	mayOpen sync.RWMutex  // held for reading while a connection is opened, for writing while no relay runs
	slots   sync.WaitGroup

	opened, resets atomic.Uint64
	up, down       atomic.Uint64 // bytes sent, and received all right, on connections that have ended
	standing       atomic.Int64  // connections that are open now

	mu      sync.Mutex
	answers map[string]uint64        // how many, by kind
	longest map[string]time.Duration // how long one took at most
}

// A soakKind is a sort of connection. A slot has one of them after the other, from when it begins to the end of the soak.
type soakKind struct {
	name  string
	slots int
	live  func(*crowd, *person) error // one connection
}

// soakKinds are those of the soak: most are idle or nearly so, but all that TCP knows is there. Together they send a few MiB/s.
var soakKinds = []soakKind{
	{"silent", 400, func(c *crowd, p *person) error {
		return p.converse(errand{Kind: errandAnswer}, 1<<30, c.period<<20, 64)
	}},
	{"idle", 1800, func(c *crowd, p *person) error { return p.converse(errand{Kind: errandAnswer}, 1<<30, 2*c.period, 256) }},
	{"request", 240, func(_ *crowd, p *person) error {
		return p.converse(errand{Kind: errandAnswer}, 1<<30, 3*time.Second, 2048)
	}},
	{"visitor", 160, func(c *crowd, p *person) error {
		return p.converse(errand{Kind: errandAnswer}, 1+p.r.IntN(8), c.period/6, 4096)
	}},
	{"short", 6, (*crowd).short},
	{"bulk up", 8, func(_ *crowd, p *person) error {
		return p.upload(errand{Kind: errandAnswer}, 32<<10, 250*time.Millisecond)
	}},
	{"bulk down", 8, func(_ *crowd, p *person) error {
		return p.download(errand{Kind: errandPour, Size: 32 << 10, Every: 250}, 0)
	}},
	{"slow up", 20, func(_ *crowd, p *person) error { return p.upload(errand{Kind: errandAnswer, Pace: 4 << 10}, 64<<10, 0) }},
	{"slow down", 20, func(_ *crowd, p *person) error { return p.download(errand{Kind: errandPour, Size: 64 << 10}, 4<<10) }},
	{"half-closed by P1", 100, (*crowd).halfClosedHere},
	{"half-closed by P5", 100, (*crowd).halfClosedThere},
}

func newCrowd(w *world, period time.Duration, fail func(string, ...any)) *crowd {
	return &crowd{
		w: w, period: period, fail: fail, stop: make(chan struct{}),
		answers: make(map[string]uint64), longest: make(map[string]time.Duration),
	}
}

// gather opens the connections of all slots within a time.
func (c *crowd) gather(within time.Duration) {
	slots, begun := 0, 0
	for _, k := range soakKinds {
		slots += k.slots
	}
	for _, k := range soakKinds {
		for i := range k.slots {
			delay := within * time.Duration(begun) / time.Duration(slots)
			begun++
			c.slots.Go(func() { c.occupy(k, uint64(i), delay) })
		}
	}
}

// occupy is the life of a slot.
func (c *crowd) occupy(k soakKind, slot uint64, delay time.Duration) {
	r := rand.New(rand.NewPCG(slot, uint64(len(k.name))<<32|uint64(k.name[0])<<8|uint64(k.name[len(k.name)-1])))
	for c.wait(delay) {
		p := &person{crowd: c, kind: k.name, r: r}
		if err := k.live(c, p); err != nil {
			c.fail("%s, slot %d: %s: %v", k.name, slot, p, err)
		}
		p.leave()
		delay = time.Duration(r.Int64N(int64(c.period) / 60))
	}
}

// wait returns false when the soak is at its end.
func (c *crowd) wait(d time.Duration) bool {
	select {
	case <-c.stop:
		return false
	default:
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.stop:
		return false
	}
}

// A person is who uses one connection.
type person struct {
	*crowd
	kind string
	r    *rand.Rand
	k    *talk // nil until it is open
}

func (p *person) String() string {
	if p.k == nil {
		return "not open"
	}
	return fmt.Sprintf("source=%v seed %d, %d bytes sent, %d received", p.k.c.LocalAddr(), p.k.out/2, p.k.sent, p.k.got)
}

// size is a random length of a record, up to a largest one.
func (p *person) size(largest int) uint32 { return 8 * uint32(1+p.r.IntN(largest/8)) }

// open opens the connection, which is open when P5's first record is here.
func (p *person) open(e errand) error { return p.openAt(p.w.ports["mapping"], e) }

func (p *person) openAt(port int, e errand) error {
	p.mayOpen.RLock()
	defer p.mayOpen.RUnlock()
	e.Seed = p.r.Uint64() >> 2
	conn, err := dialLocal(port)
	if err != nil {
		return err
	}
	p.k = &talk{c: conn, out: 2 * e.Seed, in: 2*e.Seed + 1, hurry: p.stop}
	p.standing.Add(1)
	var head bytes.Buffer
	_ = binary.Write(&head, binary.BigEndian, e)
	if _, err := conn.Write(head.Bytes()); err != nil {
		return err
	}
	begun := time.Now()
	if _, _, err := p.k.hear(soakPatience); err != nil {
		return fmt.Errorf("it doesn't open: %w", err)
	}
	p.took("open", begun)
	p.opened.Add(1)
	return nil
}

// leave closes what has ended.
func (p *person) leave() {
	if p.k == nil {
		return
	}
	_ = p.k.c.Close()
	p.standing.Add(-1)
	p.up.Add(p.k.sent)
	p.down.Add(p.k.got)
	p.k = nil
}

func (p *person) took(what string, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[what]++
	p.longest[what] = max(p.longest[what], time.Since(since))
}

// ask sends a record and waits for the answer.
func (p *person) ask(largest int) error {
	begun := time.Now()
	_ = p.k.c.SetWriteDeadline(begun.Add(soakPatience))
	want := p.size(largest)
	if err := p.k.say(p.size(largest), want); err != nil {
		return err
	}
	return p.answer(want, begun)
}

func (p *person) answer(want uint32, since time.Time) error {
	got, _, err := p.k.hear(soakPatience)
	if err == nil && got != want {
		err = fmt.Errorf("an answer of %d bytes instead of %d", got, want)
	}
	if err == nil {
		p.took(p.kind, since)
	}
	return err
}

// converse asks a few times, with pauses in between, and ends in good order.
func (p *person) converse(e errand, times int, pause time.Duration, largest int) error {
	if err := p.open(e); err != nil {
		return err
	}
	for range times {
		if err := p.ask(largest); err != nil {
			return err
		}
		if !p.wait(pause/2 + time.Duration(p.r.Int64N(int64(pause)))) {
			break
		}
	}
	if err := p.ask(largest); err != nil {
		return err
	}
	return p.finish()
}

// finish ends the connection: P1's half first, then P5's.
func (p *person) finish() error {
	_ = p.k.c.SetWriteDeadline(time.Now().Add(soakPatience))
	if err := p.k.end(); err != nil {
		return err
	}
	return p.k.hearEnd(soakPatience)
}

// short opens a connection, asks once, and ends it in one of the ways that there are.
func (c *crowd) short(p *person) error {
	if err := p.open(errand{Kind: errandAnswer}); err != nil {
		return err
	}
	if err := p.ask(16 << 10); err != nil {
		return err
	}
	switch p.r.IntN(4) {
	case 0: // P1 resets
		begun := time.Now()
		if err := p.k.say(resetFollows, 8); err != nil {
			return err
		}
		if err := p.answer(8, begun); err != nil {
			return err
		}
		c.resets.Add(1)
		return p.k.c.SetLinger(0)
	case 1: // P5 resets
		if err := p.k.say(resetMe, 0); err != nil {
			return err
		}
		c.resets.Add(1)
		return p.k.hearReset()
	default:
		return p.finish()
	}
}

// upload sends records until the end. What is sent without pauses waits for the other end's slowness.
func (p *person) upload(e errand, size uint32, pause time.Duration) error {
	if err := p.open(e); err != nil {
		return err
	}
	patience := soakPatience
	if e.Pace > 0 {
		_ = p.k.c.SetWriteBuffer(64 << 10)
		patience = 20 * time.Minute // for all the buffers on the way
	}
	for p.wait(pause) {
		_ = p.k.c.SetWriteDeadline(time.Now().Add(patience))
		if err := p.k.say(size, 0); err != nil {
			return err
		}
	}
	return p.finish()
}

// download reads records until the end.
func (p *person) download(e errand, pace uint32) error {
	if err := p.open(e); err != nil {
		return err
	}
	if p.k.pace = pace; pace > 0 {
		_ = p.k.c.SetReadBuffer(64 << 10)
	}
	for {
		select {
		case <-p.stop:
			if err := p.k.end(); err != nil {
				return err
			}
			for {
				length, _, err := p.k.hear(soakPatience)
				if err != nil {
					return err
				}
				if length == theEnd {
					return p.k.hearFIN()
				}
			}
		default:
		}
		length, _, err := p.k.hear(soakPatience)
		if err != nil {
			return err
		}
		if length != e.Size {
			return fmt.Errorf("a record of %d bytes instead of %d", length, e.Size)
		}
	}
}

// life is a random one in seconds, of one to four periods.
func (p *person) life() uint32 { return 1 + uint32((1+3*p.r.Float64())*p.period.Seconds()) }

func (c *crowd) halfClosedHere(p *person) error {
	e := errand{Kind: errandLinger, Size: p.size(1024), Every: 3000}
	e.Count = p.life() * 1000 / e.Every
	if err := p.open(e); err != nil {
		return err
	}
	if err := p.k.say(p.size(16<<10), 0); err != nil {
		return err
	}
	if err := p.k.end(); err != nil {
		return err
	}
	for range e.Count {
		if length, _, err := p.k.hear(soakPatience); err != nil {
			return err
		} else if length != e.Size {
			return fmt.Errorf("a record of %d bytes instead of %d", length, e.Size)
		}
	}
	return p.k.hearEnd(soakPatience)
}

func (c *crowd) halfClosedThere(p *person) error {
	if err := p.open(errand{Kind: errandHangUp}); err != nil {
		return err
	}
	if err := p.k.hearEnd(soakPatience); err != nil {
		return err
	}
	until := time.Now().Add(time.Duration(p.life()) * time.Second)
	for time.Now().Before(until) && c.wait(3*time.Second) {
		_ = p.k.c.SetWriteDeadline(time.Now().Add(soakPatience))
		if err := p.k.say(p.size(1024), 0); err != nil {
			return err
		}
	}
	return p.k.end()
}
