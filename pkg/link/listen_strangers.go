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

// A Stranger is a node with a valid key that the relay's config does not name.
type Stranger struct {
	Key     ident.PublicKey
	Address string    // of the last try
	Since   time.Time // the first try
	Last    time.Time // the last try
	Tries   uint64
}

const (
	maxStrangers       = 256 // remembered at most
	strangersPerSource = 64  // of one source, so that it can't push out all others
	// remembered after the last try; a dialler tries every 30 s
	strangerFor       = 15 * time.Minute
	strangerLineEvery = time.Hour // least time between two log lines about one key
)

// strangers is a bounded table of strangers. A new one replaces the one with the oldest last try:
// of the same source if that has strangersPerSource, else of all. The zero value is ready.
type strangers struct {
	mu    sync.Mutex
	known map[ident.PublicKey]*stranger
	total uint64        // tries of all strangers so far
	lines *rate.Limiter // bounds the log lines: anyone can make keys
	quiet int           // lines left out since the last one
}

type stranger struct {
	Stranger
	source netip.Prefix
	said   time.Time
}

// knock counts a try with an unknown key, and logs it if a line is due.
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
		slog.Any("key", key), slog.String("remote", k.Address), slog.Uint64("tries",
			k.Tries), slog.Any("reason", reason), quiet.LeftOut(s.quiet))
	s.quiet = 0
}

// makeRoomLocked forgets expired strangers, and one more if there is no room for a new one of
// source.
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

// forget forgets a key that is now a peer's.
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
