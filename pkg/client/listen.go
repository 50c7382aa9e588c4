package client

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/config"
)

// A listener is a place where P1 connects, and the mapping that it leads to at
// the moment. It holds one socket, or two for the loopback of both families.
type listener struct {
	at      config.Listen
	bound   *bind.Listener
	sockets []socket
	mapping atomic.Pointer[config.Mapping]
	gate    gate // the connections through this listener

	cut     chan struct{} // closed when its connections are to end with it
	stop    context.CancelFunc
	accepts sync.WaitGroup // the accept loops
}

// A socket is one of a listener's, under the name by which it can be inherited:
// "127.0.0.1:2200", "unix:NAME", "systemd:NAME".
type socket struct {
	net.Listener
	name  string
	probe chan chan struct{} // what is in it, the accept loop closes; see Client.Alive
}

// bind makes the listener of a mapping.
func (c *Client) bind(ctx context.Context, m *config.Mapping) (*listener, error) {
	mode := m.ListenMode
	if m.ListenGroup != "" {
		mode &^= 0o070 // until it is the right group
	}
	bound, err := c.binder.Listen(ctx, m.Listen, mode)
	if err != nil {
		return nil, err
	}
	if m.ListenGroup != "" {
		err := bound.SetGroup(m.ListenGroup)
		if err == nil {
			err = bound.SetMode(m.ListenMode)
		}
		if err != nil {
			bound.Close(false)
			return nil, err
		}
	}
	l := &listener{at: m.Listen, bound: bound, cut: make(chan struct{})}
	l.mapping.Store(m)
	for _, s := range bound.Sockets {
		l.sockets = append(l.sockets, socket{s.Socket, s.Name, make(chan chan struct{}, 1)})
	}
	return l, nil
}

// A vacancy is a place where a mapping of the config in force should listen,
// and can't at the moment.
type vacancy struct {
	mapping *config.Mapping
	err     error // of the last try
}

// vacateLocked notes that a mapping can't listen, and says so unless it has been said.
func (c *Client) vacateLocked(m *config.Mapping, err error) {
	before := c.vacant[m.Listen]
	c.vacant[m.Listen] = &vacancy{m, err}
	if before != nil && before.err.Error() == err.Error() {
		return
	}
	problem, hint := bind.Problem(err)
	c.log.Warn("a mapping does not listen", slog.String("mapping", m.Name), slog.String("listener", m.Listen.String()),
		slog.String("error", problem), slog.String("hint", hint))
}

// fill tries to bind what could not be bound before.
func (c *Client) fill(ctx context.Context) {
	c.mu.Lock()
	filled := c.accepting != nil && c.fillLocked(ctx)
	c.mu.Unlock()
	if filled && c.config.Rebound != nil {
		c.config.Rebound()
	}
}

func (c *Client) fillLocked(ctx context.Context) (filled bool) {
	for i := range c.settings.Load().Mappings { // in their order: of two faults the same is told first each time
		v := c.vacant[c.settings.Load().Mappings[i].Listen]
		if v == nil {
			continue
		}
		l, err := c.bind(ctx, v.mapping)
		if err != nil {
			c.vacateLocked(v.mapping, err)
			continue
		}
		delete(c.vacant, l.at)
		c.enterLocked([]*listener{l})
		filled = true
	}
	return filled
}
