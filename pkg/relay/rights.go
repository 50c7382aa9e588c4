package relay

import (
	"maps"
	"slices"
)

// maxRights bounds the rights that the relay remembers of one client.
const maxRights = 1024

// A right lets a client reach a target of a server. The relay remembers the rights that were used:
// their sessions may be detached, and then only the server knows them, which must hear of a right
// that is withdrawn. An empty target stands for all targets: beyond maxRights, the rights of a
// client to one server are folded into one.
type right struct{ client, target string }

// A standing says whether a right is withdrawn and the server still has to be told.
type standing int

const (
	stands    standing = iota
	withdrawn          // where it is of all targets: of those that the policy does not allow
	lost               // with the client's key: where it is of all targets, of every one
)

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

// foldLocked replaces a client's rights to one server by one right to all targets. It takes the
// server to which the client has the most rights.
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
	if len(most) < 2 { // one right to each of very many servers, which the config bounds
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

// knownClients returns the clients of which the table remembers a right.
func (t *table) knownClients() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.known))
}

// follow moves the rights to servers from their other names to their IDs.
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
				r.target = "" // it was folded
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

// takeWithdrawn returns the rights whose loss a server must be told, and forgets them. A right to
// all targets stays, since the policy may still allow some of them.
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
