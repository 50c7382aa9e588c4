package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/spare"
	"ptthqd/pkg/wire"
)

// After a failed accept the loop pauses, longer each time: where file
// descriptors have run out, trying again at once would only burn a processor.
const (
	acceptPauseFirst = 5 * time.Millisecond
	acceptPauseMost  = time.Second
)

// start begins to accept connections on l, until ctx is done or l closes.
func (c *Client) start(ctx context.Context, l *listener) {
	ctx, l.stop = context.WithCancel(ctx)
	for _, s := range l.sockets {
		l.accepts.Go(func() { c.acceptLoop(ctx, l, s) })
	}
}

// pause ends the accept loops of l, and leaves its sockets open where they can be left.
func (l *listener) pause() {
	l.stop()
	for _, s := range l.sockets {
		if d, ok := s.Listener.(interface{ SetDeadline(t time.Time) error }); !ok || d.SetDeadline(time.Now()) != nil {
			_ = s.Close()
		}
	}
	l.accepts.Wait()
}

// finish ends l: no connection is accepted any more when it returns. Those that
// were go on.
func (l *listener) finish(keepFile bool) {
	l.stop()
	l.bound.Close(keepFile)
	l.accepts.Wait()
}

func (c *Client) acceptLoop(ctx context.Context, l *listener, s socket) {
	pause := acceptPauseFirst
	for ctx.Err() == nil {
		conn, err := s.Accept()
		if err == nil {
			pause = acceptPauseFirst
			if !c.admit(ctx, l, s) {
				abort(conn)
				return
			}
			last := c.isLast(conn)
			c.conns.Go(func() { c.carry(l, conn) })
			if last && !c.awaitDescriptors(ctx, s) {
				return
			}
			continue
		}
		switch {
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.answer()
			continue
		}
		c.acceptFailed(s, err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, acceptPauseMost)
	}
}

// isLast tells whether conn is one of the descriptors that connections are to leave alone.
func (c *Client) isLast(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	return err == nil && spare.Reached(raw, c.settings.Load().Limits.SpareDescriptors)
}

// descriptorsEvery is how often one looks whether descriptors have come back.
const descriptorsEvery = 250 * time.Millisecond

// awaitDescriptors waits until descriptors have come back. New connections stay in the listener's queue meanwhile.
func (c *Client) awaitDescriptors(ctx context.Context, s socket) bool {
	const limit = "spare_descriptors"
	c.hits.Hit(limit)
	c.repeats.Warn(c.log, [2]string{s.name, limit}, "connections wait: few file descriptors are left",
		slog.String("listener", s.name), slog.String("limit", limit),
		slog.String("hint", "raise LimitNOFILE of the service (ulimit -n), or lower limits.sessions"))
	look := time.NewTicker(descriptorsEvery)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case p := <-s.probe:
			close(p)
		case <-ctx.Done():
			return false
		}
		if spare.Room(c.settings.Load().Limits.SpareDescriptors) {
			return true
		}
	}
}

// Alive reports whether every accept loop and every table answers: it waits
// until they have, or ctx is done. A watchdog asks it now and then.
func (c *Client) Alive(ctx context.Context) error {
	_ = c.Snapshot() // takes every lock
	c.mu.Lock()      // so that no listener is closed meanwhile
	defer c.mu.Unlock()
	if c.accepting == nil {
		return nil
	}
	for _, l := range c.listeners {
		for _, s := range l.sockets {
			if err := s.ask(ctx, c.accepting.Done()); err != nil {
				return err
			}
		}
	}
	return nil
}

// ask has the accept loop of a socket come out of its wait and answer, unless
// it is about to end.
func (s socket) ask(ctx context.Context, ending <-chan struct{}) error {
	l, ok := s.Listener.(interface{ SetDeadline(t time.Time) error })
	if !ok {
		return nil
	}
	answered := make(chan struct{})
	select {
	case <-s.probe: // nobody waits for that any more
	default:
	}
	s.probe <- answered
	if err := l.SetDeadline(time.Now()); err != nil {
		return fmt.Errorf("wake the accept loop of %s: %w", s.name, err)
	}
	select {
	case <-answered:
		return nil
	case <-ending:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the accept loop of %s does not answer: %w", s.name, context.Cause(ctx))
	}
}

// answer is called by the accept loop when ask has woken it.
func (s socket) answer() {
	if l, ok := s.Listener.(interface{ SetDeadline(t time.Time) error }); ok {
		_ = l.SetDeadline(time.Time{})
	}
	select {
	case p := <-s.probe:
		close(p)
	default:
	}
}

// acceptFailed tells of a failed accept, and later how often it happened again.
func (c *Client) acceptFailed(s socket, err error) {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	text := acceptHint(err)
	c.repeats.Warn(c.log, s.name+text, "connections can't be accepted",
		slog.String("listener", s.name), slog.String("error", text))
}

// admit counts a connection, or waits until it may be counted: what is beyond
// the limits stays in the listener's queue, behind this one.
func (c *Client) admit(ctx context.Context, l *listener, s socket) bool {
	if !c.enter(ctx, &l.gate, l, s, "sessions_per_mapping") {
		return false
	}
	if !c.enter(ctx, &c.gate, l, s, "sessions") {
		l.gate.leave()
		return false
	}
	return true
}

func (c *Client) enter(ctx context.Context, g *gate, l *listener, s socket, limit string) bool {
	for waited := false; ; {
		entered, room := g.tryEnter()
		if entered {
			return true
		}
		if !waited {
			waited = true
			c.hits.Hit(limit)
		}
		name := l.mapping.Load().Name
		c.repeats.Warn(c.log, [2]string{name, limit}, "connections wait: limit reached",
			slog.String("mapping", name), slog.String("limit", limit))
		select {
		case <-room:
		case p := <-s.probe:
			close(p)
		case <-ctx.Done():
			return false
		}
	}
}

// carry takes one connection of P1 to its end. An idle connection waits in here, so what takes much of the stack is done in
// calls that return.
func (c *Client) carry(l *listener, conn net.Conn) {
	if f := c.begin(l, conn); f != nil {
		f.Carry(context.Background()) // where carrying ends, so does Run of the sessions, which resets them
		c.account(f)
	}
	l.gate.leave()
	c.gate.leave()
}

//go:noinline
func (c *Client) account(f *session.Forwarding) { c.ledger.Record(f.Summary()) }

// begin makes the session of one connection of P1, once there is a link.
func (c *Client) begin(l *listener, conn net.Conn) *session.Forwarding {
	m := l.mapping.Load()
	request := session.Request{
		Mapping:       m.Name,
		Server:        m.Server,
		Target:        m.Target.String(),
		Source:        source(l, conn),
		ResumeTimeout: m.ResumeTimeout,
		Origin:        c.place.Mark(conn),
	}
	stream, ok := conn.(session.Conn)
	if !ok {
		panic(fmt.Sprintf("internal error: a listener gave a %T, which can't be half-closed", conn))
	}
	accepted := time.Now()
	request.Opened = func() {
		if c.config.Opened != nil {
			c.config.Opened(request.Mapping, time.Since(accepted))
		}
	}
	if end, reason := c.awaitLink(l); end != "" {
		abort(conn)
		c.ledger.Record(session.Summary{
			Info: session.Info{
				ID:      session.NewToken().ConnectionID(),
				Mapping: request.Mapping, Server: request.Server, Target: request.Target, Source: request.Source,
				State: session.Closed, Opened: accepted,
			},
			Status: wire.StatusNotConnected, Text: reason, End: end, Duration: time.Since(accepted),
		})
		return nil
	}
	return c.sessions.Begin(stream, request)
}

// awaitLink waits for a live link, hold_timeout at most. It returns no end when
// there is one.
func (c *Client) awaitLink(l *listener) (end session.End, reason string) {
	changed := c.relays.Changed()
	if len(c.relays.Live()) > 0 {
		return "", ""
	}
	limits := &c.settings.Load().Limits
	if entered, _ := c.held.tryEnter(); !entered {
		c.hits.Hit("held_connections")
		return session.EndUnattached, fmt.Sprintf("%d connections wait for a relay already: %s", limits.HeldConnections, c.whyNoLink())
	}
	defer c.held.leave()
	patience := time.NewTimer(limits.HoldTimeout)
	defer patience.Stop()
	for {
		select {
		case <-changed:
		case <-patience.C:
			return session.EndUnattached, fmt.Sprintf("no relay connected within %v: %s", limits.HoldTimeout, c.whyNoLink())
		case <-l.cut:
			return session.EndRemoved, ""
		case <-c.carrying.Done():
			return session.EndStopped, ""
		}
		changed = c.relays.Changed()
		if len(c.relays.Live()) > 0 {
			return "", ""
		}
	}
}

// whyNoLink says for each relay what keeps it from being connected.
func (c *Client) whyNoLink() string {
	var reasons []string
	for _, r := range c.relays.States() {
		if r.LastError != "" {
			reasons = append(reasons, r.Address+": "+r.LastError)
		}
	}
	if len(reasons) == 0 {
		return "they are being dialled"
	}
	return strings.Join(reasons, "; ")
}

// source is P1's address. A program on a Unix socket hasn't one: it is the socket's.
func source(l *listener, conn net.Conn) string {
	if addr, ok := conn.RemoteAddr().(*net.UnixAddr); ok && (addr == nil || addr.Name == "" || addr.Name == "@") {
		return l.at.String()
	}
	return conn.RemoteAddr().String()
}

// abort closes a connection so that its peer sees a reset.
func abort(conn net.Conn) {
	if l, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = conn.Close()
}

// acceptHint says what to do about a failed accept.
func acceptHint(err error) string {
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return err.Error() + ": raise LimitNOFILE of the service (ulimit -n), or lower limits.sessions"
	}
	return err.Error()
}
