package server

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxRates is how many clients have a rate before those with a full bucket are forgotten.
const maxRates = 1024

// rates bound how often each client opens a connection.
type rates struct {
	mu        sync.Mutex
	perSecond int
	clients   map[string]*rate.Limiter
}

// limit sets the rate of each client. A burst may have twice as many connections as a second.
func (r *rates) limit(perSecond int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.perSecond != perSecond {
		r.perSecond, r.clients = perSecond, make(map[string]*rate.Limiter)
	}
}

// allow counts a connection of a client, and reports whether it is within the rate.
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

// forgetLocked drops the clients whose bucket is full, as a new bucket would be.
func (r *rates) forgetLocked() {
	now := time.Now()
	for client, l := range r.clients {
		if l.TokensAt(now) >= float64(2*r.perSecond) {
			delete(r.clients, client)
		}
	}
}
