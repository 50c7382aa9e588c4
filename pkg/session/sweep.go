package session

import (
	"context"
	"time"

	"ptthqd/pkg/wire"
)

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
		if s.at != nil && s.at.line == l && s.info.State != Opening {
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
	if s.at != nil {
		mark(&s.at.line.carried)
	}
	s.warmLocked()
}

// sweep does what time alone brings about. ran is the process time.
func (s *session) sweep(now time.Time, ran time.Duration) {
	s.mu.Lock()
	if s.closed || !s.lookLocked(now) {
		s.mu.Unlock()
		return
	}
	s.wakeReaderLocked() // a pump that was refused memory asks again
	at := s.at
	if at == nil {
		s.mu.Unlock()
		return
	}
	idle := now.Sub(s.lastData)
	if s.in.acked != at.ackedSaid && (s.in.fin || idle >= ackPatience && at.line.mayAcknowledge()) {
		at.ackDue = true
	}
	silent := now.Sub(at.lastIn)
	inFlight := s.inFlightLocked() > 0
	if !s.server && s.info.State != Opening {
		s.questionLocked(now, ran)
	}
	if inFlight && at.pingSince.IsZero() && (silent > silenceBeforePing && at.line.mayAsk() || at.quota.asks(now)) {
		s.pingLocked(now) // has what was sent arrived? Its acknowledgement may be far off
	}
	if idle > silenceBeforePing && s.restsLocked() {
		s.tepidLocked()
	}
	if idle > idleBeforeYield && s.out.sent == s.out.read && !inFlight {
		if credit := s.out.limit - s.out.sent; credit > wire.InitialWindow {
			at.yield += credit - wire.InitialWindow
			s.out.limit -= credit - wire.InitialWindow
		}
		if s.mayCoolLocked() {
			s.host.cool(s)
			s.watchLocked()
		}
	}
	s.sendUnlock(false)
}

// questionLocked asks for a sign of life where the path is silent, or where this session's stream is.
func (s *session) questionLocked(now time.Time, ran time.Duration) {
	at := s.at
	waiting := !at.pingSince.IsZero()
	switch {
	case at.line.wanted:
		at.line.asking(ran)
		if !waiting { // else it has asked already
			s.pingLocked(now)
		}
	case !waiting && now.Sub(at.lastIn) > stuckAfter && now.Sub(s.lastData) < busyFor && at.line.mayAsk():
		s.pingLocked(now)
	}
	switch {
	case !waiting || at.waitsSince == 0 || at.lastIn.After(at.pingSince):
		at.waitsSince = ran
	case ran-at.waitsSince > 10*at.line.patience():
		// The path carries, or it would be dead for all: it is this stream that is stuck.
		s.moveLocked(deadPath)
	}
}

// restsLocked reports whether nothing is under way either way.
func (s *session) restsLocked() bool {
	return s.in.acked == s.at.ackedSaid && s.in.queue.empty() && s.inFlightLocked() == 0 && s.out.sent == s.out.read &&
		s.at.pingSince.IsZero() && s.mayCoolLocked()
}

// moveLocked makes the frame reader leave its stream, at P2.
func (s *session) moveLocked(why string) {
	if s.at == nil || s.at.moving != "" || s.closed || s.ending.reset() {
		return
	}
	if why == deadPath {
		s.at.forgetPing()
	}
	s.at.moving = why
	_ = s.at.stream.SetReadDeadline(longAgo)
}
