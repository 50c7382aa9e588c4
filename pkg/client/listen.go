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

// A listener is a place where P1 connects. A reload may give it another mapping.
type listener struct {
	*intake
	at      config.Listen
	bound   *bind.Listener
	sockets []socket // one, or two for the loopback of both families
	mapping atomic.Pointer[config.Mapping]

	stop    context.CancelFunc // ends the accept loops
	accepts sync.WaitGroup     // the accept loops
}

// A socket is one socket of a listener, with the name by which it can be inherited:
// "127.0.0.1:2200", "unix:NAME", "systemd:NAME".
type socket struct {
	net.Listener
	name  string
	probe chan chan struct{} // the accept loop closes what it finds in here; see Client.Alive
}

// bind makes the listener of a mapping. It does not accept yet.
func (c *Client) bind(ctx context.Context, m *config.Mapping) (*listener, error) {
	mode := m.ListenMode
	if m.ListenGroup != "" {
		mode &^= 0o070 // until the file has its group
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
	l := &listener{at: m.Listen, bound: bound}
	l.intake = newIntake(func() string { return l.mapping.Load().Name })
	l.mapping.Store(m)
	for _, s := range bound.Sockets {
		l.sockets = append(l.sockets, socket{s.Socket, s.Name, make(chan chan struct{}, 1)})
	}
	return l, nil
}

// A vacancy is a place where an enabled mapping cannot listen at the moment.
type vacancy struct {
	mapping *config.Mapping
	err     error // of the last try
}

// vacateLocked notes that a mapping cannot listen. It logs the error unless the last try had the
// same one.
func (c *Client) vacateLocked(m *config.Mapping, err error) {
	before := c.vacant[m.Listen]
	c.vacant[m.Listen] = &vacancy{m, err}
	if before != nil && before.err.Error() == err.Error() {
		return
	}
	problem, hint := bind.Problem(err)
	c.log.Warn("a mapping does not listen",
		slog.String("mapping", m.Name), slog.String("listener", m.Listen.String()),
		slog.String("error", problem), slog.String("hint", hint))
}

// fill tries again to bind the vacancies.
func (c *Client) fill(ctx context.Context) {
	c.mu.Lock()
	filled := c.accepting != nil && c.fillLocked(ctx)
	c.mu.Unlock()
	if filled && c.config.Rebound != nil {
		c.config.Rebound()
	}
}

// fillLocked goes by the order of the config: of two faults the same one is logged first each time.
func (c *Client) fillLocked(ctx context.Context) (filled bool) {
	for i := range c.settings.Load().Mappings {
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
		c.openLocked(l)
		filled = true
	}
	return filled
}
