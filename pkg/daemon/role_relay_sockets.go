package daemon

import (
	"context"
	"errors"
	"syscall"

	"ptthqd/pkg/bind"
	"ptthqd/pkg/carrier"
	"ptthqd/pkg/config"
	"ptthqd/pkg/host"
	"ptthqd/pkg/link"
)

// bind binds listeners and returns the sockets of those that can be bound. The error says why
// others can't.
func (r *relayRole) bind(
	ctx context.Context, listen []config.Listen,
) (made []*relaySocket, failed error) {
	for _, at := range listen {
		sockets, err := r.open(ctx, at)
		r.mu.Lock()
		before := r.vacant[at]
		if err != nil {
			r.vacant[at] = err
		} else {
			delete(r.vacant, at)
		}
		for _, s := range sockets {
			s.listener = r.newListener(s.Socket)
		}
		r.sockets = append(r.sockets, sockets...)
		r.mu.Unlock()
		for _, s := range sockets {
			r.daemon.log.Info("listening", "listener", s.place, "address", s.LocalAddr())
		}
		known := before != nil && err != nil && before.Error() == err.Error()
		if err != nil && !known && len(r.listen) > 1 { // without a single socket the relay ends
			problem, hint := bind.Problem(err)
			r.daemon.log.Warn("the relay does not listen everywhere",
				"listener", at.String(), "error", problem, "hint", hint)
		}
		made, failed = append(made, sockets...), errors.Join(failed, err)
	}
	return made, failed
}

// open makes the sockets of one listener: all or none.
func (r *relayRole) open(ctx context.Context, at config.Listen) (made []*relaySocket, err error) {
	bound, err := r.binder.ListenPacket(ctx, at)
	for _, b := range bound {
		var socket *carrier.Socket
		if err == nil {
			socket, err = carrier.New(b.Socket, r.daemon.log) // closes the socket if it fails
		}
		if err != nil {
			_ = b.Socket.Close()
			continue
		}
		made = append(made,
			&relaySocket{
				Socket: socket, place: b.Name, ofUnit: at.Kind == config.Systemd,
				conn: b.Socket,
			})
	}
	if err != nil {
		for _, s := range made {
			_ = s.Close()
		}
		return nil, err
	}
	return made, nil
}

// unbound returns the listeners to try again.
func (r *relayRole) unbound() []config.Listen {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []config.Listen
	for _, l := range r.listen {
		if r.vacant[l] != nil {
			list = append(list, l)
		}
	}
	return list
}

func (r *relayRole) Unbound() (texts []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listen {
		if err := r.vacant[l]; err != nil {
			problem, _ := bind.Problem(err)
			texts = append(texts, l.String()+": "+problem)
		}
	}
	return texts
}

func (r *relayRole) closeSockets() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sockets {
		_ = s.Close()
	}
	r.sockets = nil
}

func (r *relayRole) Sockets() map[string][]syscall.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept := make(map[string][]syscall.Conn)
	for _, s := range r.sockets {
		if conn, ok := s.conn.(syscall.Conn); ok && !s.ofUnit {
			kept[host.FDName("udp", s.place)] = []syscall.Conn{conn}
		}
	}
	return kept
}

// newListener makes the listener of a socket. The caller holds the lock.
func (r *relayRole) newListener(socket *carrier.Socket) *link.Listener {
	limits := listenerLimits(r.settings)
	limits.Windows = r.windows
	return &link.Listener{
		Socket:   socket,
		Links:    &r.links,
		Identity: r.daemon.identity,
		Admit:    r.Admit,
		Serve:    r.Serve,
		Rival:    r.Rival,
		Logger:   r.daemon.log,
		Limits:   limits,
		LimitHit: r.LimitHit,
	}
}
