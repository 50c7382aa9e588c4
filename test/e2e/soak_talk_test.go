//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// In a soak both ends speak in records: a head of eight bytes, which tells the length of what follows and that of the
// answer that is wanted, and bytes of a pattern that is known to both. So each end checks every byte that it gets, and
// knows an end that comes too early. A connection begins with an errand, which tells P5 what to do, and P5's first record.

// An errand is what P5 is to do on a connection.
type errand struct {
	Kind  byte
	Seed  uint64
	Size  uint32 // of the records that P5 sends unasked
	Every uint32 // milliseconds between those
	Count uint32 // how many of those there are
	Pace  uint32 // bytes that P5 reads in each paceTime; 0 is as fast as they come
}

const (
	errandAnswer = 'a' // give answers
	errandPour   = 'p' // send records until P1 ends
	errandLinger = 'l' // send Count records, though P1 ends its half at once
	errandHangUp = 'h' // end this half at once, and go on reading
)

const paceTime = 500 * time.Millisecond

// Lengths that are none.
const (
	theEnd       = 1<<32 - 1 - iota // of this direction: what follows is a FIN
	resetFollows                    // P1 will reset the connection when it has had an answer
	resetMe                         // P5 is to reset the connection
)

// soakPatience is how long a step may take that waits for nothing but the other end. Outages take seconds.
const soakPatience = time.Minute

// A talk is one end of a connection of a soak.
type talk struct {
	c         *net.TCPConn
	out, in   uint64 // seeds of the patterns
	sent, got uint64 // bytes of the patterns
	pace      uint32 // bytes that are read in each paceTime; 0 is as fast as they come
	hurry     <-chan struct{}
}

func (k *talk) say(length, answer uint32) error {
	n := int(length)
	if length >= resetMe {
		n = 0
	}
	p := make([]byte, 8+n)
	binary.BigEndian.PutUint32(p, length)
	binary.BigEndian.PutUint32(p[4:], answer)
	pattern(p[8:], k.out, k.sent)
	k.sent += uint64(n)
	if _, err := k.c.Write(p); err != nil {
		return fmt.Errorf("before byte %d: %w", k.sent, err)
	}
	return nil
}

// end says that nothing comes any more.
func (k *talk) end() error {
	if err := k.say(theEnd, 0); err != nil {
		return err
	}
	return k.c.CloseWrite()
}

// scratch has room for what was read and for what it should be.
var scratch = sync.Pool{New: func() any { return new([2][32 << 10]byte) }}

// hear reads a record and checks it. It waits for its head as long as patience, or for ever.
func (k *talk) hear(patience time.Duration) (length, answer uint32, err error) {
	deadline := time.Time{}
	if patience > 0 {
		deadline = time.Now().Add(patience)
	}
	_ = k.c.SetReadDeadline(deadline)
	var head [8]byte
	if _, err := io.ReadFull(k.c, head[:]); err != nil {
		return 0, 0, fmt.Errorf("after byte %d: %w", k.got, err)
	}
	length, answer = binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if length >= resetMe {
		return length, answer, nil
	}
	p := scratch.Get().(*[2][32 << 10]byte)
	defer scratch.Put(p)
	for left := int(length); left > 0; {
		n := min(left, len(p[0]))
		pace := int(k.pace)
		if pace > 0 {
			n = min(n, pace)
		}
		_ = k.c.SetReadDeadline(time.Now().Add(soakPatience))
		if _, err := io.ReadFull(k.c, p[0][:n]); err != nil {
			return 0, 0, fmt.Errorf("after byte %d: %w", k.got, err)
		}
		pattern(p[1][:n], k.in, k.got)
		if string(p[0][:n]) != string(p[1][:n]) {
			return 0, 0, fmt.Errorf("the bytes between %d and %d are wrong", k.got, k.got+uint64(n))
		}
		k.got += uint64(n)
		left -= n
		if pace > 0 {
			select {
			case <-time.After(paceTime):
			case <-k.hurry:
				k.pace = 0
			}
		}
	}
	return length, answer, nil
}

// hearEnd reads what must be the end of a direction.
func (k *talk) hearEnd(patience time.Duration) error {
	length, _, err := k.hear(patience)
	if err != nil {
		return err
	}
	if length != theEnd {
		return fmt.Errorf("a record of %d bytes instead of the end", length)
	}
	return k.hearFIN()
}

func (k *talk) hearFIN() error {
	_ = k.c.SetReadDeadline(time.Now().Add(soakPatience))
	if n, err := k.c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("instead of the end after byte %d: %d bytes, %w", k.got, n, err)
	}
	return nil
}

func (k *talk) hearReset() error {
	_ = k.c.SetReadDeadline(time.Now().Add(soakPatience))
	if n, err := k.c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("instead of a reset after byte %d: %d bytes, %w", k.got, n, err)
	}
	return nil
}

// A soakEnd is P5.
type soakEnd struct {
	hurry chan struct{} // closed when nothing is to take its time any more
	bytes atomic.Uint64 // that were received, all right
	ended atomic.Uint64 // connections
	mu    sync.Mutex    // of the output
}

// TestSoakEnd is the end server of a soak, a process of its own. It prints its port, a line for each connection that went wrong,
// and at the end of its input what it has done. "hurry" there tells it to end what takes its time.
func TestSoakEnd(t *testing.T) {
	if os.Getenv("PTTHQD_SOAK_END") == "" {
		t.Skip("a part of TestSoak")
	}
	p5 := &soakEnd{hurry: make(chan struct{})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go p5.serve(c.(*net.TCPConn))
		}
	}()
	p5.print("port %d", l.Addr().(*net.TCPAddr).Port)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		close(p5.hurry)
	}
	_ = l.Close()
	p5.print("done %d %d", p5.ended.Load(), p5.bytes.Load())
}

func (p5 *soakEnd) print(format string, args ...any) {
	p5.mu.Lock()
	defer p5.mu.Unlock()
	_, _ = fmt.Fprintf(os.Stdout, format+"\n", args...)
}

func (p5 *soakEnd) serve(c *net.TCPConn) {
	defer func() { _ = c.Close() }()
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		p5.print("wrong %v: the first byte: %v", c.RemoteAddr(), err)
		return
	}
	head := io.MultiReader(bytes.NewReader(kind[:]), c)
	if kind[0] == kindEcho { // of world.carries
		_, _ = io.ReadFull(head, make([]byte, len(request{}.bytes())))
		_, _ = io.Copy(c, struct{ io.Reader }{c})
		return
	}
	var e errand
	if err := binary.Read(head, binary.BigEndian, &e); err != nil {
		p5.print("wrong %v: the errand: %v", c.RemoteAddr(), err)
		return
	}
	k := &talk{c: c, out: 2*e.Seed + 1, in: 2 * e.Seed, pace: e.Pace, hurry: p5.hurry}
	err := p5.run(k, e)
	p5.bytes.Add(k.got)
	p5.ended.Add(1)
	if err != nil {
		p5.print("wrong %v: kind %c, seed %d, %d bytes received, %d sent: %v", c.RemoteAddr(), e.Kind, e.Seed, k.got, k.sent, err)
		_ = c.SetLinger(0) // P1 is to see it too
	}
}

func (p5 *soakEnd) run(k *talk, e errand) error {
	if err := k.say(8, 0); err != nil {
		return err
	}
	ended := make(chan struct{})
	poured := make(chan error, 1)
	switch e.Kind {
	case errandHangUp:
		if err := k.end(); err != nil {
			return err
		}
		poured <- nil
	case errandPour:
		go func() { poured <- p5.pour(k, e, ended) }()
	case errandLinger:
		go func() { poured <- p5.pour(k, e, nil) }()
	}
	for {
		length, answer, err := k.hear(0)
		if err != nil {
			return err
		}
		switch length {
		case theEnd:
			if err := k.hearFIN(); err != nil {
				return err
			}
			close(ended)
			if e.Kind != errandAnswer {
				return <-poured
			}
			return k.end()
		case resetMe:
			return k.c.SetLinger(0)
		}
		if answer > 0 {
			if err := k.say(answer, 0); err != nil {
				return err
			}
		}
		if length == resetFollows {
			return k.hearReset()
		}
	}
}

// pour sends the errand's records: Count of them, or as long as ended isn't closed.
func (p5 *soakEnd) pour(k *talk, e errand, ended <-chan struct{}) error {
	for i := uint32(0); ended != nil || i < e.Count; i++ {
		if err := k.say(e.Size, 0); err != nil {
			return err
		}
		hurry := p5.hurry
		if ended != nil {
			hurry = nil
		}
		select {
		case <-time.After(time.Duration(e.Every) * time.Millisecond):
		case <-hurry:
		case <-ended:
			return k.end()
		}
	}
	return k.end()
}
