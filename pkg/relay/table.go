package relay

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/splice"
	"ptthqd/pkg/wire"
)

// A connection is one stream of a client on its way to a server. A forwarded TCP
// connection can have several one after the other, and two for a moment while it
// is being resumed.
//
//	admitted → (parked →) opening → open → gone
type connection struct {
	request
	from  *neighbour
	since time.Time
	ctx   context.Context // done, with an *ended as its cause, when the connection is to be reset
	abort context.CancelCauseFunc
	done  chan struct{} // closed when it has left the table
	join  splice.Join

	reply atomic.Pointer[wire.Reply] // the server's answer, once it has passed

	forth, back progress // of the sweeps: forth of the client's link, back of the server's

	// Guarded by the table's lock.
	to    *neighbour
	state State
}

// State is where a connection stands at the relay.
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
	c := &connection{request: q, from: from, since: time.Now(), done: make(chan struct{}), state: StateAdmitted}
	// Not the link's context: what a dead link means for a connection its streams tell.
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

// reset makes the connection end. It doesn't wait for it.
func (c *connection) reset(code wire.StreamCode, why string) {
	c.abort(&ended{code: code, why: why})
}

// key is what names a session: no client can touch another client's.
type key struct {
	client string
	token  wire.Token
}

// maxAttempts is how many streams one session may have at a time: the one that
// goes, the one that comes, and one for the race between them.
const maxAttempts = 3

// maxRights is how many rights of one client the relay remembers.
const maxRights = 1024

// A right is a way that a client has gone. Sessions that use it may be detached, and
// then no table but their server's knows them; what is withdrawn must reach them there.
// An empty target stands for all: of a client that has gone more than maxRights ways, those to one server are one.
type right struct{ client, target string }

// A standing says whether a remembered right is withdrawn, and the server hasn't been told.
type standing int

const (
	stands    standing = iota
	withdrawn          // of all targets: those that the policy does not allow any more
	lost               // with the client's key: of all targets every one
)

// table holds the connections. Its lock is for its own maps alone; nothing blocks under it.
type table struct {
	mu       sync.Mutex
	sessions map[key][]*connection                   // by attempt as they came
	over     map[*neighbour]map[*connection]struct{} // by link, on either side
	clients  map[string]int                          // sessions of each client
	streams  int
	parked   int
	held     map[string]int // new connections of those that are parked, by client
	heldAll  int
	up, down uint64                        // bytes of the streams that have left
	rights   map[string]map[right]standing // by the server's ID
	known    map[string]int                // rights of each client
	left     chan struct{}                 // of capacity 1: something has left
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

// A limitError says which limit keeps a connection out.
type limitError struct{ limit, text string }

func (e *limitError) Error() string { return e.text }

// The limits of a relay, as the config names them.
const (
	limitConnections = "streams"
	limitStreams     = "streams_per_peer"
	limitOpens       = "opens_per_second"
	limitParked      = "parked_resumes"
)

// add enters a connection, or tells which limit is reached.
func (t *table) add(c *connection, l Limits) *limitError {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := key{c.client, c.token}
	attempts := t.sessions[k]
	switch {
	case len(attempts) >= maxAttempts:
		attempts[0].reset(wire.CodeLost, "replaced by newer attempts") // it leaves by itself
	case len(attempts) > 0:
	case len(t.sessions) >= l.Connections:
		return &limitError{limitConnections, fmt.Sprintf("the relay has %d connections, its limit", l.Connections)}
	case t.clients[c.client] >= l.ConnectionsPerClient:
		return &limitError{limitStreams, fmt.Sprintf("client %s has %d connections, its limit", c.client, l.ConnectionsPerClient)}
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

func (t *table) rememberLocked(server string, r right) {
	if t.isKnownLocked(server, r) {
		return
	}
	if t.known[r.client] >= maxRights {
		t.foldLocked(r.client)
		if t.isKnownLocked(server, r) {
			return
		}
	}
	if t.rights[server] == nil {
		t.rights[server] = make(map[right]standing)
	}
	t.known[r.client]++
	t.rights[server][r] = stands
}

func (t *table) isKnownLocked(server string, r right) bool {
	_, one := t.rights[server][r]
	_, all := t.rights[server][right{client: r.client}]
	return one || all
}

// foldLocked makes one of a client's rights to the server for which it has the most.
func (t *table) foldLocked(client string) {
	var most []right
	var at string
	for server, rights := range t.rights {
		var of []right
		for r := range rights {
			if r.client == client {
				of = append(of, r)
			}
		}
		if len(of) > len(most) {
			most, at = of, server
		}
	}
	if len(most) < 2 { // it has one for each of very many servers, which the config names
		return
	}
	now := stands
	for _, r := range most {
		now = max(now, t.rights[at][r])
		delete(t.rights[at], r)
	}
	t.rights[at][right{client: client}] = now
	t.known[client] -= len(most) - 1
}

func (t *table) forgetLocked(server string, r right) {
	delete(t.rights[server], r)
	if len(t.rights[server]) == 0 {
		delete(t.rights, server)
	}
	if t.known[r.client]--; t.known[r.client] == 0 {
		delete(t.known, r.client)
	}
}

// remove takes a connection out. The second time it does nothing.
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

// park counts a request that begins to wait, or says why it may not.
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
		return fmt.Sprintf("%d new connections of %s wait for servers already", t.held[c.client], c.client)
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

func (t *table) enter(c *connection, s State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.state = s
}

// opening notes the next hop.
func (t *table) opening(c *connection, to *neighbour) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.state, c.to = StateOpening, to
	t.overLocked(to, c)
}

// opened notes that a connection carries its session now, and resets the session's
// other streams: the client has left them.
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

// matching collects connections. match is called under the lock.
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

// each visits what goes over a link. visit is called under the lock.
func (t *table) each(n *neighbour, visit func(*connection)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.over[n] {
		visit(c)
	}
}

// carried counts what goes over each link, in one pass.
func (t *table) carried() map[*neighbour]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	carried := make(map[*neighbour]int, len(t.over))
	for n, over := range t.over {
		carried[n] = len(over)
	}
	return carried
}

// len is the number of streams in the table.
func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams
}

// knownClients are those of whom the table remembers a right.
func (t *table) knownClients() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.known))
}

// follow has what is remembered of servers by other names remembered by their IDs.
func (t *table) follow(ids map[string]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, rights := range t.rights {
		id := ids[name]
		if id == "" {
			continue
		}
		for r, was := range rights {
			t.forgetLocked(name, r)
			t.rememberLocked(id, r)
			if _, one := t.rights[id][r]; !one {
				r.target = "" // one with others by now
			}
			t.rights[id][r] = max(t.rights[id][r], was)
		}
	}
}

// withdraw marks the remembered rights that are gone.
func (t *table) withdraw(gone func(server string, r right) standing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for server, rights := range t.rights {
		for r, was := range rights {
			rights[r] = max(was, gone(server, r))
		}
	}
}

// takeWithdrawn returns what a server has to be told, and forgets it. Of what stands for all targets some may be kept, and
// so it stays.
func (t *table) takeWithdrawn(server string) map[right]standing {
	t.mu.Lock()
	defer t.mu.Unlock()
	taken := make(map[right]standing)
	for r, now := range t.rights[server] {
		if now == stands {
			continue
		}
		taken[r] = now
		if r.target == "" && now == withdrawn {
			t.rights[server][r] = stands
		} else {
			t.forgetLocked(server, r)
		}
	}
	return taken
}
