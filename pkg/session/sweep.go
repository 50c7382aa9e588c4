package session

import (
	"context"
	"time"

	"ptthqd/pkg/wire"
)

const (
	// sweepInterval is the time between two sweeps, and so how long the acknowledgement of an end
	// waits for data to ride on.
	sweepInterval = 100 * time.Millisecond
	// ackPatience is how long the acknowledgement of data waits for data to ride on, once no more
	// comes. Nobody waits for it: the peer still has room, or the acknowledgement would have been
	// sent. Where a thousand sessions send, most are silent for longer than sweepInterval between
	// two turns.
	ackPatience = 500 * time.Millisecond
	// busyFor is how long after its last data a stream is watched for a dead path (PROTOCOL.md,
	// section 6).
	busyFor = 10 * time.Second
	// silenceBeforePing is how long a path must be silent before a session asks for a sign of life,
	// and minPongWait how long it then waits at least (PROTOCOL.md, section 6).
	silenceBeforePing = time.Second
	minPongWait       = time.Second
	// idleBeforeYield is how long a sender must be idle to give back its window above the floor
	// (PROTOCOL.md, 5.3).
	idleBeforeYield = 30 * time.Second
)

// sweep visits the warm sessions until ctx is done.
func (h *shared) sweep(ctx context.Context) {
	for {
		select {
		case <-h.warmed:
		case <-ctx.Done():
			return
		}
		h.sweepWhileWarm(ctx)
	}
}

func (h *shared) sweepWhileWarm(ctx context.Context) {
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
				continue // a server moves no sessions
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

// leave makes all sessions of a line move, since its path is dead.
func (h *shared) leave(l *line) {
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
	h := s.shared
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
	h := s.shared
	h.mu.Lock()
	delete(h.warm, s)
	h.tepid[s] = struct{}{}
	h.mu.Unlock()
}

// cool makes the sweep forget s, whose lock the caller holds.
func (h *shared) cool(s *session) {
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

// sweep does for the session what time alone brings about. ran is the process time.
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
	if inFlight && at.pingSince.IsZero() && (silent > silenceBeforePing && at.line.mayAsk() || at.claim.Asks(now)) {
		s.pingLocked(now) // to learn what has arrived: an acknowledgement may come much later
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
			s.shared.cool(s)
			s.watchLocked()
		}
	}
	s.sendUnlock(false)
}

// questionLocked asks for a sign of life if the path is silent, or the session's stream is. If the
// stream gives none for 10 times the path's patience, the session moves.
func (s *session) questionLocked(now time.Time, ran time.Duration) {
	at := s.at
	waiting := !at.pingSince.IsZero()
	switch {
	case at.line.wanted:
		at.line.asking(ran)
		if !waiting { // else the session has asked already
			s.pingLocked(now)
		}
	case !waiting && now.Sub(at.lastIn) > stuckAfter && now.Sub(s.lastData) < busyFor && at.line.mayAsk():
		s.pingLocked(now)
	}
	switch {
	case !waiting || at.waitsSince == 0 || at.lastIn.After(at.pingSince):
		at.waitsSince = ran
	case ran-at.waitsSince > 10*at.line.patience():
		// The path is alive, or all its sessions would have moved: this stream is stuck.
		s.moveLocked(deadPath)
	}
}

// restsLocked reports whether nothing is in flight in either direction.
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
