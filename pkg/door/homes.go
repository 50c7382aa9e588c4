package door

import (
	"net/netip"
	"slices"
	"time"
)

const (
	homeFor  = 24 * time.Hour // after a peer was seen at a source
	maxHomes = 8              // of one peer, so that it can't push out the homes of others
)

// homes are the sources where peers were let in. The zero value is ready.
type homes struct {
	peers map[string][]netip.Prefix // the last one was seen last
	seen  map[netip.Prefix]map[string]time.Time
}

// at returns about how many peers have a source as their home: it stops at the first that has not
// expired.
func (h *homes) at(source netip.Prefix, now time.Time) int {
	for peer, seen := range h.seen[source] {
		if now.Sub(seen) < homeFor {
			return len(h.seen[source])
		}
		h.remove(peer, source)
	}
	return 0
}

func (h *homes) add(peer string, source netip.Prefix, now time.Time) {
	if h.peers == nil {
		h.peers = make(map[string][]netip.Prefix)
		h.seen = make(map[netip.Prefix]map[string]time.Time)
	}
	h.remove(peer, source)
	if own := h.peers[peer]; len(own) == maxHomes {
		h.remove(peer, own[0])
	}
	h.peers[peer] = append(h.peers[peer], source)
	if h.seen[source] == nil {
		h.seen[source] = make(map[string]time.Time)
	}
	h.seen[source][peer] = now
}

func (h *homes) remove(peer string, source netip.Prefix) {
	if _, ok := h.seen[source][peer]; !ok {
		return
	}
	delete(h.seen[source], peer)
	if len(h.seen[source]) == 0 {
		delete(h.seen, source)
	}
	own := slices.DeleteFunc(h.peers[peer], func(s netip.Prefix) bool { return s == source })
	h.peers[peer] = own
	if len(own) == 0 {
		delete(h.peers, peer)
	}
}

func (h *homes) expel(peer string) {
	for _, source := range slices.Clone(h.peers[peer]) {
		h.remove(peer, source)
	}
}
