package parity

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
)

// qpacket makes a packet that looks like one of QUIC's: a short header, and random bytes.
func qpacket(random *rand.Rand, size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	b[0] = b[0]&0x3f | 0x40
	return b
}

// A parityPath is both ends of a peer's parity.
type parityPath struct {
	maker    *Maker
	restorer *Restorer
	restored atomic.Uint64
	random   *rand.Rand
}

func newParityPath() *parityPath {
	p := &parityPath{random: rand.New(rand.NewPCG(1, 1))}
	p.maker = NewMaker(new(atomic.Uint64), new(atomic.Uint64))
	p.restorer = NewRestorer(&p.restored, new(atomic.Uint64))
	// The first one shows that such packets arrive, and isn't covered; with the group behind it the restorer is ready.
	for _, packet := range p.send(slices.Repeat([]int{1200}, 1+groupSize)...) {
		p.arrive(packet)
	}
	return p
}

// send sends packets, and returns them and their parity, in the order in which they left.
func (p *parityPath) send(sizes ...int) (left [][]byte) {
	for _, size := range sizes {
		packet := qpacket(p.random, size)
		left = append(left, packet)
		p.maker.Protect(packet, size, func(parity []byte) { left = append(left, bytes.Clone(parity)) })
	}
	return left
}

// arrive has a packet arrive and returns what is restored then, if anything.
func (p *parityPath) arrive(packet []byte) []byte {
	if packet[0] != FirstByte {
		p.restorer.Keep(packet)
		return nil
	}
	buf := make([]byte, MaxPacket)
	return buf[:p.restorer.Restore(buf, copy(buf, packet))]
}

// group sends a group of packets of different sizes. Its parity is the last two of what is returned.
func (p *parityPath) group(t *testing.T) [][]byte {
	t.Helper()
	left := p.send(1200, 1199, 100, 700, 1200, 101, 1000, 333)
	if len(left) != groupSize+partsPerGroup {
		t.Fatalf("%d datagrams", len(left))
	}
	return left
}

func TestEachLostPacketIsRestored(t *testing.T) {
	p := newParityPath()
	for lost := range groupSize {
		left := p.group(t)
		for _, part := range left[groupSize:] {
			if len(part) > 1200 || part[0]&0xc0 != 0 {
				t.Errorf("parity of %d bytes, which begins with %#x", len(part), part[0])
			}
		}
		for i, packet := range left {
			if i == lost {
				continue
			}
			restored := p.arrive(packet)
			if last := i == len(left)-1; last != (len(restored) > 0) {
				t.Errorf("%d bytes restored with datagram %d", len(restored), i)
			}
			if len(restored) > 0 && !bytes.Equal(restored, left[lost]) {
				t.Errorf("packet %d of %d bytes was restored otherwise", lost, len(left[lost]))
			}
		}
	}
	for range keptPackets {
		p.arrive(qpacket(p.random, 200))
	}
	if n := p.restored.Load(); n != groupSize {
		t.Errorf("%d packets counted", n)
	}
}

func TestParityOutOfOrder(t *testing.T) {
	for _, test := range []struct {
		name    string
		order   []int // of datagrams; parity is 8 and 9
		want    int   // the packet that is restored; -1: none
		counted uint64
	}{
		{"all there", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, -1, 0},
		{"parity in the other order", []int{0, 1, 2, 4, 5, 6, 7, 9, 8}, 3, 1},
		{"packets in the other order", []int{7, 6, 5, 4, 2, 1, 0, 8, 9}, 3, 1},
		{"one between", []int{0, 1, 2, 4, 5, 6, 8, 7, 9}, 3, 1},
		{"doubled", []int{0, 0, 1, 1, 2, 4, 4, 5, 6, 7, 8, 8, 9, 9, 8}, 3, 1},
		{"two lost", []int{0, 1, 2, 5, 6, 7, 8, 9}, -1, 0},
		{"two lost, then one comes", []int{0, 1, 2, 5, 6, 7, 8, 4, 9}, 3, 1},
		{"half of the parity lost", []int{0, 1, 2, 4, 5, 6, 7, 9}, -1, 0},
		{"late", []int{0, 1, 2, 4, 5, 6, 7, 8, 9, 3}, 3, 0},
		{"nothing else", []int{8, 9}, -1, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newParityPath()
			left := p.group(t)
			got := -1
			for _, i := range test.order {
				if restored := p.arrive(left[i]); len(restored) > 0 {
					if got >= 0 {
						t.Error("more than one packet restored")
					}
					got = slices.IndexFunc(left, func(b []byte) bool { return bytes.Equal(b, restored) })
				}
			}
			if got != test.want {
				t.Errorf("packet %d was restored, want %d", got, test.want)
			}
			for range keptPackets {
				p.arrive(qpacket(p.random, 200))
			}
			if n := p.restored.Load(); n != test.counted {
				t.Errorf("%d packets counted, want %d", n, test.counted)
			}
		})
	}
}

// What came before there was a restorer is not missing.
func TestRestorerBeginsInAGroup(t *testing.T) {
	p := newParityPath()
	p.restorer = NewRestorer(&p.restored, new(atomic.Uint64))
	for range 3 {
		for _, packet := range p.group(t)[1:] {
			if restored := p.arrive(packet); len(restored) > 0 {
				t.Error("the first packet was restored")
			}
		}
	}
}

func TestWhatParityCovers(t *testing.T) {
	p := newParityPath()
	long := qpacket(p.random, 1200)
	long[0] |= 0x80
	for range 2 * groupSize {
		if left := p.send(99, 42, 1); len(left) != 3 {
			t.Fatal("small packets are covered")
		}
		p.maker.Protect(long, len(long), func([]byte) { t.Error("a packet with a long header is covered") })
	}
}

// A packet that is larger than any that is known to arrive is a question: path MTU discovery must not get it answered by parity.
func TestProbesAreNotCovered(t *testing.T) {
	p := newParityPath()
	count := func(sizes ...int) (parity int) {
		for _, b := range p.send(sizes...) {
			if b[0] == FirstByte {
				parity++
			}
		}
		return parity
	}
	for range 2 * groupSize {
		if count(1326, 50) != 0 {
			t.Fatal("a probe is covered")
		}
	}
	if count(slices.Repeat([]int{1326}, groupSize)...) != 0 || count(1326) != partsPerGroup {
		t.Error("packets of the size of a probe that was answered are covered from the second one on")
	}
	p.maker.Reset() // another path
	if count(slices.Repeat([]int{1326}, groupSize)...) != 0 || count(1326) != partsPerGroup {
		t.Error("what the old path has proved counts on the new one")
	}
}

func TestPausedParity(t *testing.T) {
	p := newParityPath()
	p.send(1200, 1200, 1200)
	p.maker.Pause(true)
	if left := p.send(slices.Repeat([]int{1200}, 3*groupSize)...); len(left) != 3*groupSize {
		t.Error("parity is sent in a pause")
	}
	p.maker.Pause(false)
	if left := p.send(slices.Repeat([]int{1200}, groupSize)...); len(left) != groupSize {
		t.Error("a group goes on behind a pause")
	}
}

func TestRestoringAllocatesNothing(t *testing.T) {
	p := newParityPath()
	left := p.group(t)
	buf := make([]byte, MaxPacket)
	n := testing.AllocsPerRun(100, func() {
		*p.restorer = Restorer{restored: p.restorer.restored, groups: p.restorer.groups, ready: true}
		for _, b := range left[1:] {
			if b[0] != FirstByte {
				p.restorer.Keep(b)
			} else {
				p.restorer.Restore(buf, copy(buf, b))
			}
		}
		if !bytes.Equal(buf[:1200], left[0]) {
			t.Error("nothing was restored")
		}
	})
	if n > 0 {
		t.Errorf("%v allocations where a packet is restored", n)
	}
}

func TestMalformedParity(t *testing.T) {
	p := newParityPath()
	left := p.group(t)
	good := left[groupSize+1]
	for _, packet := range left[1 : groupSize+1] {
		p.arrive(packet)
	}
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, bad := range map[string][]byte{
		"cut":               good[:4],
		"no packets":        change(func(b []byte) []byte { b[2] = 0; return b }),
		"too many packets":  change(func(b []byte) []byte { b[2] = maxGroup + 1; return b }),
		"a third part":      change(func(b []byte) []byte { b[1] = partsPerGroup; return b }),
		"another length":    change(func(b []byte) []byte { b[3] ^= 0x80; return b }),
		"another packet":    change(func(b []byte) []byte { b[fixedSize+5]++; return b }),
		"no sum":            good[:fixedSize+groupSize*idSize],
		"a longer sum":      append(bytes.Clone(good), 0),
		"a sum that is too": append(bytes.Clone(good), make([]byte, MaxPacket)...),
	} {
		if restored := p.arrive(bad); len(restored) > 0 {
			t.Errorf("%s: something was restored", name)
		}
	}
	if restored := p.arrive(good); !bytes.Equal(restored, left[0]) {
		t.Error("it was not restored after all")
	}
}

// FuzzParity: whatever comes as parity of packets that have arrived restores nothing, or what QUIC takes for a packet.
func FuzzParity(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 1))
	packets := make([][]byte, groupSize)
	for i := range packets {
		packets[i] = qpacket(random, 100+40*i)
	}
	m := NewMaker(new(atomic.Uint64), new(atomic.Uint64))
	m.last = MaxPacket
	m.proved = MaxPacket
	var parts [][]byte
	for _, packet := range packets {
		m.Protect(packet, len(packet), func(parity []byte) { parts = append(parts, bytes.Clone(parity)) })
	}
	f.Add(parts[0], parts[1], byte(3))
	f.Add(parts[1], parts[0], byte(0))
	f.Add(parts[0], parts[1], byte(groupSize))
	f.Add(parts[0][:50], []byte{FirstByte, 0, 1, 0, 0, 0}, byte(1))
	f.Fuzz(func(t *testing.T, first, second []byte, lost byte) {
		r := NewRestorer(new(atomic.Uint64), new(atomic.Uint64))
		r.ready = true
		for i, packet := range packets {
			if i != int(lost) {
				r.Keep(packet)
			}
		}
		buf := make([]byte, MaxPacket)
		for _, b := range [][]byte{first, second, first} {
			n := r.Restore(buf, copy(buf, b))
			if n < 0 || n > MaxPacket || n > 0 && !covered(buf[:n]) {
				t.Fatalf("%d bytes", n)
			}
			genuine := bytes.Equal(first, parts[0]) && bytes.Equal(second, parts[1])
			if genuine && n > 0 && !bytes.Equal(buf[:n], packets[lost]) {
				t.Fatal("restored otherwise")
			}
		}
	})
}
