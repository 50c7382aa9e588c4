package link

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/wire"
)

const (
	// heartbeatBusy is the interval of heartbeats while a stream of the link has carried data in the last busyFor, and
	// heartbeatIdle that of all other times, which also holds a NAT's binding (RFC 4787 asks for 2 minutes, many have 30 s).
	heartbeatBusy = 500 * time.Millisecond
	heartbeatIdle = 10 * time.Second
	busyFor       = 10 * time.Second
	// suspectAfter is the least silence after which a link is given up.
	suspectAfter = 1500 * time.Millisecond
	// answerGap is the least time between two answers to heartbeats, so that a peer who floods gets no flood.
	answerGap = 100 * time.Millisecond
	// pausedAfter is how late a tick may be before it must be this process that stood still, not the path.
	pausedAfter = 250 * time.Millisecond
	// controlTimeout bounds how long a message waits for the peer to read its control stream.
	controlTimeout = 5 * time.Second
)

// pulse is the heartbeat of a link, and what follows from its absence.
//
// The dialler sends on its own time, the listener answers at once, and sends by itself only when it has not answered for a
// fifth longer than the dialler's interval. A heartbeat makes QUIC at the other end acknowledge, so each one sent makes
// something expected; any packet that arrives later settles it. There is no goroutine: a timer's function does it all.
type pulse struct {
	link *Link
	busy atomic.Bool  // a stream has carried data since the last tick
	slow atomic.Bool  // heartbeats are at the idle interval
	rtt  atomic.Int64 // smoothed round trip of heartbeats, nanoseconds

	mu       sync.Mutex
	timer    *time.Timer
	stopped  bool
	due      time.Time // when the timer fires
	busyAt   time.Time
	sentAt   time.Time    // of the last heartbeat
	seq      uint64       // of the last heartbeat
	times    [8]time.Time // when heartbeats left, by seq modulo 8
	echoed   uint64       // the last heartbeat of ours that the peer has answered
	echo     uint64       // the peer's last heartbeat
	answered time.Time
	awaiting time.Time // since when something is expected; zero if nothing is
	packets  uint64    // received, when the pulse last looked
}

func (p *pulse) start(l *Link) {
	p.link = l
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busyAt = time.Now() // a new link is about to be used, and was lost most likely if it is silent
	p.due = p.busyAt
	p.timer = time.AfterFunc(0, p.tick)
}

func (p *pulse) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.timer.Stop()
}

// wake makes an idle link's heartbeats fast at once.
func (p *pulse) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil && !p.stopped {
		p.due = time.Now()
		p.timer.Reset(0)
	}
}

func (p *pulse) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := time.Now()
	patience := p.lookLocked(now)
	if now.Sub(p.due) > pausedAfter && !p.awaiting.IsZero() {
		p.awaiting = now // what has arrived meanwhile is still to be read
	}
	if !p.awaiting.IsZero() && now.Sub(p.awaiting) >= patience {
		p.stopped = true
		p.link.work.Go(p.link.giveUp)
		return
	}
	if now.Sub(p.sentAt) >= p.intervalLocked(now) {
		p.sendLocked(now)
	}
	p.scheduleLocked(now, patience)
}

// lookLocked takes note of what has happened since the last time, and returns how long silence may last now.
func (p *pulse) lookLocked(now time.Time) (patience time.Duration) {
	stats := p.link.conn.ConnectionStats()
	if stats.PacketsReceived != p.packets {
		p.packets = stats.PacketsReceived
		p.awaiting = time.Time{}
	}
	if p.busy.Swap(false) {
		p.busyAt = now
	}
	return suspicion(stats)
}

func (p *pulse) intervalLocked(now time.Time) time.Duration {
	interval := heartbeatIdle
	if now.Sub(p.busyAt) < busyFor {
		interval = heartbeatBusy
	}
	p.slow.Store(interval == heartbeatIdle)
	if !p.link.dialled {
		interval += interval / 5
	}
	return interval
}

func (p *pulse) scheduleLocked(now time.Time, patience time.Duration) {
	p.due = p.sentAt.Add(p.intervalLocked(now))
	if !p.awaiting.IsZero() && p.awaiting.Add(patience).Before(p.due) {
		p.due = p.awaiting.Add(patience)
	}
	p.timer.Reset(p.due.Sub(now))
}

func (p *pulse) sendLocked(now time.Time) {
	p.sentAt = now
	p.seq++
	m := wire.Append(nil, &wire.Heartbeat{Seq: p.seq, Echo: p.echo})
	if p.link.control.TryWriteAll(m) != nil {
		return // no room in the window: nothing leaves, so nothing is expected
	}
	p.times[p.seq%uint64(len(p.times))] = now
	if p.awaiting.IsZero() {
		p.awaiting = now
	}
}

// heard takes a heartbeat of the peer.
func (p *pulse) heard(m *wire.Heartbeat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := time.Now()
	p.echo = m.Seq
	patience := p.lookLocked(now)
	if !p.link.dialled {
		if now.Sub(p.answered) >= answerGap {
			p.answered = now
			p.sendLocked(now)
			p.scheduleLocked(now, patience)
		}
		return
	}
	if m.Echo > p.echoed && m.Echo <= p.seq && m.Echo+uint64(len(p.times)) > p.seq {
		p.echoed = m.Echo
		sample := now.Sub(p.times[m.Echo%uint64(len(p.times))])
		smoothed := time.Duration(p.rtt.Load())
		if smoothed == 0 {
			smoothed = sample
		}
		p.rtt.Store(int64(smoothed + (sample-smoothed)/8)) // as TCP does, RFC 6298
	}
}

// suspicion is how long a link may be silent while something is expected.
func suspicion(s quic.ConnectionStats) time.Duration {
	// Before the first measurement, which a handshake over a slow path may not give, quic-go shows 100 ms.
	if s.MinRTT == 100*time.Millisecond && s.MeanDeviation == 0 {
		return dialAnswered
	}
	// The probe timeout of RFC 9002, section 6.2.1, with quic-go's max_ack_delay.
	pto := s.SmoothedRTT + max(4*s.MeanDeviation, time.Millisecond) + 25*time.Millisecond
	return max(suspectAfter, 4*pto)
}

// giveUp ends a link that has turned suspect. If the peer hears of it, so much the better.
func (l *Link) giveUp() {
	l.once.suspect.Do(func() { close(l.suspect) })
	l.Close(wire.CloseClosing, "nothing arrived from you any more")
}

// readControl takes the peer's link messages.
func (l *Link) readControl() {
	for {
		m, err := wire.Read(quicReader{l.control})
		if err != nil {
			if l.conn.Context().Err() == nil {
				l.Close(wire.CloseProtocol, "the control stream ended: "+err.Error())
			}
			return
		}
		switch m := m.(type) {
		case *wire.Heartbeat:
			l.pulse.heard(m)
			l.once.confirmed.Do(func() { close(l.confirmed) })
		case *wire.Closing:
			if l.dialled { // only a relay says so
				l.once.peerClosing.Do(func() { close(l.peerClosing) })
			}
		case *wire.Revoked:
			if l.dialled && l.revoked != nil {
				l.revoked(l, m.Client, m.Target)
			}
		case nil: // of a later version
		default:
			l.Close(wire.CloseProtocol, "a message that is none of the control stream's")
			return
		}
	}
}

// quicReader reads the control stream, whose bytes are not a stream's traffic.
type quicReader struct{ stream *quic.Stream }

func (r quicReader) Read(p []byte) (int, error) { return r.stream.Read(p) }

// sendControl sends a message that must not be lost with a full window.
func (l *Link) sendControl(m wire.Message) error {
	_ = l.control.SetWriteDeadline(time.Now().Add(controlTimeout))
	if _, err := l.control.Write(wire.Append(nil, m)); err != nil {
		if l.conn.Context().Err() == nil { // half a message may have left
			l.log.Warn("the peer does not read its control stream", slog.String("peer", l.peer), slog.Any("error", err))
			l.Close(wire.CloseProtocol, "the control stream is not read")
		}
		return streamError(err)
	}
	return nil
}
