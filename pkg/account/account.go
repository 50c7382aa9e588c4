// Package account keeps the books about forwarded connections at the ends of
// the chain: one log line at the end of each, the same words at P2 and at P4,
// and counters. What repeats is summed up: a target that is down for a night
// is a handful of lines.
//
//	ledger := &account.Ledger{Role: "client", Logger: logger}
//	defer ledger.Close()
//	ledger.Enter(sessions.Forward(ctx, conn, request))
package account

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"ptthqd/pkg/pace"
	"ptthqd/pkg/session"
	"ptthqd/pkg/wire"
)

// A Ledger logs and counts the sessions that have ended. Its methods may be
// called from any goroutine.
type Ledger struct {
	Role   string // this process's role, an attribute of each line
	ID     string // this node's: whose doing it is where a session names nobody else
	Logger *slog.Logger

	repeats Repeats
	lines   pace.Pace // by client, or by mapping at a client

	mu     sync.Mutex
	counts Counts
}

// Counts is what a Ledger has counted since the process began.
type Counts struct {
	Tally
	Mappings map[string]Tally // the same for each mapping, at a client
}

// A Tally sums up sessions that have ended.
type Tally struct {
	Status  map[wire.Status]uint64 // sessions by the outcome of their opening
	Ends    map[session.End]uint64 // sessions by how they ended
	Up      uint64                 // bytes from P1 towards P5, of ended sessions
	Down    uint64                 // bytes from P5 towards P1, of ended sessions
	Resumes uint64                 // of ended sessions
}

// refusal is what makes refusals equal: they differ in P1's address and in
// their connection ID alone.
type refusal struct {
	mapping, client, server, target string
	status                          wire.Status
	end                             session.End
	node                            string
}

// Enter logs and counts a session that has ended. One that was open is one line:
// at info, or at warn where it failed. Of many that are refused alike
// only the first is a line at warn: the others are lines at debug, and how many
// there were is told later. So are lines at debug that one client, or mapping,
// makes faster than anybody reads.
func (l *Ledger) Enter(s session.Summary) {
	l.count(s)
	switch s.End {
	case session.EndClosed, session.EndResetByP1, session.EndResetByP5, session.EndStopped, session.EndRemoved:
		l.ended(slog.LevelInfo, "connection ended", s)
	case session.EndExpired, session.EndRevoked, session.EndRestarted, session.EndProtocol:
		l.ended(slog.LevelWarn, "connection failed", s)
	case session.EndRefused, session.EndUnattached:
		l.refused(s)
	}
}

func (l *Ledger) ended(level slog.Level, message string, s session.Summary) {
	level, leftOut := l.lines.Level(cmp.Or(s.Mapping, s.Client), level)
	l.log(level, message, s, pace.LeftOut(leftOut))
}

func (l *Ledger) refused(s session.Summary) {
	const message = "connection refused"
	key := refusal{s.Mapping, s.Client, s.Server, s.Target, s.Status, s.End, s.Node}
	first := l.repeats.Event(key, func(n int, in time.Duration) {
		l.log(slog.LevelWarn, message, s, slog.Int("more", n), slog.Duration("in", in))
	})
	if !first {
		l.log(slog.LevelDebug, message, s)
		return
	}
	l.log(slog.LevelWarn, message, s)
}

// log writes the line of one session. The keys are the same at both ends; what
// an end doesn't know is left out.
func (l *Ledger) log(level slog.Level, message string, s session.Summary, more ...slog.Attr) {
	if !l.Logger.Enabled(context.Background(), level) {
		return
	}
	attrs := make([]slog.Attr, 0, 20)
	for _, a := range [...]struct{ key, value string }{
		{"role", l.Role},
		{"connection", s.ID},
		{"mapping", s.Mapping},
		{"client", cmp.Or(s.Client, l.ID)}, // a client's sessions do not name it
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
	attrs = append(attrs, slog.String("end", string(s.End)), slog.Uint64("code", uint64(s.Status)))
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

func (l *Ledger) count(s session.Summary) {
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

func (t *Tally) add(s session.Summary) {
	if t.Status == nil {
		t.Status = make(map[wire.Status]uint64)
		t.Ends = make(map[session.End]uint64)
	}
	t.Status[s.Status]++
	t.Ends[s.End]++
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
	c := Counts{Tally: l.counts.Tally.clone(), Mappings: make(map[string]Tally, len(l.counts.Mappings))}
	for name, of := range l.counts.Mappings {
		c.Mappings[name] = of.clone()
	}
	return c
}

// Close tells what had been summed up so far.
func (l *Ledger) Close() { l.repeats.Close() }
