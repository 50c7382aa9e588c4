package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"ptthqd/pkg/session"
	"ptthqd/pkg/spare"
)

// acceptPauseFirst and acceptPauseMost bound the pause after a failed accept, which doubles with
// each failure in a row. Without a pause, a process that has no file descriptors left would spin.
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

// pause ends the accept loops of l and leaves its sockets open. It closes a socket whose Accept
// cannot be woken otherwise.
func (l *listener) pause() {
	l.stop()
	for _, s := range l.sockets {
		if s.setDeadline(time.Now()) != nil {
			_ = s.Close()
		}
	}
	l.accepts.Wait()
}

// finish closes l. When it returns, no further connection is accepted; accepted ones go on.
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
			if !c.await(ctx, l.intake, s.probe) {
				abort(conn)
				return
			}
			last := c.isLast(conn)
			c.conns.Go(func() { c.carry(l.intake, halfCloser(conn), c.request(l, conn)) })
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

// request returns where a connection goes, by the listener's mapping of this moment.
func (c *Client) request(l *listener, conn net.Conn) *session.Request {
	m := l.mapping.Load()
	r := &session.Request{
		Mapping:       m.Name,
		Server:        m.Server,
		Target:        m.Target.String(),
		Source:        source(l, conn),
		ResumeTimeout: m.ResumeTimeout,
		Origin:        c.place.Mark(conn),
	}
	if c.config.Opened != nil {
		began := time.Now()
		r.Opened = func() { c.config.Opened(r.Mapping, time.Since(began)) }
	}
	return r
}

// source returns P1's address. A program on a Unix socket has none: it gets the listener's.
func source(l *listener, conn net.Conn) string {
	addr, ok := conn.RemoteAddr().(*net.UnixAddr)
	if ok && (addr == nil || addr.Name == "" || addr.Name == "@") {
		return l.at.String()
	}
	return conn.RemoteAddr().String()
}

func halfCloser(conn net.Conn) session.Conn {
	stream, ok := conn.(session.Conn)
	if !ok {
		panic(fmt.Sprintf("internal error: a listener gave a %T, which can't be half-closed", conn))
	}
	return stream
}

// isLast reports whether conn has used up the descriptors that connections may take. The rest,
// limits.spare_descriptors, is for links, logs and reloads.
func (c *Client) isLast(conn net.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := socket.SyscallConn()
	return err == nil && spare.Reached(raw, c.settings.Load().Limits.SpareDescriptors)
}

// descriptorsEvery is the interval at which awaitDescriptors looks for free descriptors.
const descriptorsEvery = 250 * time.Millisecond

const descriptorsHint = "raise LimitNOFILE of the service (ulimit -n), or lower limits.sessions"

// awaitDescriptors waits until descriptors are free again. Meanwhile new connections stay in the
// listener's queue. It reports false if ctx is done.
func (c *Client) awaitDescriptors(ctx context.Context, s socket) bool {
	const limit = "spare_descriptors"
	c.hits.Hit(limit)
	c.repeats.Warn(c.log, [2]string{s.name, limit}, "connections wait: few file descriptors are left",
		slog.String("listener", s.name), slog.String("limit", limit),
		slog.String("hint", descriptorsHint))
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

// Alive reports whether each accept loop and each table answers: it waits until all have answered,
// or ctx is done. A watchdog calls it now and then.
func (c *Client) Alive(ctx context.Context) error {
	_ = c.Snapshot() // takes every lock
	c.mu.Lock()      // no listener is closed meanwhile
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

// ask wakes the accept loop of a socket and waits for its answer. A loop that is about to end,
// since ending is closed, need not answer.
func (s socket) ask(ctx context.Context, ending <-chan struct{}) error {
	answered := make(chan struct{})
	select {
	case <-s.probe: // an earlier ask has given up
	default:
	}
	s.probe <- answered
	switch err := s.setDeadline(time.Now()); {
	case errors.Is(err, errors.ErrUnsupported):
		return nil
	case err != nil:
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
	_ = s.setDeadline(time.Time{})
	select {
	case p := <-s.probe:
		close(p)
	default:
	}
}

// setDeadline sets the deadline of Accept, or returns errors.ErrUnsupported.
func (s socket) setDeadline(t time.Time) error {
	d, ok := s.Listener.(interface{ SetDeadline(t time.Time) error })
	if !ok {
		return errors.ErrUnsupported
	}
	return d.SetDeadline(t)
}

// acceptFailed logs a failed accept. Equal failures are summed up.
func (c *Client) acceptFailed(s socket, err error) {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	text := err.Error()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		text += ": " + descriptorsHint
	}
	c.repeats.Warn(c.log, s.name+text, "connections can't be accepted",
		slog.String("listener", s.name), slog.String("error", text))
}
