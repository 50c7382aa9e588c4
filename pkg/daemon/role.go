package daemon

import (
	"context"
	"fmt"
	"syscall"

	"ptthqd/pkg/config"
	"ptthqd/pkg/control"
)

// role is a client, a server or a relay. Its methods may be called from any goroutine.
type role interface {
	// Run works until ctx is done, then drains, and returns when all has ended. It fails if it
	// can't begin or can't go on.
	Run(ctx context.Context) error
	// Ready is closed when the role's own sockets are bound.
	Ready() <-chan struct{}
	// Force cuts the drain short.
	Force()
	// Apply goes over to another config, or fails and changes nothing.
	Apply(ctx context.Context, next *config.Config) error
	// View looks at everything, each connection too.
	View() view
	// Summary says in one line how the role stands. It looks at no connection's figures.
	Summary() string
	// Count returns the number of forwarded connections.
	Count() int
	// Trace tests the way of a connection, hop by hop.
	Trace(ctx context.Context, q control.TraceQuestion) (*control.Trace, error)
	// Alive returns once every accept loop has answered and every lock was had, with an error if
	// ctx is done first.
	Alive(ctx context.Context) error
	// Unbound returns the listeners that are not bound yet, each with its problem.
	Unbound() []string
	// Sockets returns the sockets that should survive a restart, by FDNAME.
	Sockets() map[string][]syscall.Conn
}

func newRole(d *daemon, c *config.Config) (role, error) {
	switch c.Role {
	case config.RoleClient:
		return newClientRole(d, c)
	case config.RoleServer:
		return newServerRole(d, c)
	case config.RoleRelay:
		return newRelayRole(d, c)
	}
	panic(fmt.Sprintf("internal error: role %q", c.Role))
}
