package link

import (
	"cmp"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"ptthqd/pkg/ident"
	"ptthqd/pkg/quiet"
)

// A Stranger is a node that knocks: it has proved a key that the relay's config does not name.
type Stranger struct {
	Key     ident.PublicKey
	Address string    // where it came from last
	Since   time.Time // its first try
	Last    time.Time // its last try
	Tries   uint64
}

const (
	maxStrangers       = 256              // that are remembered
	strangersPerSource = 64               // of those, at one source: it can't push out all others
	strangerFor        = 15 * time.Minute // after the last try: a dialler tries every 30 s
	strangerLineEvery  = time.Hour        // the least time between two lines about one key
)

// strangers are the nodes that knock. They are bounded: a new one takes the place of the one that has been silent for the
// longest time, of its own source if that has many. The zero value is ready.
type strangers struct {
	mu    sync.Mutex
	known map[ident.PublicKey]*stranger
	total uint64        // tries of all, ever
	lines *rate.Limiter // anybody can make keys, and so lines
	quiet int           // keys without a line since the last one
}

type stranger struct {
	Stranger
	source netip.Prefix
	said   time.Time
}

// knock counts a try of a key that is nobody's, and logs it where that is due.
func (s *strangers) knock(key ident.PublicKey, from net.Addr, reason error, log *slog.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, source := time.Now(), sourceOf(from)
	s.total++
	k := s.known[key]
	if k == nil {
		if s.known == nil {
			s.known = make(map[ident.PublicKey]*stranger)
			s.lines = rate.NewLimiter(rate.Every(30*time.Second), 100)
		}
		s.makeRoomLocked(source, now)
		k = &stranger{Stranger: Stranger{Key: key, Since: now}}
		s.known[key] = k
	}
	k.Tries++
	k.Address, k.Last, k.source = from.String(), now, source
	if !k.said.IsZero() && now.Sub(k.said) < strangerLineEvery {
		return
	}
	k.said = now
	if !s.lines.Allow() {
		s.quiet++
		return
	}
	log.Info("a node with an unknown key is knocking (ptthqd status shows all of them)",
		slog.Any("key", key), slog.String("remote", k.Address), slog.Uint64("tries", k.Tries), slog.Any("reason", reason), quiet.LeftOut(s.quiet))
	s.quiet = 0
}

// makeRoomLocked forgets those that have gone, and one more where there is no room for another from a source.
func (s *strangers) makeRoomLocked(source netip.Prefix, now time.Time) {
	there := 0
	var first, firstThere *stranger // the one that has been silent for longest
	for key, k := range s.known {
		if now.Sub(k.Last) > strangerFor {
			delete(s.known, key)
			continue
		}
		if first == nil || k.Last.Before(first.Last) {
			first = k
		}
		if k.source == source {
			there++
			if firstThere == nil || k.Last.Before(firstThere.Last) {
				firstThere = k
			}
		}
	}
	switch {
	case there >= strangersPerSource:
		delete(s.known, firstThere.Key)
	case len(s.known) >= maxStrangers:
		delete(s.known, first.Key)
	}
}

// forget forgets a key that has become a peer's.
func (s *strangers) forget(key ident.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, key)
}

// StrangerTries returns the number of tries with unknown keys so far.
func (t *Links) StrangerTries() uint64 {
	t.strangers.mu.Lock()
	defer t.strangers.mu.Unlock()
	return t.strangers.total
}

// Strangers returns the nodes that have tried within strangerFor, the oldest first.
func (t *Links) Strangers() []Stranger {
	s := &t.strangers
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Stranger
	for _, k := range s.known {
		if time.Since(k.Last) <= strangerFor {
			list = append(list, k.Stranger)
		}
	}
	slices.SortFunc(list, func(a, b Stranger) int {
		return cmp.Or(a.Since.Compare(b.Since), slices.Compare(a.Key[:], b.Key[:]))
	})
	return list
}
