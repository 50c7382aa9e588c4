package link

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/parity"
	"ptthqd/pkg/wire"
)

const (
	// heartbeatBusy is the interval of heartbeats while a stream of the link has carried data
	// within busyFor. heartbeatIdle is the interval at all other times. It also keeps a NAT's
	// binding: RFC 4787 asks for 2 minutes, many NATs have 30 s.
	heartbeatBusy = 500 * time.Millisecond
	heartbeatIdle = 10 * time.Second
	busyFor       = 10 * time.Second
	// suspectAfter is the least silence after which a link is given up.
	suspectAfter = 1500 * time.Millisecond
	// suspectMost bounds that silence where round trips vary so much that four probe timeouts are
	// half a minute. A link that is given up for nothing costs little: sessions go on over the next
	// one.
	suspectMost = 5 * time.Second
	// lateFactor × the time that this process has lost of late is added to the allowed silence.
	// What keeps this process from running, such as a small host, keeps its peer from it too.
	lateFactor = 4
	// answerGap is the least time between two answers to heartbeats: a flood gets no flood.
	answerGap = 100 * time.Millisecond
	// A tick that is later than pausedAfter shows that this process stood still, not the path.
	pausedAfter = 250 * time.Millisecond
	// A path can begin to lose large packets alone, as when its route changes to a tunnel, and QUIC
	// goes on to send them. So on a busy link every fullEvery-th heartbeat fills a packet: if that
	// is lost, no later heartbeat is answered. A link is stuck after stuckBeats heartbeats, and
	// stuckAfter, without an answer or an acknowledgement. If there are acknowledgements, it is
	// stuck after three times that time and stuckLosses lost packets: the peer may be busy, or its
	// flow-control window full. The next link discovers the MTU anew.
	fullEvery   = 4
	fullPadding = 1500
	stuckBeats  = 6
	stuckAfter  = 5 * time.Second
	stuckLosses = 3
)

// A pulse sends and checks the heartbeats of a link.
//
// A client or server sends heartbeats on its own time. The relay answers at once. It sends by
// itself only when it has not answered for 1.2 times the interval. QUIC acknowledges each
// heartbeat, so after one was sent a packet is expected. Any packet that arrives later meets the
// expectation. A pulse has no goroutine, only a timer.
type pulse struct {
	link *Link
	busy atomic.Bool  // a stream has carried data since the last tick
	slow atomic.Bool  // heartbeats are at the idle interval
	rtt  atomic.Int64 // smoothed round trip of heartbeats, nanoseconds

	mu            sync.Mutex
	timer         *time.Timer
	due           moment    // when the timer fires, by wall
	busyAt        moment    // when a stream last carried data
	sentAt        moment    // when the last heartbeat left
	seq           uint64    // of the last heartbeat that was sent
	times         [8]moment // when heartbeats left, by seq modulo 8
	echoed        uint64    // the last heartbeat that the peer has answered
	echo          uint64    // seq of the peer's last heartbeat
	answered      moment    // when this end last answered
	expectedSince moment    // since when a packet is expected; zero if none is
	packets       uint64    // received, at the last look

	stuck       atomic.Bool // the link was given up because large packets do not arrive
	stopped     bool
	held        bool   // the clock beats for this pulse, because silence counts
	lossy       bool   // the path's round trip is long enough for parity
	news        bool   // the peer is to hear of parity at once
	unechoed    int    // heartbeats since the last that the peer has answered
	unechoedAt  moment // when the first of those left
	lost        uint64 // packets lost by then
	sample      rttSample
	sampledAt   moment // when sample changed: the peer has acknowledged a packet
	heartbeatAt moment // when the peer's last heartbeat arrived
	// only for the reader: when the peer's next message is due, at one for each messageGap
	readable moment

	protection atomic.Pointer[protection] // set under mu; nil until the path was lossy
}

// A moment is a time of a link by its clock. Silence while the process did not run does not count.
// Zero is long ago. A moment takes a third of a time.Time, and a link has many.
type moment time.Duration

// longAgo is the time between moment zero and the beginning of the clock. It is longer than any
// wait.
const longAgo = time.Hour

func (p *pulse) now() moment { return moment(p.link.clock.Now() + longAgo) }

// wall returns the moment by the wall clock.
func (p *pulse) wall() moment { return moment(time.Since(p.link.since) + longAgo) }

func (m moment) sub(earlier moment) time.Duration { return time.Duration(m - earlier) }

func (m moment) add(d time.Duration) moment { return m + moment(d) }

// An rttSample changes with each packet that is acknowledged.
type rttSample struct{ latest, smoothed, deviation time.Duration }

func (p *pulse) start(l *Link) {
	p.link = l
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busyAt = p.now() // a new link is about to be used
	p.due = p.wall()
	p.holdLocked(true)
	p.timer = time.AfterFunc(0, p.tick)
}

func (p *pulse) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.timer.Stop()
	p.holdLocked(false)
	if guard := p.protection.Load(); guard != nil {
		guard.stop(p.link)
	}
}

// wake makes an idle link's heartbeats fast at once.
func (p *pulse) wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil && !p.stopped {
		p.due = p.wall()
		p.timer.Reset(0)
	}
}

func (p *pulse) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := p.now()
	maxSilence := p.observeLocked(now)
	if p.wall().sub(p.due) > pausedAfter { // packets of that time are not read yet
		if p.expectedSince != 0 {
			p.expectedSince = now
		}
		p.unechoed = 0
	}
	silent := p.expectedSince != 0 && now.sub(p.expectedSince) >= maxSilence
	if silent || p.isStuckLocked(now, maxSilence) {
		p.giveUpLocked(!silent)
		return
	}
	if p.news || now.sub(p.sentAt) >= p.intervalLocked(now) {
		p.sendLocked(now)
	}
	p.scheduleLocked(now, maxSilence)
}

func (p *pulse) giveUpLocked(stuck bool) {
	p.stuck.Store(stuck)
	p.stopped = true
	p.timer.Stop()
	p.link.work.Go(p.link.giveUp)
}

// observeLocked notes what has happened since the last look. It returns the silence that is allowed
// now.
func (p *pulse) observeLocked(now moment) (maxSilence time.Duration) {
	stats := p.link.conn.ConnectionStats()
	if stats.PacketsReceived != p.packets {
		p.packets = stats.PacketsReceived
		p.expectedSince = 0
		p.holdLocked(!p.slow.Load())
	}
	if sample := (rttSample{
		stats.LatestRTT, stats.SmoothedRTT,
		stats.MeanDeviation,
	}); sample != p.sample {
		p.sample, p.sampledAt = sample, now
	}
	if p.unechoed == 0 {
		p.lost = stats.PacketsLost
	}
	if p.busy.Swap(false) {
		p.busyAt = now
	}
	if p.lossy = stats.MinRTT >= parity.MinRTT; p.lossy {
		p.protectLocked()
	}
	if guard := p.protection.Load(); guard != nil && guard.review(p.link, &stats, time.Now()) {
		p.news = true
	}
	return silenceLimit(stats) + min(lateFactor*p.link.clock.Late(), suspectMost)
}

func (p *pulse) protectLocked() *protection {
	guard := p.protection.Load()
	if guard == nil {
		guard = new(protection)
		p.protection.Store(guard)
	}
	return guard
}

// isStuckLocked reports whether packets arrive from the peer, but not at the peer.
func (p *pulse) isStuckLocked(now moment, maxSilence time.Duration) bool {
	maxSilence = max(stuckAfter, 2*maxSilence)
	late := now.sub(p.unechoedAt)
	if p.unechoed < stuckBeats || late < maxSilence {
		return false
	}
	return now.sub(p.sampledAt) >= maxSilence ||
		late >= 3*maxSilence && p.link.conn.ConnectionStats().PacketsLost >= p.lost+stuckLosses
}

func (p *pulse) intervalLocked(now moment) time.Duration {
	interval := heartbeatIdle
	if now.sub(p.busyAt) < busyFor {
		interval = heartbeatBusy
	}
	p.slow.Store(interval == heartbeatIdle)
	if p.link.role == roleRelay {
		interval += interval / 5
	}
	return interval
}

func (p *pulse) scheduleLocked(now moment, maxSilence time.Duration) {
	due := p.sentAt.add(p.intervalLocked(now))
	if p.expectedSince != 0 && p.expectedSince.add(maxSilence) < due {
		due = p.expectedSince.add(maxSilence)
	}
	if next := now.add(parity.LookEvery); p.lossy && now.sub(p.busyAt) < busyFor && next < due {
		due = next
	}
	p.holdLocked(p.expectedSince != 0 || !p.slow.Load())
	wait := due.sub(now)
	p.due = p.wall().add(wait)
	p.timer.Reset(wait)
}

// holdLocked makes the clock beat while silence counts.
func (p *pulse) holdLocked(hold bool) {
	if p.held == hold {
		return
	}
	if p.held = hold; hold {
		p.link.clock.Hold()
	} else {
		p.link.clock.Release()
	}
}

func (p *pulse) sendLocked(now moment) {
	p.sentAt = now
	p.seq++
	p.news = false
	m := &wire.Heartbeat{Seq: p.seq, Echo: p.echo}
	if guard := p.protection.Load(); guard != nil {
		m.Parity, m.Restored = guard.maker != nil, guard.restored.Load()
	}
	if p.seq%fullEvery == 0 && !p.slow.Load() {
		m.Padding = fullPadding
	}
	if p.link.control.TryWriteAll(wire.Append(nil, m)) != nil {
		return // no room in the flow-control window: nothing is expected
	}
	p.times[p.seq%uint64(len(p.times))] = now
	if p.unechoed++; p.unechoed == 1 {
		p.unechoedAt = now
	}
	if p.expectedSince == 0 {
		p.expectedSince = now
	}
}

// onHeartbeat handles a heartbeat of the peer.
func (p *pulse) onHeartbeat(m *wire.Heartbeat) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	now := p.now()
	p.echo, p.heartbeatAt = m.Seq, now
	if m.Parity || p.protection.Load() != nil {
		p.protectLocked().onHeartbeat(p.link, m.Parity, m.Restored)
	}
	maxSilence := p.observeLocked(now)
	answered := m.Echo > p.echoed && m.Echo <= p.seq
	if answered {
		p.echoed = m.Echo
		p.unechoed = 0
	}
	if p.isStuckLocked(now, maxSilence) { // each answer puts the timer off
		p.giveUpLocked(true)
		return
	}
	if p.link.role == roleRelay {
		if now.sub(p.answered) >= answerGap {
			p.answered = now
			p.sendLocked(now)
			p.scheduleLocked(now, maxSilence)
		}
		return
	}
	if answered && m.Echo+uint64(len(p.times)) > p.seq {
		sample := now.sub(p.times[m.Echo%uint64(len(p.times))])
		smoothed := time.Duration(p.rtt.Load())
		if smoothed == 0 {
			smoothed = sample
		}
		p.rtt.Store(int64(smoothed + (sample-smoothed)/8)) // as TCP does, RFC 6298
	}
}

// overdue implements Link.Overdue.
func (p *pulse) overdue() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link.role == roleNode || p.heartbeatAt == 0 {
		return 0
	}
	interval := heartbeatIdle
	if p.busyAt.sub(p.heartbeatAt) > heartbeatBusy-busyFor { // busy for the peer too
		interval = heartbeatBusy
	}
	return max(0, p.now().sub(p.heartbeatAt)-interval)
}

// unanswered implements Link.Unanswered.
func (p *pulse) unanswered() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unechoed == 0 {
		return 0
	}
	return p.now().sub(p.unechoedAt)
}

// silenceLimit returns the silence that is allowed while a packet is expected.
func silenceLimit(s quic.ConnectionStats) time.Duration {
	// quic-go returns 100 ms before the first measurement, which may come after the handshake.
	if s.MinRTT == 100*time.Millisecond && s.MeanDeviation == 0 {
		return dialAnswered
	}
	// The probe timeout of RFC 9002, section 6.2.1, with quic-go's max_ack_delay.
	pto := s.SmoothedRTT + max(4*s.MeanDeviation, time.Millisecond) + 25*time.Millisecond
	return max(suspectAfter, min(4*pto, suspectMost+4*s.SmoothedRTT))
}
