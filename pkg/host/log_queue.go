package host

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// The bounds of the log's queue.
const (
	chunkBytes = 64 << 10        // bytes of text or JSON in one write: as much as a pipe holds
	lastLines  = time.Second     // Close waits so long for the lines that are left
	logStuck   = 5 * time.Second // Trouble reports a write that takes longer
)

// QueueBytes is how many bytes may wait for the writer, about 8,000 lines. Further lines are
// dropped. The writer may hold as many bytes. It is a variable for tests alone.
var QueueBytes = 2 << 20

// LinesMissing is the message that stands where lines are missing.
const LinesMissing = "lines of the log are missing"

// line is a line of the log on its way to the sink.
type line struct {
	text *bytes.Buffer // of the pool texts
	at   time.Time

	// For the journal, whose text is a datagram.
	priority byte
	message  [2]int // where the message and its fields begin and end in text; for stderr
}

// lineSink writes lines. Calls don't overlap. write may block while nobody reads; it returns how
// many lines it could not write, and why. It must not keep the lines.
type lineSink interface {
	write(lines []line) (lost int, err error)
	close() // after the last write
}

// logQueue stands between the loggers and the sink, so that put never blocks. A line that finds no
// room is dropped and counted. Once the sink takes lines again, a line says how many are missing
// there.
type logQueue struct {
	sink    lineSink
	missing slog.Handler // writes the line about missing lines, at once
	dropped atomic.Uint64
	busy    atomic.Int64 // when the present write began, in ns after began; 0 if there is none
	began   time.Time
	failure atomic.Pointer[error] // of the last write; nil if it succeeded

	mu     sync.Mutex
	change sync.Cond // signalled when lines or closed change
	lines  []line
	bytes  int       // of lines
	behind int       // how many lines were dropped after lines
	since  time.Time // when the first of those was dropped
	closed bool

	ended chan struct{} // closed when run has returned
}

// newLogQueue makes a queue and its goroutine, which close ends. handler returns a handler that
// calls put for each line.
func newLogQueue(sink lineSink, handler func(put func(line) error) slog.Handler) *logQueue {
	q := &logQueue{sink: sink, began: time.Now(), ended: make(chan struct{})}
	q.change.L = &q.mu
	q.missing = handler(func(l line) error {
		_, err := q.write([]line{l})
		return err
	})
	go q.run()
	return q
}

// put adds a line or drops it. After a dropped line all lines are dropped until the sink has taken
// the lines before it: so there is one gap, not many.
func (q *logQueue) put(l line) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.behind > 0 || len(q.lines) > 0 && q.bytes+l.text.Len() > QueueBytes {
		if q.behind == 0 {
			q.since = l.at
		}
		q.behind++
		q.dropped.Add(1)
		texts.Put(l.text)
		return nil
	}
	q.lines = append(q.lines, l)
	q.bytes += l.text.Len()
	if len(q.lines) == 1 {
		q.change.Signal()
	}
	return nil
}

// take waits for lines. It returns them, and how many were dropped after them, and since when;
// false once the queue is closed and empty. It keeps reuse as the next buffer.
func (q *logQueue) take(reuse []line) (lines []line, behind int, since time.Time, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) == 0 && !q.closed {
		q.change.Wait()
	}
	lines, behind, since = q.lines, q.behind, q.since
	q.lines, q.bytes, q.behind = reuse[:0], 0, 0
	return lines, behind, since, len(lines) > 0
}

// run writes lines until the queue is closed and empty.
func (q *logQueue) run() {
	defer close(q.ended)
	defer q.sink.close()
	var spare []line
	gap := 0 // missing lines that no line has reported yet
	var since time.Time
	var reason error
	for {
		lines, behind, dropped, ok := q.take(spare)
		if !ok {
			return
		}
		gap = q.tell(gap, since, reason)
		lost, err := q.write(lines)
		q.dropped.Add(uint64(lost))
		if gap == 0 {
			reason, since = err, dropped
			if lost > 0 {
				since = lines[len(lines)-lost].at
			}
		}
		gap = q.tell(gap+lost+behind, since, reason)
		for i := range lines {
			texts.Put(lines[i].text)
		}
		clear(lines)
		spare = lines
		if cap(spare) > 1024 {
			spare = nil // left by a burst
		}
	}
}

// tell writes that lines are missing. It returns how many are still to be reported.
func (q *logQueue) tell(gap int, since time.Time, reason error) int {
	if gap == 0 {
		return 0
	}
	r := slog.NewRecord(time.Now(), slog.LevelWarn, LinesMissing, 0)
	r.Add("lines", gap, "since", since, "reason", "the log was not read for a while")
	if reason != nil {
		r.Add("error", reason)
	}
	if q.missing.Handle(context.Background(), r) != nil {
		return gap
	}
	return 0
}

// write passes lines to the sink and notes how that goes.
func (q *logQueue) write(lines []line) (lost int, err error) {
	q.busy.Store(max(1, int64(time.Since(q.began))))
	defer q.busy.Store(0)
	lost, err = q.sink.write(lines)
	if err == nil {
		q.failure.Store(nil)
	} else {
		q.failure.Store(&err)
	}
	return lost, err
}

// trouble says why no lines are written at the moment; "" if they are.
func (q *logQueue) trouble() string {
	if since := q.busy.Load(); since > 0 {
		if stuck := time.Since(q.began) - time.Duration(since); stuck > logStuck {
			return fmt.Sprintf("nobody has read the log for %v", stuck.Round(time.Second))
		}
	}
	if err := q.failure.Load(); err != nil {
		return fmt.Sprintf("the log can't be written: %v", *err)
	}
	return ""
}

// close waits until all lines are written, patience at most. It leaves a hanging sink behind.
func (q *logQueue) close(patience time.Duration) {
	q.mu.Lock()
	q.closed = true
	q.change.Signal()
	q.mu.Unlock()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-q.ended:
	case <-timeout.C:
	}
}

// writerSink writes lines of text, many with one write.
type writerSink struct {
	w     io.Writer
	chunk bytes.Buffer
	torn  bool // the last write has ended within a line
}

func (s *writerSink) write(lines []line) (lost int, err error) {
	for i := 0; i < len(lines); {
		s.chunk.Reset()
		if s.torn {
			s.chunk.WriteByte('\n')
		}
		begin := s.chunk.Len()
		first := i
		for ; i < len(lines) &&
			(i == first || s.chunk.Len()+lines[i].text.Len() <= chunkBytes); i++ {
			s.chunk.Write(lines[i].text.Bytes())
		}
		n, writeErr := s.w.Write(s.chunk.Bytes())
		if n > 0 {
			s.torn = s.chunk.Bytes()[n-1] != '\n'
		}
		if writeErr != nil {
			err = writeErr
			lost += bytes.Count(s.chunk.Bytes()[max(n, begin):], []byte("\n"))
		}
	}
	return lost, err
}

func (s *writerSink) close() {}
