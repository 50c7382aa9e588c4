package server

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxRates is how many clients may have a rate before those that have not used
// theirs lately are forgotten.
const maxRates = 1024

// rates bound how often each client opens a connection.
type rates struct {
	mu        sync.Mutex
	perSecond int
	clients   map[string]*rate.Limiter
}

// limit sets the bound of all clients. Twice as many as in a second may come at once.
func (r *rates) limit(perSecond int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perSecond != perSecond {
		r.perSecond, r.clients = perSecond, make(map[string]*rate.Limiter)
	}
}

// allow counts one connection of a client, unless it is one too many.
func (r *rates) allow(client string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.clients[client]
	if l == nil {
		if len(r.clients) >= maxRates {
			r.forgetLocked()
		}
		l = rate.NewLimiter(rate.Limit(r.perSecond), 2*r.perSecond)
		r.clients[client] = l
	}
	return l.Allow()
}

// forgetLocked drops the clients whose bucket is full: a new one would be too.
func (r *rates) forgetLocked() {
	now := time.Now()
	for client, l := range r.clients {
		if l.TokensAt(now) >= float64(2*r.perSecond) {
			delete(r.clients, client)
		}
	}
}
