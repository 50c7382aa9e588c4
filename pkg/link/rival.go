package link

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"ptthqd/pkg/wire"
)

// Rivals are two processes that dial a relay with the same key. The holder of the link keeps it
// while it answers, because the sessions over the link live in that process alone. Each process
// sends its instance on the control stream. By the instance the listener recognises a process that
// dials anew, and takes its newest link.

const (
	// answerLeast is the least time that the holder of a place has to answer. A process that was
	// killed and runs again waits so long for its place.
	answerLeast = time.Second
	// answerMost bounds that time. It is below the time that the rival gives its dial.
	answerMost = dialAnswered / 2
	// answerLook is the interval at which the listener looks for an answer.
	answerLook = 20 * time.Millisecond
	// tellGap is the least time between two messages to the holder about rivals.
	tellGap = 5 * time.Second
	// contestedMost bounds the pause between two dials of a process that was turned away: so soon
	// it is back after the holder has gone. It is below a relay's park_timeout, so new connections
	// wait for it.
	contestedMost = 4 * time.Second
)

// keepsPlace reports whether a rival of link has the peer's place and answers. It returns the link
// of the rival. If it reports false, it returns the link that link may replace, or nil.
func (l *Listener) keepsPlace(ctx context.Context, link *Link) (holder *Link, keeps bool) {
	holder = l.links().get(link.Peer())
	if holder == nil || !holder.isRival(link) || !holder.answers(ctx, link) {
		return holder, false
	}
	holder.tellContested(link)
	if l.Rival != nil {
		l.Rival(link.Peer(), link.RemoteAddr().Addr())
	}
	return holder, true
}

// isRival reports whether two links are known to be of two processes.
func (l *Link) isRival(other *Link) bool {
	none := wire.Instance{}
	return l.instance != none && other.instance != none && l.instance != other.instance
}

// answers reports whether the peer answers a heartbeat. It returns early when ctx is done, or the
// other link, for which the caller asks, is over.
func (l *Link) answers(ctx context.Context, other *Link) bool {
	stats := l.conn.ConnectionStats()
	timeout := time.NewTimer(min(max(answerLeast, 4*stats.SmoothedRTT)+lateFactor*l.clock.Late(),
		answerMost))
	defer timeout.Stop()
	look := time.NewTicker(answerLook)
	defer look.Stop()
	for asked := false; ; {
		asked = asked || l.pulse.ask()
		select {
		case <-look.C:
			if l.Err() == nil && l.conn.ConnectionStats().PacketsReceived != stats.PacketsReceived {
				return true
			}
		case <-timeout.C:
			return false
		case <-l.Done():
			return false
		case <-other.Done():
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// ask sends a heartbeat, which QUIC at the other end acknowledges at once. It reports false if the
// last one is too recent or the link has not started. Then the caller asks again.
func (p *pulse) ask() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer == nil || p.stopped {
		return false
	}
	now := p.now()
	if now.sub(p.sentAt) < answerGap {
		return false
	}
	maxSilence := p.observeLocked(now)
	p.sendLocked(now)
	p.scheduleLocked(now, maxSilence)
	return true
}

// tellContested tells the peer that a rival was turned away.
func (l *Link) tellContested(other *Link) {
	now := uint32((tellGap + time.Since(l.since)) / time.Second)
	if last := l.toldAt.Load(); now-last < uint32(tellGap/time.Second) ||
		!l.toldAt.CompareAndSwap(last, now) {
		return
	}
	l.pulse.mu.Lock() // guards control until start is over
	defer l.pulse.mu.Unlock()
	if l.pulse.timer == nil {
		return
	}
	// Never wait for a peer that does not read its control stream.
	_ = l.control.TryWriteAll(wire.Append(nil, &wire.Contested{From: other.RemoteAddr().String()}))
}

const (
	contestedHint = "Each node needs a key of its own: make one with `ptthqd keygen`, and have " +
		"the relay's config name it"
	contestedHere = "another node holds this node's key: the relay has turned it away, and " +
		"keeps our link. " + contestedHint
	contestedAway = "another node holds this node's key, and answers: the relay keeps its " +
		"link, and turns ours away. " + contestedHint
)

// contestedLines returns the rate of lines about rivals at a node that keeps its link.
func contestedLines() *rate.Limiter { return rate.NewLimiter(rate.Every(10*time.Minute), 1) }

// onContested handles the relay's report that it has turned a rival away.
func (d *Dialer) onContested(m *wire.Contested) {
	d.noteRival()
	if d.rivalLogRate.Allow() {
		d.log.Error(contestedHere, slog.Any("public_key", d.Identity.Public()),
			slog.String("from", m.From))
	}
}

// noteRival notes that a rival is at the relay.
func (d *Dialer) noteRival() {
	d.mu.Lock()
	d.contested = time.Now()
	d.state.Contested = d.contested
	d.mu.Unlock()
	if d.OnContested != nil {
		d.OnContested()
	}
}
