package link

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"ptthqd/pkg/wire"
)

// A packet costs more than its content: a system call at each end, a wake-up, and the work of QUIC.
// So data that nobody waits for, such as the end of a stream, waits for the next packet that leaves
// on the link. If none leaves, it is sent after laterDelay. TestLaterGoesAlongWithOthers counts the
// packets that this saves.
const (
	laterDelay = time.Millisecond
	// laterMost is how many bytes of one stream may wait: what fits into a packet beside others.
	laterMost = 512
	// laterAgain is the first wait of data without room in a flow-control window. The wait doubles
	// up to laterAgainMost.
	laterAgain     = 20 * time.Millisecond
	laterAgainMost = time.Second
	// lingerTime is how long finish waits until what it has just written has left.
	lingerTime = 5 * time.Millisecond
)

// A later is the queue of streams with data that waits for the next packet.
type later struct {
	any atomic.Bool // a stream waits for the next packet

	mu      sync.Mutex
	streams []*Stream
	spare   []*Stream // the last queue, for its memory
	timer   *time.Timer
	armed   time.Duration // what the timer was set to; 0 if it does not run
}

// add queues a stream that is not queued. The caller holds the stream's lock.
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

// stop ends the timer when the link is over.
func (q *later) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.timer != nil {
		q.timer.Stop()
	}
}

// onLaterTimer writes all that waits.
func (l *Link) onLaterTimer() {
	l.later.mu.Lock()
	l.later.armed = 0
	l.later.mu.Unlock()
	l.writeWaiting()
}

// flush writes what waits for the next packet, and reports whether there was anything.
func (l *Link) flush() bool { return l.later.any.Load() && l.writeWaiting() }

// writeWaiting writes all that waits, and reports whether there was anything.
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

// finish closes a link after the data that waits on it has left. A close would overtake that data.
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

// settleLocked writes what waits on the stream, or queues it again if there is no room.
func (s *Stream) settleLocked() {
	if len(s.waiting) > 0 {
		if errors.Is(s.stream.TryWriteAll(s.waiting), quic.ErrWouldBlock) {
			s.retryWait = min(max(2*s.retryWait, laterAgain), laterAgainMost)
			s.queueLocked(s.retryWait)
			return
		}
		s.waiting, s.retryWait = nil, 0 // the next write returns another error
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

// WriteLater copies p, which leaves with the next packet of the link or after laterDelay. p should
// be small. Later writes to the stream come after p. WriteLater never waits. If it fails, the next
// write fails.
func (s *Stream) WriteLater(p []byte) {
	s.link.touch()
	s.mu.Lock()
	s.waiting = append(s.waiting, p...)
	s.queueLocked(laterDelay)
	full := len(s.waiting) > laterMost
	s.mu.Unlock()
	if full {
		s.link.flush()
	}
}

// Finish writes the last bytes, if any, as WriteLater does, and CloseWrite behind them. It must not
// be called beside Write. On a half that was reset it returns how.
func (s *Stream) Finish(p []byte) error {
	if s.stream.Context().Err() != nil {
		return s.CloseWrite()
	}
	if len(p) > 0 {
		s.link.touch()
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

// writeWaiting writes what waits on the stream, before other data. It may wait for room.
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

// tryWrite writes what waits on the stream and then p, or nothing.
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

// endWaiting ends the stream behind the data that waits on it. It reports false if none waits.
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

// dropWaiting drops what waits on the stream.
func (s *Stream) dropWaiting() {
	s.mu.Lock()
	s.waiting, s.ending = nil, false
	s.mu.Unlock()
}
