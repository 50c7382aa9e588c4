package session

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"ptthqd/pkg/awake"
	"ptthqd/pkg/budget"
	"ptthqd/pkg/session/internal/share"
	"ptthqd/pkg/session/internal/window"
	"ptthqd/pkg/wire"
)

// Limits bound what sessions take of this process. A field that is 0 has its default.
type Limits struct {
	// WindowBudget is what all sessions together may promise their peers above the floor of 64 KiB
	// for each direction, in bytes. One remote peer has half of it at most (see package budget).
	// Default: 256 MiB.
	WindowBudget int64
	// RetainedBudget is what all sessions together may keep for retransmission above the floor of
	// 64 KiB, in bytes. One remote peer has half of it at most. Default: 256 MiB.
	RetainedBudget int64
	// MaxWindow bounds what is in flight in each direction of one session, in bytes, whatever its
	// peer allows. It is 64 KiB to 16 MiB; 16 MiB fill 1 Gbit/s at 130 ms. Default: 16 MiB.
	MaxWindow int
	// LinkQuota bounds what is in flight over one link towards one remote peer, in bytes; small
	// messages may exceed it by a quarter. A quota begins with 256 KiB, a quarter of a link's first
	// connection window, and grows with what arrives. The default, 8 MiB, is a quarter of the
	// largest such window.
	LinkQuota int64
	// Sessions bounds the sessions of this process. Default: 65,536.
	Sessions int
	// SessionsPerPeer bounds the sessions of one client, at the server. Default: 16,384.
	SessionsPerPeer int
	// DetachedPerPeer bounds the detached sessions of one client, at the server. Default: 4,096.
	DetachedPerPeer int
	// Tombstones bounds the tombstones at the server. Default: 65,536.
	Tombstones int
	// OpenTimeout is how long P2 waits for a session to open; an attempt without an answer has half
	// of it. Default: 30 seconds.
	OpenTimeout time.Duration
	// DialTimeout is how long P4 waits for P5. Default: 10 seconds.
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

// Memory is the state of the memory budgets, in bytes.
type Memory struct {
	Promised, PromisedLimit int64 // windows above the floor
	Retained, RetainedLimit int64 // kept for retransmission above the floor
	// Short lists the peers whose share of a budget was used up within the last minute.
	Short []budget.Shortage
}

// The budgets, as the config names them.
const (
	limitWindows  = "session_memory"
	limitRetained = "retained_memory"
)

// A shared is what the sessions of a Client or Server have together: budgets, quotas, lines, and
// the sweep over the sessions that were busy of late.
type shared struct {
	log       *slog.Logger
	notices   notices
	clock     awake.Clock // process time, in which timeouts are
	lines     lines
	all       func() []*session // a client's sessions, which may move; nil at a server
	links     share.Links
	paths     window.Paths
	windows   *budget.Budget
	retained  *budget.Budget
	maxWindow atomic.Uint64
	limitHit  func(limit string)    // may be nil
	short     func(budget.Shortage) // may be nil

	// The sweep visits warm sessions alone, and sleeps while there is none.
	mu     sync.Mutex
	warm   map[*session]struct{}
	tepid  map[*session]struct{} // warm sessions with little to do: every tenth sweep visits them
	warmed chan struct{}         // capacity 1
}

func newShared(log *slog.Logger, l Limits, limitHit func(string), short func(budget.Shortage)) *shared {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	h := &shared{
		log:      log,
		notices:  notices{log: log},
		links:    share.Links{Most: l.LinkQuota},
		windows:  budget.New(limitWindows, l.WindowBudget),
		retained: budget.New(limitRetained, l.RetainedBudget),
		limitHit: limitHit,
		short:    short,
		warm:     make(map[*session]struct{}),
		tepid:    make(map[*session]struct{}),
		warmed:   make(chan struct{}, 1),
	}
	h.limit(l)
	return h
}

// limit changes the budgets. What is held above a lower one stays until it is given back.
func (h *shared) limit(l Limits) {
	h.windows.SetLimit(l.WindowBudget)
	h.retained.SetLimit(l.RetainedBudget)
	h.maxWindow.Store(uint64(l.MaxWindow))
}

func (h *shared) memory() (m Memory) {
	now := time.Now()
	m.Promised, m.PromisedLimit = h.windows.State()
	m.Retained, m.RetainedLimit = h.retained.State()
	m.Short = append(h.windows.Shortages(now), h.retained.Shortages(now)...)
	return m
}
