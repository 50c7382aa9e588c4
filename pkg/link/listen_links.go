package link

import (
	"sync"
	"sync/atomic"

	"ptthqd/pkg/door"
)

// Links are the live links of a relay, one for each peer ID. The newest link of a process wins. Of
// two processes the earlier one wins while it answers. The zero value is ready.
type Links struct {
	mu        sync.Mutex
	live      map[string]*Link
	waiting   map[string]int // connections that are not links yet, by peer ID
	door      door.Door
	strangers strangers
	tips      atomic.Int64 // streams that wait for their tip
}

// Forgive forgets all penalties. Call it when the config changes: a key that has failed may be
// known now.
func (t *Links) Forgive() { t.door.Forgive() }

// reserve counts a connection that is not a link yet. It reports false if the peer has most of
// them.
func (t *Links) reserve(id string, most int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting == nil {
		t.waiting = map[string]int{}
	}
	if t.waiting[id] >= most {
		return false
	}
	t.waiting[id]++
	return true
}

// release ends what reserve has counted.
func (t *Links) release(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.waiting[id]--; t.waiting[id] == 0 {
		delete(t.waiting, id)
	}
}

// get returns the live link of a peer, or nil.
func (t *Links) get(peer string) *Link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.live[peer]
}

// An addition is the outcome of add.
type addition int

const (
	added     addition = iota // the link is live
	tooMany                   // as many peers are connected as may be
	overtaken                 // the peer's live link is not old
)

// add makes link its peer's live link in place of old. old is nil if the peer has none.
func (t *Links) add(link, old *Link, most int) addition {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = map[string]*Link{}
	}
	switch {
	case t.live[link.Peer()] != old:
		return overtaken
	case old == nil && len(t.live) >= most:
		return tooMany
	}
	t.live[link.Peer()] = link
	return added
}

func (t *Links) rename(link *Link, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := link.Peer()
	link.peer.Store(&id)
	if t.live[was] == link {
		delete(t.live, was)
		if t.live[id] == nil {
			t.live[id] = link
		}
	}
}

func (t *Links) remove(link *Link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live[link.Peer()] == link {
		delete(t.live, link.Peer())
	}
}

// of returns the live links of one Listener for which f returns true, or all of them if f is nil.
func (t *Links) of(l *Listener, f func(*Link) bool) []*Link {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []*Link
	for _, link := range t.live {
		if link.listener == l && (f == nil || f(link)) {
			found = append(found, link)
		}
	}
	return found
}
