package client

import (
	"context"
	"fmt"
	"log/slog"
	"maps"

	"ptthqd/pkg/config"
	"ptthqd/pkg/session"
)

// listen binds the listeners of the first config. Those that cannot be bound become vacancies.
func (c *Client) listen(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	wanted, err := wantedListeners(c.settings.Load())
	if err != nil {
		return err
	}
	c.accepting = ctx
	for _, m := range inOrder(c.settings.Load(), wanted) {
		l, err := c.bind(ctx, m)
		if err != nil {
			c.vacateLocked(m, err)
			continue
		}
		c.openLocked(l)
	}
	return nil
}

// stopAccepting ends the accept loops. The listeners stay open: if somebody keeps the sockets (see
// Config.KeepSockets), new connections wait in their queues for the next process.
func (c *Client) stopAccepting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.accepting = nil
	for _, l := range c.listeners {
		l.pause()
	}
}

// closeListeners closes all listeners.
func (c *Client) closeListeners() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, l := range c.listeners {
		l.finish(c.config.KeepSockets)
		delete(c.listeners, at)
	}
}

// Apply puts another config in force, or fails and changes nothing. It waits until the client is
// ready. New listeners are bound first; after that nothing can fail. A listener of the old config
// that cannot be bound yet is tried once more, and does not make Apply fail.
//
// A mapping that is unchanged is not touched. A mapping with another server or target keeps its
// listener and its running connections. A mapping that is gone or disabled loses its listener; its
// connections end only if its on_remove says so.
func (c *Client) Apply(ctx context.Context, next *config.Config) error {
	select {
	case <-c.ready:
	case <-c.over:
		return errStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accepting == nil {
		return errStopped
	}
	wanted, err := wantedListeners(next)
	if err != nil {
		return err
	}
	gone, err := c.rebindLocked(ctx, inOrder(next, wanted), wanted)
	if err != nil {
		return err
	}

	old := c.settings.Load()
	for at, l := range c.listeners {
		c.remap(l, wanted[at], next.Limits.SessionsPerMapping)
	}
	for at, v := range c.vacant {
		if v.mapping = wanted[at]; v.mapping == nil {
			delete(c.vacant, at)
		}
	}
	ending := endingMappings(old, next)
	for _, l := range gone {
		if ending[l.mapping.Load().Name] {
			close(l.cut)
		}
	}
	if len(ending) > 0 {
		c.sessions.End(func(s session.Info) bool { return ending[s.Mapping] }, session.OutcomeRemoved)
	}
	c.adopt(next)
	c.fillLocked(ctx)
	return nil
}

// remap gives a listener its mapping of another config, and the limit of that mapping.
func (c *Client) remap(l *listener, m *config.Mapping, limit int) {
	before := l.mapping.Swap(m)
	l.gate.setLimit(limit)
	if m.ListenGroup != before.ListenGroup {
		if err := l.bound.SetGroup(m.ListenGroup); err != nil {
			c.log.Error("listen_group can't be changed",
				slog.String("mapping", m.Name), slog.Any("error", err))
		}
	}
	if m.ListenMode != before.ListenMode {
		if err := l.bound.SetMode(m.ListenMode); err != nil {
			c.log.Error("listen_mode can't be changed",
				slog.String("mapping", m.Name), slog.Any("error", err))
		}
	}
}

// wantedListeners returns the places to listen at, with the mapping of each.
func wantedListeners(next *config.Config) (map[config.Listen]*config.Mapping, error) {
	wanted := make(map[config.Listen]*config.Mapping)
	for i := range next.Mappings {
		m := &next.Mappings[i]
		if !m.Enabled {
			continue
		}
		if other := wanted[m.Listen]; other != nil {
			return nil, fmt.Errorf("mappings %s and %s both listen on %s: "+
				"give one another address, or disable it", other.Name, m.Name, m.Listen)
		}
		wanted[m.Listen] = m
	}
	return wanted, nil
}

// inOrder returns the wanted mappings in the config's order: of several that fail, the same one
// fails first each time.
func inOrder(next *config.Config, wanted map[config.Listen]*config.Mapping) []*config.Mapping {
	list := make([]*config.Mapping, 0, len(wanted))
	for i := range next.Mappings {
		if m := &next.Mappings[i]; wanted[m.Listen] == m {
			list = append(list, m)
		}
	}
	return list
}

// endingMappings returns the names of the mappings that are gone or disabled, and whose on_remove
// ends their connections.
func endingMappings(old, next *config.Config) map[string]bool {
	ending := make(map[string]bool)
	// The on_remove of the next config counts.
	for _, mappings := range [][]config.Mapping{old.Mappings, next.Mappings} {
		for _, m := range mappings {
			ending[m.Name] = m.OnRemove == config.OnRemoveClose
		}
	}
	for _, m := range next.Mappings {
		if m.Enabled {
			delete(ending, m.Name)
		}
	}
	maps.DeleteFunc(ending, func(_ string, closes bool) bool { return !closes })
	return ending
}

// rebindLocked makes the listeners those that are wanted, and returns the closed ones; or it fails,
// with the listeners as they were. list has the wanted mappings in order.
func (c *Client) rebindLocked(
	ctx context.Context, list []*config.Mapping, wanted map[config.Listen]*config.Mapping,
) (gone []*listener, err error) {
	// A place that overlaps a leaving listener can be bound only once that listener is closed.
	var free, blocked []*config.Mapping
	var leaving config.ListenerSet[*listener]
	for at, l := range c.listeners {
		if wanted[at] == nil {
			leaving.Add(at, l)
		}
	}
	inTheWay := make(map[*listener]bool)
	for _, m := range list {
		if c.listeners[m.Listen] != nil || c.vacant[m.Listen] != nil {
			continue
		}
		overlapping := leaving.All(m.Listen)
		if len(overlapping) == 0 {
			free = append(free, m)
			continue
		}
		blocked = append(blocked, m)
		for _, l := range overlapping {
			inTheWay[l] = true
		}
	}
	bound, err := c.bindAll(ctx, free)
	if err != nil {
		return nil, err
	}
	for l := range inTheWay {
		l.finish(false)
		delete(c.listeners, l.at)
		gone = append(gone, l)
	}
	moved, err := c.bindAll(ctx, blocked)
	if err != nil {
		for _, l := range bound {
			l.bound.Close(false)
		}
		c.restoreLocked(ctx, gone)
		return nil, err
	}
	for at, l := range c.listeners {
		if wanted[at] == nil {
			l.finish(false)
			delete(c.listeners, at)
			gone = append(gone, l)
		}
	}
	c.openLocked(append(bound, moved...)...)
	return gone, nil
}

// restoreLocked binds closed listeners again, since what they made room for could not be bound.
func (c *Client) restoreLocked(ctx context.Context, closed []*listener) {
	for _, l := range closed {
		again, err := c.bind(ctx, l.mapping.Load())
		if err != nil {
			c.vacateLocked(l.mapping.Load(), err)
			continue
		}
		c.openLocked(again)
	}
}

// bindAll binds the listeners of mappings: all of them or none.
func (c *Client) bindAll(ctx context.Context, mappings []*config.Mapping) ([]*listener, error) {
	var bound []*listener
	for _, m := range mappings {
		l, err := c.bind(ctx, m)
		if err != nil {
			for _, l := range bound {
				l.bound.Close(false)
			}
			return nil, fmt.Errorf("mapping %s: %w", m.Name, err)
		}
		bound = append(bound, l)
	}
	return bound, nil
}

// openLocked begins to accept connections on bound listeners.
func (c *Client) openLocked(bound ...*listener) {
	for _, l := range bound {
		l.gate.setLimit(c.settings.Load().Limits.SessionsPerMapping)
		c.listeners[l.at] = l
		c.start(c.accepting, l)
		c.log.Info("listening",
			slog.String("mapping", l.mapping.Load().Name), slog.String("listener", l.at.String()))
	}
}
