package link

import (
	"sync"
	"sync/atomic"

	"ptthqd/pkg/door"
)

// Links are the live links of a relay, one for each peer ID: the newest of a process wins, and of two processes the one
// that was there first while it answers. The zero value is ready.
type Links struct {
	mu        sync.Mutex
	live      map[string]*Link
	waiting   map[string]int // connections that are not links yet, of each peer ID
	door      door.Door
	strangers strangers
	tips      atomic.Int64 // streams that wait for their tip
}

// Forgive forgets which sources have failed to authenticate: those of a config before.
func (t *Links) Forgive() { t.door.Forgive() }

// enter counts a connection that is not a link yet; false is one too many.
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

// What became of a link that was to be its peer's one.
type addition int

const (
	added     addition = iota
	tooMany            // links of all peers
	overtaken          // the peer has another link than the one to be replaced
)

// add makes a link its peer's one in place of old, which is nil if there is none.
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

// of returns the live links of one Listener of which f says true; nil says so of all.
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
