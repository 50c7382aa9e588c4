// Package ledger keeps the books of the connections that have ended, for a client or a server.
//
// Each connection gets one line of the log when it ends, with the same attributes at both ends of
// the chain, and is added to the counters. Lines that repeat are summed up by pkg/quiet: a target
// that is down for a night makes a handful of lines.
//
//	books := &ledger.Ledger{Role: "client", ID: "laptop", Logger: logger}
//	defer books.Close()
//	books.Record(sessions.Forward(ctx, conn, request))
//	books.Counts() // for status and metrics
//
// The package is no part of a role because client and server both use it, and roles do not import
// each other. A Ledger owns nothing but its counters; several goroutines may use it.
package ledger

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"ptthqd/pkg/budget"
	"ptthqd/pkg/quiet"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// Ledger logs and counts the sessions that have ended. Set Role, ID and Logger before use.
type Ledger struct {
	Role   string // this process's role, an attribute of each line
	ID     string // this node's ID: it ended a session that names no other node
	Logger *slog.Logger

	refusals quiet.Repeats
	lines    quiet.Pace // by client, or by mapping at a client

	mu     sync.Mutex
	counts Counts
}

// Counts is what a Ledger has counted since the process began.
type Counts struct {
	Tally
	Mappings map[string]Tally // by the mapping's name; only at a client
}

// Tally sums up sessions that have ended.
type Tally struct {
	Status  map[wire.Status]uint64     // sessions by the outcome of their opening
	Ends    map[session.Outcome]uint64 // sessions by how they ended
	Up      uint64                     // bytes from P1 towards P5, of ended sessions
	Down    uint64                     // bytes from P5 towards P1, of ended sessions
	Resumes uint64                     // of ended sessions
}

// refusal is the key by which refusals are equal: all but P1's address and the connection ID.
type refusal struct {
	mapping, client, server, target string
	status                          wire.Status
	end                             session.Outcome
	node                            string
}

// Record logs and counts a session that has ended. A session that was open gets a line at info, or
// at warn if it failed. Of equal refusals the first gets a line at warn, and the others are summed
// up. Lines beyond what one client or mapping may cause are at debug.
func (l *Ledger) Record(s *session.Summary) {
	l.count(s)
	switch s.Outcome {
	case session.OutcomeClosed, session.OutcomeResetByP1, session.OutcomeResetByP5, session.OutcomeStopped,
		session.OutcomeRemoved:
		l.ended(slog.LevelInfo, "connection ended", s)
	case session.OutcomeExpired, session.OutcomeRevoked, session.OutcomeRestarted, session.OutcomeProtocol:
		l.ended(slog.LevelWarn, "connection failed", s)
	case session.OutcomeRefused, session.OutcomeUnattached:
		l.refused(s)
	}
}

func (l *Ledger) ended(level slog.Level, message string, s *session.Summary) {
	level, leftOut := l.lines.Level(cmp.Or(s.Mapping, s.Client), level)
	l.log(level, message, s, quiet.LeftOut(leftOut))
}

func (l *Ledger) refused(s *session.Summary) {
	const message = "connection refused"
	key := refusal{s.Mapping, s.Client, s.Server, s.Target, s.Status, s.Outcome, s.Node}
	level := slog.LevelDebug
	if l.refusals.Event(key, func(n int, in time.Duration) {
		l.log(slog.LevelWarn, message, s, slog.Int("more", n), slog.Duration("in", in))
	}) {
		level = slog.LevelWarn
	}
	l.log(level, message, s)
}

// log writes the line of one session. The keys are the same at both ends; an attribute that this
// end does not know is left out.
func (l *Ledger) log(level slog.Level, message string, s *session.Summary, more ...slog.Attr) {
	if !l.Logger.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 20)
	for _, a := range [...]struct{ key, value string }{
		{"role", l.Role},
		{"connection", s.ID},
		{"mapping", s.Mapping},
		{"client", cmp.Or(s.Client, l.ID)}, // at a client, sessions have no Client
		{"source", s.Source},
		{"server", s.Server},
		{"target", s.Target},
		{"peer", s.Peer},
		{"relay", s.Relay},
	} {
		if a.value != "" {
			attrs = append(attrs, slog.String(a.key, a.value))
		}
	}
	attrs = append(attrs, slog.String("end", string(s.Outcome)), slog.Uint64("code", uint64(s.Status)))
	if s.Text != "" {
		attrs = append(attrs, slog.String("reason", s.Text))
	}
	if by := cmp.Or(s.Node, l.ID); by != "" {
		attrs = append(attrs, slog.String("by", by))
	}
	attrs = append(attrs,
		slog.Duration("duration", s.Duration.Round(time.Millisecond)),
		slog.Int64("bytes_up", s.Up), slog.Int64("bytes_down", s.Down),
		slog.Int("resumes", s.Resumes))
	l.Logger.LogAttrs(context.Background(), level, message, append(attrs, more...)...)
}

func (l *Ledger) count(s *session.Summary) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.add(s)
	if s.Mapping == "" {
		return
	}
	if l.counts.Mappings == nil {
		l.counts.Mappings = make(map[string]Tally)
	}
	of := l.counts.Mappings[s.Mapping]
	of.add(s)
	l.counts.Mappings[s.Mapping] = of
}

func (t *Tally) add(s *session.Summary) {
	if t.Status == nil {
		t.Status = make(map[wire.Status]uint64)
		t.Ends = make(map[session.Outcome]uint64)
	}
	t.Status[s.Status]++
	t.Ends[s.Outcome]++
	t.Up += uint64(max(s.Up, 0))
	t.Down += uint64(max(s.Down, 0))
	t.Resumes += uint64(max(s.Resumes, 0))
}

func (t Tally) clone() Tally {
	t.Status, t.Ends = maps.Clone(t.Status), maps.Clone(t.Ends)
	return t
}

// Counts returns a copy of the counters.
func (l *Ledger) Counts() Counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := Counts{
		Tally:    l.counts.Tally.clone(),
		Mappings: make(map[string]Tally, len(l.counts.Mappings)),
	}
	for name, of := range l.counts.Mappings {
		c.Mappings[name] = of.clone()
	}
	return c
}

// Close logs the refusals that are counted and not yet logged.
func (l *Ledger) Close() { l.refusals.Close() }

// WarnShortage logs that a peer has used up its share of a memory budget. Equal shortages are
// summed up in r.
func WarnShortage(log *slog.Logger, r *quiet.Repeats, s budget.Shortage) {
	r.Warn(log, [2]string{s.Budget, s.Peer}, "connections slow: limit reached",
		slog.String("limit", s.Budget), slog.String("peer", s.Peer),
		slog.Int64("held", s.Held), slog.Int64("free", s.Free))
}
