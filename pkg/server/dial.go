package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"ptthqd/pkg/policy"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// dialer reaches P5. It bounds how long a dial takes, and how many are under way at once: in all,
// and per target, so that a target that does not answer cannot hold all sockets of the process.
// Further dials wait for a slot, within their time.
type dialer struct {
	dial    dialFunc
	guarded dialFunc           // for host names, which must not mean special addresses
	hit     func(limit string) // called for each dial that got no slot; nil: not called

	mu        sync.Mutex
	perTarget int
	all       chan struct{} // slots: one element for each dial under way
	busy      map[policy.Target]*queue
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// queue is the dials of one target.
type queue struct {
	slots chan struct{} // one element for each dial under way
	users int           // dials under way or waiting; guarded by dialer.mu
}

// limit sets how many dials may be under way at once, in all and to one target. Dials that have
// begun do not count against new bounds.
func (d *dialer) limit(all, perTarget int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.perTarget = perTarget
	if cap(d.all) != all {
		d.all = make(chan struct{}, all)
	}
}

// connect dials a target, which is no service's name, until the deadline of ctx. A guarded dial
// must not end at this host or another special address; see [policy.Decision]. The error is a
// *session.Refusal with a text for the administrator of the client.
func (d *dialer) connect(
	ctx context.Context, target policy.Target, guarded bool,
) (session.Conn, error) {
	deadline, _ := ctx.Deadline()
	timeout := time.Until(deadline).Round(100 * time.Millisecond)
	all, own := d.join(target)
	defer d.leave(target, own)

	for _, bound := range []struct {
		limit string
		slots chan struct{}
	}{{"dials_per_target", own.slots}, {"dials", all}} {
		select {
		case bound.slots <- struct{}{}:
			defer func() { <-bound.slots }()
		case <-ctx.Done():
			if d.hit != nil {
				d.hit(bound.limit)
			}
			return nil, &session.Refusal{
				Status: wire.StatusTooMany,
				Text: fmt.Sprintf("%s: no turn to dial it within %v: too many connections are being made "+
					"at once, or it answers too slowly", place(target), timeout),
			}
		}
	}
	conn, err := d.dialTarget(ctx, target, guarded)
	if err == nil && guarded {
		if err = self(conn); err != nil {
			_ = conn.Close()
		}
	}
	if err != nil {
		return nil, refuse(err, target, timeout)
	}
	stream, ok := conn.(session.Conn)
	if !ok {
		_ = conn.Close()
		err = fmt.Errorf("a connection of type %T can't be half-closed", conn)
		return nil, refuse(err, target, timeout)
	}
	return stream, nil
}

// join counts a dial of a target. It returns the slots of all dials, and the target's queue.
func (d *dialer) join(target policy.Target) (all chan struct{}, own *queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	own = d.busy[target]
	if own == nil {
		own = &queue{slots: make(chan struct{}, d.perTarget)}
		if d.busy == nil {
			d.busy = make(map[policy.Target]*queue)
		}
		d.busy[target] = own
	}
	own.users++
	return d.all, own
}

func (d *dialer) leave(target policy.Target, own *queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(d.busy, target)
	}
}

// dialTarget tries the target's addresses one after the other. A host name is one address here:
// net.Dial races what the name resolves to (RFC 8305). The error is that of the first address: a
// refusal by IPv4's loopback says more than the lack of IPv6.
func (d *dialer) dialTarget(
	ctx context.Context, target policy.Target, guarded bool,
) (net.Conn, error) {
	dial := d.dial
	if guarded && target.IsHostName() {
		dial = d.guarded
	}
	var first error
	for _, address := range target.Addresses() {
		conn, err := dial(ctx, target.Network(), address)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// refuse turns the error of a dial into a refusal that says what is wrong.
func refuse(err error, target policy.Target, timeout time.Duration) *session.Refusal {
	unix := target.Network() == "unix"
	refused := func(format string, args ...any) *session.Refusal {
		text := place(target) + ": " + fmt.Sprintf(format, args...)
		return &session.Refusal{Status: wire.StatusRefused, Text: text}
	}
	if special, ok := errors.AsType[*specialError](err); ok {
		return &session.Refusal{
			Status: wire.StatusNotAllowed,
			Text:   fmt.Sprintf("%s: %v; %s", place(target), special, specialHint),
		}
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		switch {
		case dns.IsNotFound:
			return refused("no such host: the server's DNS does not know %q", dns.Name)
		case dns.IsTimeout:
			return &session.Refusal{
				Status: wire.StatusTimeout,
				Text: fmt.Sprintf("%s: the server's DNS did not answer when asked for %q",
					place(target), dns.Name),
			}
		}
		return refused("the server can't resolve %q: %s", dns.Name, dns.Err)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ETIMEDOUT):
		return &session.Refusal{
			Status: wire.StatusTimeout,
			Text: fmt.Sprintf("%s: no answer within %v: it is down, or a firewall drops the packets",
				place(target), timeout),
		}
	case errors.Is(err, context.Canceled):
		return refused("given up")
	case errors.Is(err, syscall.ECONNREFUSED) && unix:
		return refused("connection refused: the socket is there, but nobody listens on it")
	case errors.Is(err, syscall.ECONNREFUSED):
		return refused("connection refused: nothing listens there, or a firewall rejects it")
	case errors.Is(err, fs.ErrNotExist):
		return refused("no such socket on the server")
	case errors.Is(err, syscall.EACCES) && unix:
		return refused("permission denied: " +
			"the user that ptthqd runs as on the server may not open the socket")
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return refused("permission denied: a firewall or the service manager on the server forbids it")
	case errors.Is(err, syscall.EHOSTUNREACH):
		return refused("no route to host: it is down, or not in the server's network")
	case errors.Is(err, syscall.ENETUNREACH):
		return refused("network is unreachable from the server: " +
			"it has no route, or no address of this family")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return refused("the server has no free local port or no address to reach it from")
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return &session.Refusal{
			Status: wire.StatusTooMany,
			Text:   "the server has no file descriptors to spare: raise LimitNOFILE of its ptthqd",
		}
	}
	// Without the OpError, which repeats the address.
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return refused("%v", err)
}

// place returns a target as people at the client read it.
func place(target policy.Target) string {
	if port, ok := strings.CutPrefix(target.String(), ":"); ok {
		return "port " + port + " of the server's loopback"
	}
	return target.String()
}

// count returns how many dials are under way or wait for a slot.
func (d *dialer) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, t := range d.busy {
		n += t.users
	}
	return n
}

// Reach dials a target of a service as for a connection, and closes it at once. It returns how long
// the dial took, or why it failed.
func (s *Server) Reach(
	ctx context.Context, service policy.Service, target policy.Target,
) (time.Duration, *session.Refusal) {
	if why := service.Bars(target, s.host.Owns); why != "" {
		return 0, &session.Refusal{Status: wire.StatusNotAllowed, Text: why}
	}
	ctx, cancel := context.WithTimeout(ctx, s.settings.Load().Limits.DialTimeout)
	defer cancel()
	began := time.Now()
	conn, err := s.dialer.connect(ctx, target, service.Guarded())
	if refusal, ok := errors.AsType[*session.Refusal](err); ok {
		return 0, refusal
	}
	took := time.Since(began)
	_ = conn.Close()
	return took, nil
}
