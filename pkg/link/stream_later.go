package link

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/wire"
)

// A packet costs more than what is in it: a system call at each end, a wake-up, and the work of QUIC. So what nobody waits
// for, such as the end of a stream, waits for the next packet that leaves on the link anyway; on a link with much to do that
// is soon. Where nothing else leaves, it goes by itself after laterDelay.
const (
	laterDelay = time.Millisecond
	// laterMost is how much of one stream may wait: what fits into a packet with others.
	laterMost = 512
	// laterAgain is when what found no room in a flow-control window is tried again, and laterAgainMost how rarely at last.
	laterAgain     = 20 * time.Millisecond
	laterAgainMost = time.Second
	// lingerTime is how long a link that is to be closed waits for what it has just written to leave.
	lingerTime = 5 * time.Millisecond
)

// later is what waits on a link.
type later struct {
	any atomic.Bool // there is something for the next packet

	mu      sync.Mutex
	streams []*Stream
	spare   []*Stream // of the last time, for its memory
	timer   *time.Timer
	armed   time.Duration // what the timer was set to; 0: it does not run
}

// add queues a stream, whose lock its caller holds, and which isn't queued yet.
func (q *later) add(s *Stream, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.streams = append(q.streams, s)
	if wait == laterDelay {
		q.any.Store(true)
	}
	switch {
	case q.armed > 0 && q.armed <= wait:
		return
	case q.timer == nil:
		q.timer = time.AfterFunc(wait, s.link.onLaterTimer)
	default:
		q.timer.Reset(wait)
	}
	q.armed = wait
}

// stop ends the timer, when the link is over.
func (q *later) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer != nil {
		q.timer.Stop()
	}
}

// onLaterTimer is called by the timer.
func (l *Link) onLaterTimer() {
	l.later.mu.Lock()
	l.later.armed = 0
	l.later.mu.Unlock()
	l.writeWaiting()
}

// flush writes what waits for the next packet. It tells whether there was anything.
func (l *Link) flush() bool { return l.later.any.Load() && l.writeWaiting() }

// writeLater writes all that waits.
func (l *Link) writeWaiting() bool {
	q := &l.later
	q.mu.Lock()
	q.any.Store(false)
	streams := q.streams
	q.streams, q.spare = q.spare[:0], nil
	q.mu.Unlock()
	for _, s := range streams {
		s.mu.Lock()
		s.queued = false
		s.settleLocked()
		s.mu.Unlock()
	}
	if len(streams) == 0 {
		return false
	}
	clear(streams)
	q.mu.Lock()
	if cap(streams) <= 64 {
		q.spare = streams
	}
	q.mu.Unlock()
	return true
}

// finish closes a link when what waits on it has left: a close would overtake it.
func (l *Link) finish(reason string) {
	if l.flush() {
		timer := time.NewTimer(lingerTime)
		defer timer.Stop()
		select {
		case <-l.Done():
		case <-timer.C:
		}
	}
	l.Close(wire.CloseClosing, reason)
}

// settleLocked writes what waits on the stream, or queues it again if there is no room for it.
func (s *Stream) settleLocked() {
	if len(s.waiting) > 0 {
		if errors.Is(s.stream.TryWriteAll(s.waiting), quic.ErrWouldBlock) {
			s.retryWait = min(max(2*s.retryWait, laterAgain), laterAgainMost)
			s.queueLocked(s.retryWait)
			return
		}
		s.waiting, s.retryWait = nil, 0 // another error is for the next write to find
	}
	if s.ending {
		s.ending = false
		_ = s.stream.Close()
	}
}

func (s *Stream) queueLocked(wait time.Duration) {
	if !s.queued {
		s.queued = true
		s.link.later.add(s, wait)
	}
}

// WriteLater is a Write of little that need not hurry: it copies p, which leaves with the next packet of the link, or soon.
// What is written to the stream after it comes after it. It never waits; where it fails, so does what is written next.
func (s *Stream) WriteLater(p []byte) {
	s.mu.Lock()
	s.waiting = append(s.waiting, p...)
	s.queueLocked(laterDelay)
	full := len(s.waiting) > laterMost
	s.mu.Unlock()
	if full {
		s.link.flush()
	}
}

// End is a WriteLater of the last bytes, if there are any, and a CloseWrite behind them. It must not be called beside Write.
// On a half that has been reset already it returns how.
func (s *Stream) End(p []byte) error {
	if s.stream.Context().Err() != nil {
		return s.CloseWrite()
	}
	s.mu.Lock()
	s.waiting = append(s.waiting, p...)
	s.ending = true
	s.queueLocked(laterDelay)
	full := len(s.waiting) > laterMost
	s.mu.Unlock()
	if full {
		s.link.flush()
	}
	return nil
}

// writeWaiting writes what waits on the stream, before something else. It may have to wait.
func (s *Stream) writeWaiting() error {
	s.mu.Lock()
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	if len(waiting) == 0 {
		return nil
	}
	n, err := s.stream.Write(waiting)
	if n < len(waiting) {
		s.mu.Lock()
		s.waiting = waiting[n:]
		s.mu.Unlock()
	}
	return streamError(err)
}

// tryWrite writes what waits on the stream, and p behind it, or nothing.
func (s *Stream) tryWrite(p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		return s.stream.TryWriteAll(p)
	}
	err := s.stream.TryWriteAll(append(s.waiting, p...))
	if !errors.Is(err, quic.ErrWouldBlock) {
		s.waiting = nil
	}
	return err
}

// endWaiting has the stream ended behind what waits on it, if anything does.
func (s *Stream) endWaiting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		s.ending = false
		return false
	}
	s.ending = true
	s.settleLocked()
	return true
}

// dropWaiting forgets what waits on the stream.
func (s *Stream) dropWaiting() {
	s.mu.Lock()
	s.waiting, s.ending = nil, false
	s.mu.Unlock()
}
