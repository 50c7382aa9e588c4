package relay

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/splice"
	"ptthqd/pkg/wire"
)

// A connection is one stream of a client on its way to a server. A session has several one after
// the other, and two for a moment while it is being resumed.
//
//	admitted → (parked →) opening → open → gone
//	                              ↘ refused ↗
type connection struct {
	request
	from  *neighbour
	since time.Time
	ctx   context.Context // done when the relay resets the connection; the cause is an *ended
	abort context.CancelCauseFunc
	done  chan struct{} // closed when it has left the table
	join  splice.Join

	reply atomic.Pointer[wire.Reply] // the server's answer, once it has passed

	forth, back progress // used by the sweeps of the client's link, and of the server's

	// Guarded by the table's lock.
	to    *neighbour
	state State
}

// State is the state of a connection at the relay.
type State string

// The states of a connection.
const (
	StateAdmitted State = "admitted" // the relay has just let it in
	StateParked   State = "parked"   // it waits for its server's link
	StateOpening  State = "opening"  // the server has been asked
	StateOpen     State = "open"     // the server has granted it
	StateRefused  State = "refused"  // the server has refused it
)

func newConnection(q request, from *neighbour) *connection {
	c := &connection{
		request: q, from: from, since: time.Now(), done: make(chan struct{}), state: StateAdmitted,
	}
	// Not the link's context: after the death of a link, its streams end the connection.
	c.ctx, c.abort = context.WithCancelCause(context.Background())
	return c
}

// ended is why the relay itself resets a connection.
type ended struct {
	code wire.StreamCode
	why  string
}

func (e *ended) Error() string { return e.why }
func (e *ended) Unwrap() error { return &wire.ResetError{Code: e.code} }

// reset makes the connection end, and does not wait for the end.
func (c *connection) reset(code wire.StreamCode, why string) {
	c.abort(&ended{code: code, why: why})
}

// key identifies a session. The client is part of it, so that no client can touch another's.
type key struct {
	client string
	token  wire.Token
}

// maxAttempts bounds the streams of one session at a time: the old one, the new one, and one more
// for the race between them.
const maxAttempts = 3

// table holds the connections, and the rights of rights.go. Nothing blocks while its lock is held.
type table struct {
	mu       sync.Mutex
	sessions map[key][]*connection                   // streams of a session in the order of arrival
	over     map[*neighbour]map[*connection]struct{} // by link, of the client or the server
	clients  map[string]int                          // sessions of each client
	streams  int
	parked   int            // requests that wait, resumes and new connections
	held     map[string]int // new connections among them, by client
	heldAll  int            // the sum of held
	up, down uint64         // bytes of the connections that have left
	left     chan struct{}  // of capacity 1: a connection has left

	rights map[string]map[right]standing // by the server's ID
	known  map[string]int                // rights of each client
}

func newTable() table {
	return table{
		sessions: make(map[key][]*connection),
		over:     make(map[*neighbour]map[*connection]struct{}),
		clients:  make(map[string]int),
		held:     make(map[string]int),
		rights:   make(map[string]map[right]standing),
		known:    make(map[string]int),
		left:     make(chan struct{}, 1),
	}
}

// A limitError says which limit refuses a connection.
type limitError struct{ limit, text string }

func (e *limitError) Error() string { return e.text }

// The limits of a relay, as the config names them.
const (
	limitConnections = "streams"
	limitStreams     = "streams_per_peer"
	limitOpens       = "opens_per_second"
	limitParked      = "parked_resumes"
)

// add enters a connection, or returns which limit is reached.
func (t *table) add(c *connection, l Limits) *limitError {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{c.client, c.token}
	attempts := t.sessions[k]
	switch {
	case len(attempts) >= maxAttempts:
		attempts[0].reset(wire.CodeLost, "replaced by newer attempts") // and leaves the table soon
	case len(attempts) > 0:
	case len(t.sessions) >= l.Connections:
		return &limitError{limitConnections, fmt.Sprintf("the relay has %d connections, its limit",
			l.Connections)}
	case t.clients[c.client] >= l.ConnectionsPerClient:
		return &limitError{limitStreams, fmt.Sprintf("client %s has %d connections, its limit",
			c.client, l.ConnectionsPerClient)}
	default:
		t.clients[c.client]++
	}
	t.sessions[k] = append(attempts, c)
	t.streams++
	t.overLocked(c.from, c)
	t.rememberLocked(c.request.to, right{c.client, c.target})
	return nil
}

func (t *table) overLocked(n *neighbour, c *connection) {
	if t.over[n] == nil {
		t.over[n] = make(map[*connection]struct{})
	}
	t.over[n][c] = struct{}{}
}

func (t *table) notOverLocked(n *neighbour, c *connection) {
	if delete(t.over[n], c); len(t.over[n]) == 0 {
		delete(t.over, n)
	}
}

// remove takes a connection out. It may be called twice.
func (t *table) remove(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{c.client, c.token}
	attempts := t.sessions[k]
	i := slices.Index(attempts, c)
	if i < 0 {
		return
	}
	t.streams--
	t.up += c.join.Forth.Bytes()
	t.down += c.join.Back.Bytes()
	t.notOverLocked(c.from, c)
	if c.to != nil {
		t.notOverLocked(c.to, c)
	}
	if attempts = slices.Delete(attempts, i, i+1); len(attempts) > 0 {
		t.sessions[k] = attempts
	} else {
		delete(t.sessions, k)
		if t.clients[c.client]--; t.clients[c.client] == 0 {
			delete(t.clients, c.client)
		}
	}
	c.abort(nil) // frees the context
	close(c.done)
	select {
	case t.left <- struct{}{}:
	default:
	}
}

// park counts a request that begins to wait for its server, or says why it may not wait.
func (t *table) park(c *connection, most int) (tooMany string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.parked >= most:
		return fmt.Sprintf("%d connections wait for servers already", most)
	case c.resume:
	case t.heldAll >= max(1, most/openShare):
		return fmt.Sprintf("%d new connections wait for servers already", t.heldAll)
	case t.held[c.client] >= max(1, most/clientShare):
		return fmt.Sprintf("%d new connections of %s wait for servers already",
			t.held[c.client], c.client)
	}
	if !c.resume {
		t.held[c.client]++
		t.heldAll++
	}
	t.parked++
	c.state = StateParked
	return ""
}

func (t *table) unpark(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.parked--
	if c.resume {
		return
	}
	t.heldAll--
	if t.held[c.client]--; t.held[c.client] == 0 {
		delete(t.held, c.client)
	}
}

func (t *table) setState(c *connection, s State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.state = s
}

// opening notes the link to the server.
func (t *table) opening(c *connection, to *neighbour) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.state, c.to = StateOpening, to
	t.overLocked(to, c)
}

// opened notes that a connection carries its session now. It resets the session's older streams,
// which the client has left.
func (t *table) opened(c *connection) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.state = StateOpen
	for _, other := range t.sessions[key{c.client, c.token}] {
		if other != c && other.attempt < c.attempt {
			other.reset(wire.CodeLost, "replaced by a newer attempt")
		}
	}
}

// matching returns the connections that match. match is called with the lock held.
func (t *table) matching(match func(*connection) bool) []*connection {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []*connection
	for _, attempts := range t.sessions {
		for _, c := range attempts {
			if match(c) {
				found = append(found, c)
			}
		}
	}
	return found
}

// each calls visit with the lock held for each connection over a link.
func (t *table) each(n *neighbour, visit func(*connection)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.over[n] {
		visit(c)
	}
}

// carried returns the number of connections over each link.
func (t *table) carried() map[*neighbour]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	carried := make(map[*neighbour]int, len(t.over))
	for n, over := range t.over {
		carried[n] = len(over)
	}
	return carried
}

// len returns the number of connections.
func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams
}
