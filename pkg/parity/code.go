package parity

import (
	"fmt"
	"sync"

	"github.com/klauspost/reedsolomon"
)

// codes has the code of each number of packets and pieces of parity that was needed so far. All
// links share them. A code takes up to 6 KiB, and there are groupSize × maxParity.
var codes sync.Map //nolint:gochecknoglobals // a cache of constants

// codeFor returns the Reed-Solomon code of a group: two shards for each packet, and so many pieces
// of parity. The pieces of a code are also the first ones of each code with more pieces for as many
// packets: so the receiver needs not know how many were sent.
func codeFor(packets, pieces int) reedsolomon.Encoder {
	key := [2]int{packets, pieces}
	if c, ok := codes.Load(key); ok {
		return c.(reedsolomon.Encoder)
	}
	c, err := reedsolomon.New(2*packets, pieces,
		reedsolomon.WithMaxGoroutines(1),
		// A peer chooses which packets are missing, and so what would be cached.
		reedsolomon.WithInversionCache(false))
	if err != nil {
		panic(fmt.Sprintf("internal error: no code of %d packets, %d pieces: %v", packets, pieces, err))
	}
	codes.Store(key, c)
	return c
}
