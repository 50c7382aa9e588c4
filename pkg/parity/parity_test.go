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
	p.maker = NewMaker(50, new(atomic.Uint64), new(atomic.Uint64))
	p.maker.SetLoss(0.006)
	p.restorer = NewRestorer(&p.restored, new(atomic.Uint64))
	// The first one shows that such packets arrive, and isn't covered; with the group behind it the
	// restorer is ready.
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
		p.maker.Protect(packet, size, func(datagram []byte) { left = append(left, bytes.Clone(datagram)) })
	}
	return left
}

// arrive has a datagram arrive and returns what is restored then.
func (p *parityPath) arrive(datagram []byte) (restored [][]byte) {
	if datagram[0] != FirstByte {
		p.restorer.Keep(datagram)
		return nil
	}
	p.restorer.Take(datagram)
	for {
		buf := make([]byte, MaxPacket)
		n := p.restorer.Next(buf)
		if n == 0 {
			return restored
		}
		restored = append(restored, buf[:n])
	}
}

// group sends a group of packets of different sizes. Its parity is behind the first groupSize.
func (p *parityPath) group(t *testing.T) [][]byte {
	t.Helper()
	sizes := make([]int, groupSize)
	for i := range sizes {
		sizes[i] = 200 + p.random.IntN(1001)
	}
	sizes[3] = 1200
	left := p.send(sizes...)
	if len(left) != groupSize+8 {
		t.Fatalf("%d datagrams", len(left))
	}
	return left
}

// settle has so many packets arrive that all that was restored is counted.
func (p *parityPath) settle() {
	for range keptPackets {
		p.arrive(qpacket(p.random, 200))
	}
}

// TestLossesAreRestored loses as many packets of groups as their parity can make again, in all
// places, with a part of the parity itself.
func TestLossesAreRestored(t *testing.T) {
	p := newParityPath()
	total := 0
	for round := range 400 {
		left := p.group(t)
		for _, datagram := range left[groupSize:] {
			if len(datagram) > 1200 || datagram[0]&0xc0 != 0 {
				t.Errorf("parity of %d bytes, which begins with %#x", len(datagram), datagram[0])
			}
		}
		packets, pieces := 4, 0 // lost
		if round%2 > 0 {
			packets = 1 + p.random.IntN(4)
			pieces = p.random.IntN(8 - 2*packets + 1)
		}
		gone := make(map[int]bool)
		for _, i := range p.random.Perm(groupSize)[:packets] {
			gone[i] = true
		}
		for _, i := range p.random.Perm(8)[:pieces] {
			gone[groupSize+i] = true
		}
		var restored [][]byte
		for i, datagram := range left {
			if !gone[i] {
				restored = append(restored, p.arrive(datagram)...)
			}
		}
		total += packets
		if len(restored) != packets {
			t.Fatalf("round %d: %d of %d packets restored, with %d pieces lost", round, len(restored), packets, pieces)
		}
		for i := range groupSize {
			same := func(b []byte) bool { return bytes.Equal(b, left[i]) }
			if gone[i] != slices.ContainsFunc(restored, same) {
				t.Errorf("round %d: packet %d", round, i)
			}
		}
	}
	p.settle()
	if n := p.restored.Load(); n != uint64(total) {
		t.Errorf("%d packets counted, not %d", n, total)
	}
}

func TestParityOutOfOrder(t *testing.T) {
	all := func(but ...int) (order []int) {
		for i := range groupSize + 8 {
			if !slices.Contains(but, i) {
				order = append(order, i)
			}
		}
		return order
	}
	reversed := all(3)
	slices.Reverse(reversed[:groupSize-1])
	for _, test := range []struct {
		name    string
		order   []int // of datagrams; parity is the last 8
		want    []int // the packets that are restored
		counted uint64
	}{
		{"all there", all(), nil, 0},
		{"five lost", all(3, 7, 9, 20, 31), nil, 0},
		{"five lost, then one comes", append(all(3, 7, 9, 20, 31, 39), 3, 39), []int{7, 9, 20, 31}, 4},
		{"four lost and a piece", all(3, 7, 9, 20, 35), nil, 0},
		{"packets backwards", reversed, []int{3}, 1},
		{"doubled", append(all(3), all(3)...), []int{3}, 1},
		{"late", append(all(3), 3), []int{3}, 0},
		{"nothing else", []int{32, 33, 34, 35, 36, 37, 38, 39}, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newParityPath()
			left := p.group(t)
			var got []int
			for _, i := range test.order {
				for _, restored := range p.arrive(left[i]) {
					got = append(got, slices.IndexFunc(left, func(b []byte) bool { return bytes.Equal(b, restored) }))
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("packets %d were restored, want %d", got, test.want)
			}
			p.settle()
			if n := p.restored.Load(); n != test.counted {
				t.Errorf("%d packets counted, want %d", n, test.counted)
			}
		})
	}
}

// TestFlush closes groups of all sizes before they are full.
func TestFlush(t *testing.T) {
	p := newParityPath()
	for n := 1; n < groupSize; n++ {
		var left [][]byte
		var open uint64
		add := func(datagram []byte) { left = append(left, bytes.Clone(datagram)) }
		for range n {
			packet := qpacket(p.random, 1000)
			left = append(left, packet)
			open = p.maker.Protect(packet, len(packet), add)
		}
		if open == 0 || p.maker.Flush(open-1, 1, add) != open || len(left) != n {
			t.Fatalf("%d packets: group %d, %d datagrams", n, open, len(left))
		}
		if p.maker.Flush(open, 1, add) != 0 || len(left) < n+2 {
			t.Fatalf("%d packets: %d datagrams behind Flush", n, len(left))
		}
		var restored [][]byte
		for _, datagram := range left[1:] {
			restored = append(restored, p.arrive(datagram)...)
		}
		// The first packet is the one by which a restorer knows that it isn't new.
		if len(restored) != 1 || !bytes.Equal(restored[0], left[0]) {
			t.Errorf("%d packets: %d restored", n, len(restored))
		}
	}
}

// TestRestorerBeginsInAGroup: what came before there was a restorer is not missing.
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

// TestSmallPacketsTwice sends small packets again, and all of them where there are few.
func TestSmallPacketsTwice(t *testing.T) {
	p := newParityPath()
	for range 20 {
		if left := p.send(199, 42, 20); len(left) != 6 || !bytes.Equal(left[0], left[1]) {
			t.Fatalf("%d datagrams", len(left))
		}
	}
	many := 0
	for range 10000 {
		many += len(p.send(199)) - 1
	}
	if many < 4900 || many > 5400 { // the credit of the beginning lasts for a while
		t.Errorf("of 10,000 in a row, %d were sent twice", many)
	}
	long := qpacket(p.random, 1200)
	long[0] |= 0x80
	for range 2 * groupSize {
		p.maker.Protect(long, len(long), func([]byte) { t.Error("a packet with a long header is covered") })
	}
}

// TestBound sends no more parity than the bound allows, whatever the loss.
func TestBound(t *testing.T) {
	for _, percent := range []int{5, 15, 25} {
		random := rand.New(rand.NewPCG(1, 1))
		m := NewMaker(percent, new(atomic.Uint64), new(atomic.Uint64))
		m.SetLoss(0.3)
		covered, parity := 0, 0
		for range 5000 {
			packet := qpacket(random, 1200)
			covered += len(packet)
			m.Protect(packet, len(packet), func(datagram []byte) { parity += len(datagram) })
		}
		if most := covered*percent/100 + maxCredit; parity > most || parity < most-3*maxCredit {
			t.Errorf("%d %%: %d bytes of parity for %d; %d are the most", percent, parity, covered, most)
		}
	}
}

func TestPieces(t *testing.T) {
	for _, c := range []struct {
		n    int
		loss float64
		want int
	}{
		{32, 0, 4}, {32, 0.001, 4}, {32, 0.01, 10}, {32, 0.03, 16}, {32, 0.5, 16}, {1, 0, 2}, {1, 0.01, 4}, {8, 0.01, 8},
	} {
		if got := piecesFor(c.n, c.loss); got != c.want {
			t.Errorf("%d packets at a loss of %v: %d pieces, not %d", c.n, c.loss, got, c.want)
		}
	}
}

// TestProbesAreNotCovered: a packet that is larger than any that is known to arrive is a question.
// Path MTU discovery must not get it answered by parity.
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
	full := slices.Repeat([]int{1326}, groupSize)
	if count(full...) != 0 || count(1326) == 0 {
		t.Error("packets of the size of a probe that was answered are covered from the second one on")
	}
	p.maker.Reset() // another path
	if count(full...) != 0 || count(1326) == 0 {
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
	if left := p.send(50); len(left) != 1 {
		t.Error("a small packet is sent twice in a pause")
	}
	p.maker.Pause(false)
	if left := p.send(slices.Repeat([]int{1200}, groupSize)...); len(left) != groupSize {
		t.Error("a group goes on behind a pause")
	}
}

func TestMalformedParity(t *testing.T) {
	p := newParityPath()
	left := p.group(t)
	first, good := left[groupSize], left[groupSize+1]
	for _, packet := range left[1:groupSize] {
		p.arrive(packet)
	}
	p.arrive(first)
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, bad := range map[string][]byte{
		"cut":                good[:2],
		"no packets":         change(func(b []byte) []byte { b[2] = 0; return b }),
		"too many packets":   change(func(b []byte) []byte { b[2] = groupSize + 1; return b }),
		"an unknown piece":   change(func(b []byte) []byte { b[1] = maxParity; return b }),
		"another packet":     change(func(b []byte) []byte { b[fixedSize+5]++; return b }),
		"no piece":           good[:fixedSize+groupSize*idSize],
		"a longer piece":     append(bytes.Clone(good), 0),
		"much longer pieces": append(bytes.Clone(good), make([]byte, MaxPacket)...),
	} {
		if restored := p.arrive(bad); len(restored) > 0 {
			t.Errorf("%s: something was restored", name)
		}
	}
	if restored := p.arrive(good); len(restored) != 1 || !bytes.Equal(restored[0], left[0]) {
		t.Error("it was not restored after all")
	}
}

// FuzzParity: whatever comes as parity of packets that have arrived restores nothing, or what QUIC
// takes for a packet.
func FuzzParity(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 1))
	packets := make([][]byte, groupSize)
	for i := range packets {
		packets[i] = qpacket(random, minCovered+30*i)
	}
	m := NewMaker(25, new(atomic.Uint64), new(atomic.Uint64))
	m.last, m.proved = MaxPacket, MaxPacket
	var pieces [][]byte
	for _, packet := range packets {
		m.Protect(packet, len(packet), func(datagram []byte) { pieces = append(pieces, bytes.Clone(datagram)) })
	}
	f.Add(pieces[0], pieces[1], byte(3))
	f.Add(pieces[1], pieces[0], byte(0))
	f.Add(pieces[0], pieces[1], byte(groupSize))
	f.Add(pieces[0][:50], []byte{FirstByte, 0, 1, 0, 0, 0}, byte(1))
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
			r.Take(b)
			for n := r.Next(buf); n > 0; n = r.Next(buf) {
				if n > MaxPacket || !covered(buf[:n]) {
					t.Fatalf("%d bytes", n)
				}
				genuine := bytes.Equal(first, pieces[0]) && bytes.Equal(second, pieces[1])
				if genuine && !bytes.Equal(buf[:n], packets[lost]) {
					t.Fatal("restored otherwise")
				}
			}
		}
	})
}

func BenchmarkProtect(b *testing.B) {
	random := rand.New(rand.NewPCG(1, 1))
	m := NewMaker(25, new(atomic.Uint64), new(atomic.Uint64))
	m.SetLoss(0.01)
	packet := qpacket(random, 1400)
	b.SetBytes(int64(len(packet)))
	for b.Loop() {
		m.Protect(packet, len(packet), func([]byte) {})
	}
}

// BenchmarkRestore restores three packets of each group.
func BenchmarkRestore(b *testing.B) {
	p := newParityPath()
	left := p.send(slices.Repeat([]int{1200}, groupSize)...)
	buf := make([]byte, MaxPacket)
	b.SetBytes(groupSize * 1200)
	b.ReportAllocs()
	for b.Loop() {
		clear(p.restorer.ids[:])
		p.restorer.groups[0].ids = p.restorer.groups[0].ids[:0]
		p.restorer.opened = 0
		for i, datagram := range left {
			switch {
			case i == 3 || i == 9 || i == 20:
			case datagram[0] == FirstByte:
				p.restorer.Take(datagram)
				for p.restorer.Next(buf) > 0 { //nolint:revive // QUIC would take them
				}
			default:
				p.restorer.Keep(datagram)
			}
		}
	}
}
