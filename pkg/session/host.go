package session

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/wire"
)

// Limits bound what sessions take of this process. The zero value of each
// field means its default.
type Limits struct {
	// WindowBudget is what all sessions together may promise their peers above
	// the floor of 64 KiB for each direction, in bytes. 256 MiB. One remote peer
	// has half of it at most (see budget).
	WindowBudget int64
	// RetainedBudget is what all sessions together may keep for
	// retransmission above the same floor, in bytes. 256 MiB. One remote peer
	// has half of it at most.
	RetainedBudget int64
	// MaxWindow bounds what is under way in each direction of one session, in bytes,
	// whatever its peer allows: 64 KiB to 16 MiB, which fills 1 Gbit/s at 130 ms. 16 MiB.
	MaxWindow int
	// LinkQuota bounds what is on its way over one link towards one remote
	// peer, in bytes; small messages may exceed it by a quarter. It is a quarter of the largest connection window of a link. It begins
	// with a quarter of the smallest, and grows with what arrives. 8 MiB.
	LinkQuota int64
	// Sessions bounds the sessions of this process. 65,536.
	Sessions int
	// SessionsPerPeer bounds those of one client, at the server. 16,384.
	SessionsPerPeer int
	// DetachedPerPeer bounds those of one client that wait for a stream, at the
	// server. 4,096.
	DetachedPerPeer int
	// Tombstones bounds what the server remembers of ended sessions. 65,536.
	Tombstones int
	// OpenTimeout is how long P2 waits for a session to open; an attempt without
	// an answer has half of it. 30 seconds.
	OpenTimeout time.Duration
	// DialTimeout is how long P4 waits for P5. 10 seconds.
	DialTimeout time.Duration
}

func (l Limits) withDefaults() Limits {
	orDefault(&l.WindowBudget, 256<<20)
	orDefault(&l.RetainedBudget, 256<<20)
	orDefault(&l.MaxWindow, wire.MaxWindow)
	orDefault(&l.LinkQuota, 8<<20)
	orDefault(&l.Sessions, 65536)
	orDefault(&l.SessionsPerPeer, 16384)
	orDefault(&l.DetachedPerPeer, 4096)
	orDefault(&l.Tombstones, 65536)
	orDefault(&l.OpenTimeout, 30*time.Second)
	orDefault(&l.DialTimeout, 10*time.Second)
	l.MaxWindow = max(wire.InitialWindow, min(l.MaxWindow, wire.MaxWindow))
	return l
}

func orDefault[T int | int64 | time.Duration](value *T, fallback T) {
	if *value <= 0 {
		*value = fallback
	}
}

// Memory tells how the budgets stand, in bytes.
type Memory struct {
	Promised, PromisedLimit int64 // windows above the floor
	Retained, RetainedLimit int64 // kept for retransmission above the floor
	// Short are the peers whose connections had to do with the floor within the last minute.
	Short []Shortage
}

// The budgets, as the config names them.
const (
	limitWindows  = "session_memory"
	limitRetained = "retained_memory"
)

// A host is what the sessions of a process share: budgets, and the sweep over
// those that were busy of late.
type host struct {
	log       *slog.Logger
	notices   notices
	clock     awake.Clock // whose time the time-outs of sessions are in
	lines     lines
	all       func() []*session // of a client, which moves them; nil at a server
	quotas    quotas
	paths     paths
	windows   budget
	retained  budget
	maxWindow atomic.Uint64
	limitHit  func(limit string) // may be nil
	short     func(Shortage)     // may be nil

	// The sweep visits warm sessions alone, and sleeps while there is none.
	mu     sync.Mutex
	warm   map[*session]struct{}
	tepid  map[*session]struct{} // those for which little is to be done: every tenth sweep visits them
	warmed chan struct{}         // capacity 1
}

func newHost(log *slog.Logger, l Limits, limitHit func(string), short func(Shortage)) *host {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &host{
		log:      log,
		notices:  notices{log: log},
		quotas:   quotas{most: l.LinkQuota},
		windows:  budget{name: limitWindows},
		retained: budget{name: limitRetained},
		limitHit: limitHit,
		short:    short,
		warm:     make(map[*session]struct{}),
		tepid:    make(map[*session]struct{}),
		warmed:   make(chan struct{}, 1),
	}
	h.limit(l)
	return h
}

// limit changes the budgets. What is taken above a lower one stays until it is
// given back.
func (h *host) limit(l Limits) {
	h.windows.setLimit(l.WindowBudget)
	h.retained.setLimit(l.RetainedBudget)
	h.maxWindow.Store(uint64(l.MaxWindow))
}

func (h *host) memory() (m Memory) {
	now := time.Now()
	m.Promised, m.PromisedLimit = h.windows.state()
	m.Retained, m.RetainedLimit = h.retained.state()
	m.Short = append(h.windows.shortages(now), h.retained.shortages(now)...)
	return m
}

const (
	// sweepInterval is how long the acknowledgement of an end waits for data to ride on.
	sweepInterval = 100 * time.Millisecond
	// ackPatience is how long that of data does, when no more comes: there is room for more, or it would have been sent. Where
	// a thousand send, most are silent for longer than sweepInterval before their turn comes again.
	ackPatience = 500 * time.Millisecond
	// busyFor is how long after its last data a stream is watched for a dead
	// path (PROTOCOL.md, section 6).
	busyFor = 10 * time.Second
	// silenceBeforePing and minPongWait are from there too.
	silenceBeforePing = time.Second
	minPongWait       = time.Second
	// idleBeforeYield is when a sender gives back its window above the floor
	// (section 5, rule 3).
	idleBeforeYield = 30 * time.Second
)

// sweep visits the warm sessions until ctx is done.
func (h *host) sweep(ctx context.Context) {
	for {
		select {
		case <-h.warmed:
		case <-ctx.Done():
			return
		}
		h.sweepWhileWarm(ctx)
	}
}

func (h *host) sweepWhileWarm(ctx context.Context) {
	h.clock.Hold()
	defer h.clock.Release()
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	var visit []*session
	var lines []*line
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		at := h.clock.Now()
		wanted := false
		lines = h.lines.all(lines[:0])
		for _, l := range lines {
			dead := l.judge(at)
			if h.all == nil {
				continue // who accepts sessions moves none
			}
			if dead {
				h.leave(l)
			}
			wanted = wanted || l.wanted
		}
		clear(lines)
		h.mu.Lock()
		visit = visit[:0]
		for s := range h.warm {
			visit = append(visit, s)
		}
		rest := len(h.tepid)
		if n%10 == 0 || wanted {
			for s := range h.tepid {
				visit = append(visit, s)
			}
		}
		h.mu.Unlock()
		if len(visit)+rest == 0 {
			return
		}
		now := time.Now()
		for _, s := range visit {
			s.sweep(now, at)
		}
		clear(visit)
	}
}

// leave makes all sessions go elsewhere whose path is dead.
func (h *host) leave(l *line) {
	for _, s := range h.all() {
		s.mu.Lock()
		if s.line == l && s.info.State != Opening {
			s.pingDue, s.pingSince, s.pingSent = false, time.Time{}, time.Time{}
			s.moveLocked(deadPath)
		}
		s.mu.Unlock()
	}
}

// warmLocked makes the sweep visit s.
func (s *session) warmLocked() {
	if s.warm && !s.tepid || s.closed {
		return
	}
	s.warm, s.tepid = true, false
	h := s.host
	h.mu.Lock()
	h.warm[s] = struct{}{}
	delete(h.tepid, s)
	h.mu.Unlock()
	select {
	case h.warmed <- struct{}{}:
	default:
	}
}

// tepidLocked makes the sweep visit s less often.
func (s *session) tepidLocked() {
	if !s.warm || s.tepid {
		return
	}
	s.tepid = true
	h := s.host
	h.mu.Lock()
	delete(h.warm, s)
	h.tepid[s] = struct{}{}
	h.mu.Unlock()
}

// cool makes the sweep forget s, whose lock the caller holds.
func (h *host) cool(s *session) {
	if !s.warm {
		return
	}
	s.warm, s.tepid = false, false
	h.mu.Lock()
	delete(h.warm, s)
	delete(h.tepid, s)
	h.mu.Unlock()
}

// touchLocked notes that data went by.
func (s *session) touchLocked() {
	s.lastData = time.Now()
	if s.line != nil {
		mark(&s.line.carried)
	}
	s.warmLocked()
}

// sweep does what time alone brings about. at is the process's time.
func (s *session) sweep(now time.Time, at time.Duration) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	if !s.lookLocked(now) {
		s.mu.Unlock()
		return
	}
	s.wakeReaderLocked() // whoever was refused a budget asks again
	if s.stream == nil {
		s.mu.Unlock()
		return
	}
	idle := now.Sub(s.lastData)
	if s.in.acked != s.in.ackedSaid && (s.in.fin || idle >= ackPatience && s.line.mayAcknowledge()) {
		s.ackDue = true
	}
	silent := now.Sub(s.lastIn)
	onLink := s.out.onLink() > 0
	if !s.server && s.info.State != Opening {
		s.questionLocked(now, at)
	}
	if onLink && s.pingSince.IsZero() && (silent > silenceBeforePing && s.line.mayAsk() || s.quota.asks(now)) {
		s.pingLocked(now) // has what was sent arrived? It may be far from being acknowledged
	}
	if idle > silenceBeforePing && s.restsLocked() {
		s.tepidLocked()
	}
	if idle > idleBeforeYield && s.out.sent == s.out.read && !onLink {
		if credit := s.out.limit - s.out.sent; credit > wire.InitialWindow {
			s.yield += credit - wire.InitialWindow
			s.out.limit -= credit - wire.InitialWindow
		}
		if s.mayCoolLocked() {
			s.host.cool(s)
			s.watchLocked()
			s.restLocked()
		}
	}
	s.sendLocked(false)
}

// questionLocked asks for a sign of life where the path is silent, or this session's stream.
func (s *session) questionLocked(now time.Time, at time.Duration) {
	waiting := !s.pingSince.IsZero()
	switch {
	case s.line.wanted:
		s.line.asking(at)
		if !waiting { // else it has asked already
			s.pingLocked(now)
		}
	case !waiting && now.Sub(s.lastIn) > stuckAfter && now.Sub(s.lastData) < busyFor && s.line.mayAsk():
		s.pingLocked(now)
	}
	switch {
	case !waiting || s.waitsSince == 0 || s.lastIn.After(s.pingSince):
		s.waitsSince = at
	case at-s.waitsSince > 10*s.line.patience():
		// The path carries, or it would be dead for all: it is this stream that is stuck.
		s.pingDue, s.pingSince, s.pingSent = false, time.Time{}, time.Time{}
		s.moveLocked(deadPath)
	}
}

// restsLocked reports whether nothing is under way either way.
func (s *session) restsLocked() bool {
	return s.in.acked == s.in.ackedSaid && s.in.queue.empty() && s.out.onLink() == 0 && s.out.sent == s.out.read &&
		s.pingSince.IsZero() && s.mayCoolLocked()
}

// moveLocked makes the frame reader leave its stream, at P2.
func (s *session) moveLocked(why string) {
	if s.stream == nil || s.moving != "" || s.closed || s.reset != nil {
		return
	}
	s.moving = why
	_ = s.stream.SetReadDeadline(longAgo)
}
